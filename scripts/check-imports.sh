#!/usr/bin/env bash
# Checks what the library packages import, tests aside:
#   - each other only downwards: pgxpool, root, internal/socket, internal/backend,
#     internal/allotment, semaphore, internal/redisscript;
#   - from outside the standard library only go-redis, uuid, pgx and puddle.
# Nobody pays for a dependency that a tool or a test of ours needs.
set -euo pipefail
cd "$(dirname "$0")/.."

# The root's module by itself: nothing of the library may need the workspace.
export GOWORK=off
module=$(go list -m)

# From top to bottom: a package may import those after it.
layers=("$module/pgxpool" "$module" "$module/internal/socket" "$module/internal/backend"
	"$module/internal/allotment"
	"$module/semaphore" "$module/internal/redisscript")

allowed='^github\.com/(redis/go-redis/v9|google/uuid|jackc/pgx/v5|jackc/puddle/v2)(/|$)'

failed=false
fail() {
	echo "check-imports: $*" >&2
	failed=true
}

# layer prints a package's place, counted from the top, or nothing if it is not one of the library's.
layer() {
	local i
	for i in "${!layers[@]}"; do
		if [[ ${layers[i]} == "$1" ]]; then echo "$i"; fi
	done
}

# shellcheck disable=SC2016 # the dollars are go list's template's
pairs=$(go list -f '{{$p := .ImportPath}}{{range .Imports}}{{$p}} {{.}}{{"\n"}}{{end}}' "${layers[@]}")

while read -r package import; do
	[[ -n $package ]] || continue
	if [[ $import == "$module" || $import == "$module"/* ]]; then
		below=$(layer "$import")
		if [[ -z $below ]]; then
			fail "$package imports $import, which has no place among the layers of $0"
		elif ((below <= $(layer "$package"))); then
			fail "$package imports $import, against the direction of imports"
		fi
	elif [[ ${import%%/*} == *.* && ! $import =~ $allowed ]]; then
		fail "$package imports $import, which is not among the library's dependencies"
	fi
done <<<"$pairs"

if $failed; then exit 1; fi
echo "check-imports: ok"
