#!/usr/bin/env bash
# Checks the imports of the library packages, tests aside:
#   - of each other, only as in the table below, which is that of ARCHITECTURE.md, "Layers";
#   - of packages outside the standard library, only go-redis, uuid, pgx and puddle.
# So the library's users do not depend on packages that only our tools or tests need.
set -euo pipefail
cd "$(dirname "$0")/.."

# Check the root's module by itself: the library may not need the workspace.
export GOWORK=off
module=$(go list -m)

# From top to bottom: a package, then the packages of the module that it may import. The root's
# package is ".".
arrows='
dashboard            internal/page internal/status internal/pgview semaphore
internal/page        internal/status semaphore
internal/status      internal/pgview semaphore
internal/pgview
env                  . internal/settings internal/sessions internal/backend semaphore internal/engine
pgxpool              . internal/settings internal/sessions internal/socket internal/backend semaphore internal/allotment internal/engine
internal/settings    . semaphore internal/allotment internal/redisurl
internal/sessions    semaphore
.                    internal/socket internal/backend semaphore internal/allotment internal/engine
internal/socket      semaphore internal/allotment
internal/backend     internal/allotment
semaphore            internal/engine internal/core internal/message internal/redisurl
internal/allotment   internal/engine internal/core internal/message
internal/engine      internal/core internal/redisscript internal/message
internal/core        internal/message
internal/redisscript internal/message
internal/redisurl
internal/message
'

allowed='^github\.com/(redis/go-redis/v9|google/uuid|jackc/pgx/v5|jackc/puddle/v2)(/|$)'

failed=false
fail() {
	echo "check-imports: $*" >&2
	failed=true
}

# below prints the packages that a package of the library may import, in one line.
below() { awk -v package="$1" '$1 == package { $1 = ""; print }' <<<"$arrows"; }

packages=()
while read -r package _; do
	if [[ -n $package ]]; then packages+=("./$package"); fi
done <<<"$arrows"
# shellcheck disable=SC2016 # the dollars are go list's template's
pairs=$(go list -f '{{$p := .ImportPath}}{{range .Imports}}{{$p}} {{.}}{{"\n"}}{{end}}' \
	"${packages[@]}")

while read -r package import; do
	[[ -n $package ]] || continue
	if [[ $import == "$module" || $import == "$module"/* ]]; then
		from=${package#"$module"/} to=${import#"$module"/}
		if [[ $from == "$module" ]]; then from=.; fi
		if [[ $to == "$module" ]]; then to=.; fi
		if [[ " $(below "$from") " != *" $to "* ]]; then
			fail "$from imports $to, which the table in $0 does not allow"
		fi
	elif [[ ${import%%/*} == *.* && ! $import =~ $allowed ]]; then
		fail "$package imports $import, which is not among the library's dependencies"
	fi
done <<<"$pairs"

if $failed; then exit 1; fi
echo "check-imports: ok"
