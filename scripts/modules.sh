#!/usr/bin/env bash
# Keeps go.mod and go.sum of the modules in go.work as `go mod tidy` wants them.
#
# The other modules require the next version of the root's module. The workspace builds them
# without it, but `go mod tidy` ignores the workspace, and would search for a tag that does not
# exist yet. So it runs on a copy of each go.mod, in which a replace directive leads to the root's
# folder. The go.mod itself has no such directive, or `go install .../cmd/passbuddy@latest` would
# refuse it.
#
# Usage: scripts/modules.sh check | tidy
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
	echo "usage: scripts/modules.sh check | tidy" >&2
	exit 2
}
[[ $# == 1 && ($1 == check || $1 == tidy) ]] || usage

root=$PWD
export GOFLAGS=-mod=readonly
folders=()
while read -r folder; do
	folders+=("$folder")
done < <(GOWORK=$root/go.work go list -m -f '{{.Dir}}')
export GOWORK=off
module=$(go list -m)

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
failed=false

for folder in "${folders[@]}"; do
	cd "$folder"
	name=${folder#"$root"}
	name=${name#/}
	if [[ -n $(go mod edit -json | sed -n '/"Replace": \[/p') ]]; then
		echo "modules: ${name:-.}/go.mod has a replace directive, so go install refuses it" >&2
		failed=true
	fi
	cp go.mod "$copy/go.mod"
	rm -f "$copy/go.sum"
	if [[ -e go.sum ]]; then cp go.sum "$copy/go.sum"; fi
	if [[ $folder != "$root" ]]; then go mod edit -replace "$module=$root" "$copy/go.mod"; fi
	go mod tidy -modfile "$copy/go.mod"
	if [[ $folder != "$root" ]]; then go mod edit -dropreplace "$module" "$copy/go.mod"; fi
	for file in go.mod go.sum; do
		if [[ $1 == tidy ]]; then
			if ! cmp -s "$copy/$file" "$file"; then cp "$copy/$file" "$file"; fi
		elif ! diff -u "$file" "$copy/$file" >&2; then
			echo "modules: ${name:-.}/$file is not tidy, run make tidy" >&2
			failed=true
		fi
	done
done

if $failed; then exit 1; fi
echo "modules: ok"
