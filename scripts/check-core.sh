#!/usr/bin/env bash
# Checks that the engine's protocol is a value. internal/core and internal/message, tests aside,
# have no goroutine, channel operation, clock, lock or I/O. They may hold a channel for the shell.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck disable=SC2016 # the dollars are go list's template's
files='{{range .GoFiles}}{{.}}{{"\n"}}{{end}}'
others='{{.CgoFiles}} {{.SFiles}} {{.IgnoredGoFiles}}'

for package in ./internal/core ./internal/message; do
	odd=$(go list -f "$others" "$package")
	if [[ $odd != '[] [] []' ]]; then
		echo "check-core: $package has files other than Go for every machine: $odd" >&2
		exit 1
	fi
	names=$(go list -f "$files" "$package")
	mapfile -t list <<<"$names"
	go run scripts/check-core.go "$package" "${list[@]}"
done
echo "check-core: ok"
