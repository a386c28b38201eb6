#!/usr/bin/env bash
# Says whether the checkout is ready to be tagged: one line for each step, and its output if it
# failed. It publishes nothing, and changes nothing in the checkout.
#
# The tool is installed as users install it, by `go install PATH@VERSION`, from a module proxy made
# of the checkout (fileproxy.go). The proxy gives all modules the version that they require of the
# root's module. A module cache of its own makes sure that an earlier try is not installed again.
# Other modules come from the ordinary cache, else from the ordinary proxy.
#
# Usage: scripts/release-check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
if (($#)); then
	echo "usage: scripts/release-check.sh" >&2
	exit 2
fi

root=$PWD
module=$(GOWORK=off go list -m)
work=$(mktemp -d)
finish() {
	if [[ -e $work/redis.pid ]]; then
		kill "$(cat "$work/redis.pid")" 2>/dev/null || true
		while kill -0 "$(cat "$work/redis.pid")" 2>/dev/null; do sleep 0.1; done
	fi
	rm -rf "$work"
}
trap finish EXIT

failed=false
# step NAME COMMAND...: runs it, and tells the verdict with the last line that it printed.
step() {
	local name=$1 status verdict
	shift
	# Not in the condition: bash ignores set -e there.
	set +e
	(
		set -e
		"$@"
	) >"$work/log" 2>&1
	status=$?
	set -e
	if ((status == 0)); then
		verdict=$(tail -n 1 "$work/log")
		echo "release-check: ok      $name: ${verdict:-done}"
	else
		sed 's/^/  | /' "$work/log"
		echo "release-check: FAILED  $name"
		failed=true
	fi
}

# All modules of go.work, as path=folder.
modules=()
while read -r line; do
	modules+=("$line")
done < <(GOWORK=$root/go.work go list -m -f '{{.Path}}={{.Dir}}')

# The version to be released: the one that the tool's module requires.
version=$(sed -n "s|^[[:space:]]*${module} \(v[^ ]*\)\$|\1|p" cmd/passbuddy/go.mod)

same_version() {
	local line folder required
	if [[ ! $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]]; then
		echo "cmd/passbuddy/go.mod requires the version '$version' of $module"
		return 1
	fi
	for line in "${modules[@]}"; do
		folder=${line#*=}
		if [[ $folder == "$root" ]]; then continue; fi
		# Also a module of this repository that another requires is of that version.
		while read -r required; do
			if [[ $required != *" $version" ]]; then
				echo "${folder#"$root/"}/go.mod requires $required, and cmd/passbuddy/go.mod $version"
				return 1
			fi
		done < <(sed -n "s|^[[:space:]]*\(${module}[^ ]* v[^ ]*\).*|\1|p" "$folder/go.mod")
	done
	echo "$version, in ${#modules[@]} modules"
}

# The newest section is Unreleased, or that of the version, and says something.
changelog() {
	local heading lines
	heading=$(sed -n 's/^## *//p' CHANGELOG.md | head -n 1)
	case $heading in
	Unreleased | "[Unreleased]" | "${version#v}" | "${version#v} "* | "[${version#v}]"*) ;;
	*)
		echo "the newest section of CHANGELOG.md is '$heading': it must be Unreleased or ${version#v}"
		return 1
		;;
	esac
	lines=$(awk '/^## /{n++} n == 1 && /^- /{found++} END{print found+0}' CHANGELOG.md)
	if ((lines == 0)); then
		echo "the section $heading of CHANGELOG.md is empty"
		return 1
	fi
	echo "$heading has $lines entries"
}

# Files of others: each has its licence beside it, and the test knows the checksums of all.
licences() {
	local file
	grep -q '^MIT License' LICENSE
	for file in $(git ls-files '*.min.js' '*.min.css' 'vendor/*' '*/vendor/*' '*/third_party/*'); do
		echo "$file: a file of others, without a checksum in internal/page/vendored_test.go"
		return 1
	done
	grep -q 'MIT License' internal/page/assets/uplot-license.txt
	go test -count 1 -run TestVendoredFilesAreUnchanged -v ./internal/page | tee "$work/vendored"
	grep -q '^--- PASS: TestVendoredFilesAreUnchanged' "$work/vendored"
	echo "ours is there; uPlot's is there, and its files are unchanged"
}

# The exported names are those of the golden lists in api/.
golden() {
	go test -count 1 ./api
	echo "the exported names are those in api/"
}

# from_proxy COMMAND...: runs go as a user's machine does, with the checkout's modules published.
from_proxy() {
	local cache proxy
	cache=$(go env GOMODCACHE)/cache/download
	proxy=$(go env GOPROXY)
	env GOWORK=off GOFLAGS=-modcacherw GOMODCACHE="$work/cache" GOBIN="$work/bin" GOOS= GOARCH= \
		GONOPROXY=none GONOSUMDB="$module,$(go env GONOSUMDB)" \
		GOPROXY="file://$work/proxy,file://$cache,$proxy" "$@"
}

# The files for GitHub can be parsed: its forms and workflows fail in silence otherwise.
github() {
	if ! python3 -c 'import yaml' 2>/dev/null; then
		echo "NOT CHECKED, there is no python3 with its module yaml"
		return 0
	fi
	git ls-files '.github/*.yml' | xargs python3 -c '
import sys, yaml

for name in sys.argv[1:]:
    with open(name) as file:
        text = yaml.safe_load(file)
    if not isinstance(text, dict):
        sys.exit(name + " holds no mapping")
print(len(sys.argv) - 1, "files for GitHub are YAML")
'
}

publish() {
	GOWORK=off go run scripts/fileproxy.go "$work/proxy" "$version" "${modules[@]}"
	echo "${#modules[@]} modules of $version, in a module proxy made of the checkout"
}

install_tool() {
	local said
	mkdir -p "$work/empty"
	cd "$work/empty"
	from_proxy go install "$module/cmd/passbuddy@$version"
	said=$("$work/bin/passbuddy" version)
	echo "$said"
	[[ $said == "passbuddy $version" ]]
}

# A session tells operators its version: `passbuddy run` is one, and looks at itself.
session_version() {
	local redis url
	redis=${PASSBUDDY_REDIS_SERVER:-$(command -v redis-server || command -v valkey-server || true)}
	if [[ -z $redis ]]; then
		echo "NOT CHECKED, there is no Redis (scripts/setup.sh --need redis)"
		return 0
	fi
	"$redis" --port 0 --unixsocket "$work/redis.sock" --save '' --dir "$work" >"$work/redis.log" 2>&1 &
	echo $! >"$work/redis.pid"
	url=unix://$work/redis.sock
	for _ in $(seq 100); do
		if [[ -S $work/redis.sock ]]; then break; fi
		sleep 0.1
	done
	"$work/bin/passbuddy" run --redis "$url" --capacity 1 -- \
		"$work/bin/passbuddy" status --redis "$url" --json >"$work/status"
	grep -F "\"$version\"" "$work/status" || { cat "$work/status"; return 1; }
	echo "a session says $version in status --json"
}

# A program that uses the library is linked with these modules alone.
dependencies() {
	local allowed linked
	mkdir -p "$work/user"
	cd "$work/user"
	cat >main.go <<-PROGRAM
		package main

		import (
			_ "$module"
			_ "$module/env"
			_ "$module/pgxpool"
			_ "$module/semaphore"
		)

		func main() {}
	PROGRAM
	from_proxy go mod init example.com/user
	from_proxy go get "$module@$version"
	from_proxy go mod tidy
	from_proxy go build -o "$work/bin/user" .
	allowed="$module github.com/redis/go-redis/v9 github.com/cespare/xxhash/v2 go.uber.org/atomic
		github.com/google/uuid github.com/jackc/pgx/v5 github.com/jackc/pgpassfile
		github.com/jackc/pgservicefile github.com/jackc/puddle/v2 golang.org/x/sync golang.org/x/text
		golang.org/x/sys" # go-redis's
	linked=$(from_proxy go version -m "$work/bin/user" | awk '$1 == "dep" {print $2}')
	for one in $linked; do
		if [[ " ${allowed//[$'\n\t']/ } " != *" $one "* ]]; then
			echo "a program that uses the library is linked with $one"
			return 1
		fi
	done
	echo "a program that uses the library is linked with $(wc -w <<<"$linked") modules, all known"
}

step version same_version
step modules scripts/modules.sh check
step api golden
step changelog changelog
step licences licences
step github github
step proxy publish
step install install_tool
step session session_version
step dependencies dependencies

if $failed; then
	echo "release-check: $version is NOT READY"
	exit 1
fi
echo "release-check: $version is ready: tag it, for each module (CONTRIBUTING.md, Modules)"
