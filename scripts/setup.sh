#!/usr/bin/env bash
# Makes sure that the servers which the tests and the demo start are installed: PostgreSQL (postgres
# and initdb) and Redis (redis-server). If they are, it returns fast.
#
# Usage: scripts/setup.sh [--need redis] [--need cc] [--want PROGRAM]...
#
#   --need redis     fail when redis-server is missing; by default that is a warning, because the
#                    demo has a stand-in
#   --need cc        a C compiler too: Go's race detector needs it
#   --want PROGRAM   pgbouncer, chromium, promtool or npm too; if it is missing, that is a warning:
#                    the benchmarks leave PgBouncer out, and tests that need a program are skipped
#
# The script installs with apt-get (as root, or through sudo if that asks no password) or with brew.
# It leaves no service running or enabled. Exit status: 0 all there, 1 a needed program is missing,
# 2 wrong usage.
set -euo pipefail

need_redis=false
need_cc=false
wants=()
while (($#)); do
	case "$1 ${2:-}" in
	'--need redis')
		need_redis=true
		shift 2
		;;
	'--need cc')
		need_cc=true
		shift 2
		;;
	'--want pgbouncer' | '--want chromium' | '--want promtool' | '--want npm')
		wants+=("$2")
		shift 2
		;;
	*)
		echo "usage: scripts/setup.sh [--need redis] [--need cc] [--want PROGRAM]..." >&2
		exit 2
		;;
	esac
done

say() { echo "setup: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# The same places as in internal/throwaway/find.go.
has_postgres() {
	local dir
	if has postgres && has initdb; then return 0; fi
	for dir in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql*/bin \
		/usr/local/opt/postgresql*/bin /opt/homebrew/bin \
		"$(pg_config --bindir 2>/dev/null || true)"; do
		if [[ -x $dir/postgres && -x $dir/initdb ]]; then return 0; fi
	done
	return 1
}

has_redis() {
	[[ -n ${PASSBUDDY_REDIS_SERVER:-} ]] || has redis-server || has valkey-server ||
		[[ -x /opt/homebrew/bin/redis-server ]]
}

# The same places as in internal/throwaway/pgbouncer.go.
has_pgbouncer() {
	local path
	if has pgbouncer; then return 0; fi
	for path in /usr/sbin/pgbouncer /opt/homebrew/bin/pgbouncer /usr/local/bin/pgbouncer \
		/opt/homebrew/opt/pgbouncer/bin/pgbouncer; do
		if [[ -x $path ]]; then return 0; fi
	done
	return 1
}

# The same names as in cmd/passbuddy/internal/serve/browser_test.go.
has_chromium() {
	has chromium || has chromium-browser || has google-chrome
}

has_promtool() { has promtool; }

has_npm() { has npm && has node; }

# packages_for names Debian's packages.
packages_for() {
	case $1 in
	promtool) echo prometheus ;;
	npm) echo nodejs npm ;;
	*) echo "$1" ;;
	esac
}

# CC is Go's own setting; without it Go runs gcc, or clang on macOS.
has_cc() { has "${CC:-gcc}" || { [[ $OSTYPE == darwin* ]] && has clang; }; }

as_root=()
can_be_root() {
	if ((EUID == 0)); then return 0; fi
	as_root=(sudo -n)
	has sudo && sudo -n true 2>/dev/null
}

# Debian's packages start a service when they are installed, and PostgreSQL's even creates a
# database cluster. A policy-rc.d that answers 101 forbids the start, and a setting that
# postgresql-common reads forbids the cluster. Both exist only while apt-get runs, and an earlier
# policy-rc.d is restored.
policy=/usr/sbin/policy-rc.d
policy_kept=
no_cluster=/etc/postgresql-common/createcluster.d/passbuddy-setup.conf

forbid_services() {
	if [[ -e $policy ]]; then
		policy_kept=$policy.passbuddy-setup
		"${as_root[@]}" mv "$policy" "$policy_kept"
	fi
	printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
	"${as_root[@]}" chmod 755 "$policy"
	"${as_root[@]}" mkdir -p "${no_cluster%/*}"
	echo 'create_main_cluster = false' | "${as_root[@]}" tee "$no_cluster" >/dev/null
}

allow_services() {
	"${as_root[@]}" rm -f "$policy" "$no_cluster"
	if [[ -n $policy_kept ]]; then "${as_root[@]}" mv "$policy_kept" "$policy"; fi
}

apt_install() {
	local log status=0
	log=$(mktemp)
	trap 'allow_services' EXIT
	forbid_services
	{
		"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update &&
			"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
				apt-get install -y --no-install-recommends "$@"
	} >"$log" 2>&1 </dev/null || status=$?
	allow_services
	trap - EXIT
	if ((status)); then
		say "apt-get failed:"
		tail -n 15 "$log" >&2
	else
		# The packages enabled services that would start at the next boot.
		if has systemctl && [[ -d /run/systemd/system ]]; then
			local package
			for package in "$@"; do
				"${as_root[@]}" systemctl disable --quiet "$package" >/dev/null 2>&1 || true
			done
		fi
	fi
	rm -f "$log"
	return "$status"
}

# install takes the names of Debian's packages, and derives brew's from them.
install() {
	if has apt-get && can_be_root; then
		say "installing $* with apt-get"
		apt_install "$@" || true # the checks below report the missing programs
	elif has brew; then
		local name formulae=()
		for name in "$@"; do
			case $name in
			postgresql) formulae+=(postgresql@17) ;;
			redis-server) formulae+=(redis) ;;
			pgbouncer | prometheus | chromium) formulae+=("$name") ;;
			npm) formulae+=(node) ;;
			esac
		done
		if ((${#formulae[@]})); then
			say "installing ${formulae[*]} with brew"
			brew install --quiet "${formulae[@]}" >&2 || true
		fi
	fi
}

wanted=()
has_postgres || wanted+=(postgresql)
has_redis || wanted+=(redis-server)
if $need_cc && ! has_cc; then wanted+=(gcc libc6-dev); fi
if ((${#wanted[@]})); then install "${wanted[@]}"; fi
# Each is installed alone, so that a system without such a package gets the others.
want() {
	local packages
	if ! "has_$1"; then
		read -ra packages <<<"$(packages_for "$1")"
		install "${packages[@]}"
	fi
	"has_$1" || say "warning: no $1; what needs it is left out"
}
if ((${#wants[@]})); then
	for program in "${wants[@]}"; do want "$program"; done
fi

if ! has_postgres; then
	say "missing: PostgreSQL server programs (postgres, initdb);" \
		"install the postgresql package of your system"
	exit 1
fi
if $need_cc && ! has_cc; then
	say "missing: a C compiler, which go test -race needs;" \
		"install gcc (on macOS: xcode-select --install)"
	exit 1
fi
if ! has_redis; then
	if $need_redis; then
		say "missing: redis-server; install the redis package of your system"
		exit 1
	fi
	say "warning: no redis-server; the demo uses an embedded stand-in"
fi
