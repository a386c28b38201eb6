# `make` alone lists the targets. The description of a target follows its ##.

GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
VULNDB      := https://vuln.go.dev
# All packages of all modules that have tests: see go.work. What is named first starts first: the
# longest package. go test would compile the others too, each example among them a second time.
PKG         ?= ./integration $$($(GO) list \
	-f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' work)
TIMEOUT     ?= 20m
BENCH       ?= .
COUNT       ?= 10
DURATION    ?= 1m
ROUNDS      ?= 20
STEPS       ?= 1000000
SEED        ?= 0
FAULT       ?=
ARGS        ?=

# The modules are one workspace, whatever go env says. In a workspace go refuses -mod=mod and
# -modfile.
export GOWORK  := $(CURDIR)/go.work
export GOFLAGS := $(filter-out -mod=% -modfile=%,$(shell $(GO) env GOFLAGS 2>/dev/null)) \
	-mod=readonly

# Three packages run at once at least: while one waits for other processes, others compute. In a
# package, more of the tests that call t.Parallel run at once than there are processors.
PARALLEL    := $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); \
	echo -p $$((n > 3 ? n : 3)) -parallel $$((n > 8 ? n : 8)))

# Flags that the checkers, and the programs which tests build, share with the tests, so that nothing
# is compiled twice.
#
# Each package that uses a Redis client has some 1,500 wrappers of its methods compiled, because
# go-redis keeps a weak pointer to it. Without inlining (-l), and without debug information, which
# no test reads, that takes less than half the time.
#
# The race detector skips miniredis's Lua interpreter, which runs one script at a time. Otherwise
# the interpreter would take most of the time of the tests in a bubble. make lint does the vetting.
RACE        := GOFLAGS="$$GOFLAGS -race '-gcflags=all=-l -dwarf=false' -gcflags=std=-dwarf=false \
	'-gcflags=github.com/yuin/gopher-lua/...=-race=false -dwarf=false'"
RACED       := $(RACE) $(GO) test -vet=off

# A program with the race detector would sleep for a second before it ends, for other goroutines
# that report a race. And fewer collections of garbage spare compilers and tests a tenth of their
# time, for some memory.
test stress chaos: export GORACE := atexit_sleep_ms=100 $(GORACE)
test stress chaos: export GOGC   ?= 400

# The packages whose tests run a part of their cases by default.
SUBSETS     = $(shell grep -rl 'passbuddy/internal/subset"' --include='*_test.go' . | \
	xargs -n 1 dirname | sort -u)

.DEFAULT_GOAL := help
.PHONY: help setup test demo lint vuln bench bench-go stress chaos fmt tidy release-check clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Find or install the servers that the tests and the demo start
	@scripts/setup.sh

test: ## Run all tests with -race, on throwaway Postgres and Redis servers (PKG=, TIMEOUT=)
	@scripts/setup.sh --need redis --need cc --want pgbouncer
	$(RACED) $(PARALLEL) -timeout $(TIMEOUT) $(PKG)

demo: setup ## Show a fleet without PassBuddy and with it (ARGS='-cap 10 -duration 5s')
	@$(GO) run ./cmd/passbuddy demo $(ARGS)

lint: ## Check formatting, vet, staticcheck, imports, the core's purity, modules, shell scripts
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then \
		echo "not formatted, run make fmt:"; echo "$$files"; exit 1; fi
	$(RACE) $(GO) vet work
	@echo staticcheck work; bin=$$(mktemp -d); trap 'rm -rf "$$bin"' EXIT; \
		GOBIN=$$bin $(GO) install $(STATICCHECK) && $(RACE) "$$bin/staticcheck" work
	@scripts/check-imports.sh
	@scripts/check-core.sh
	@scripts/modules.sh check
	@if command -v shellcheck >/dev/null; then shellcheck scripts/*.sh .ci/run; fi

vuln: ## Look for known vulnerabilities in called code; says if vuln.go.dev is unreachable
	@if curl -fsS --max-time 20 -o /dev/null $(VULNDB)/index/db.json; then \
		$(GO) run $(GOVULNCHECK) -db $(VULNDB) work; \
	else echo "vulnerabilities: NOT CHECKED, $(VULNDB) cannot be reached"; fi

bench: ## Measure PassBuddy and its rivals in 40 minutes (ARGS=-quick for 2; docs/BENCHMARKS.md)
	@scripts/setup.sh --need redis --want pgbouncer
	@$(GO) run ./cmd/passbuddy bench $(ARGS)

bench-go: ## Run the Go benchmarks beside their rivals, for benchstat (BENCH=regexp, COUNT=, PKG=)
	@scripts/setup.sh --need redis
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) -timeout 0 $(PKG)

stress: ## Run the random tests and the fleets for long (DURATION=1m, ROUNDS=20, STEPS=1000000)
	@scripts/setup.sh --need redis --need cc --want pgbouncer
	$(RACED) $(PARALLEL) -timeout 0 -count 1 \
		$(filter-out ./integration ./pgxpool,$(SUBSETS)) -full
	$(RACED) -timeout 0 -count $(ROUNDS) -run 'Random' . -full
	$(RACED) -timeout 0 -count 1 -tags sqlite -run SQLite ./examples
	$(GO) test -timeout 0 -count 1 -run Model ./internal/redisscript -steps $(STEPS) -v
	$(GO) test $(PARALLEL) -timeout 0 -count 1 -run Hostile ./semaphore -hostile -full
	$(RACED) $(PARALLEL) -timeout 0 -count 1 ./pgxpool -stress $(DURATION) -full
	$(RACED) $(PARALLEL) -timeout 0 -count 1 ./integration -load $(DURATION) \
		-chaos $(DURATION) -full

chaos: ## Run a fleet through faults, print the cost (DURATION=1m, SEED=0: random, FAULT=regexp)
	@scripts/setup.sh --need redis --need cc
	$(RACED) -timeout 0 -count 1 -v -run 'TestChaos$$' ./integration \
		-chaos $(DURATION) -seed $(SEED) -fault '$(FAULT)'

fmt: ## Format the code
	gofmt -w .

tidy: ## Bring each module's go.mod and go.sum up to date
	@scripts/modules.sh tidy

release-check: ## Say whether the checkout can be tagged: modules, API, changelog, install
	@scripts/release-check.sh

clean: ## Remove the files that the targets above leave in this folder
	rm -rf passbuddy-demo.svg passbuddy-bench.json passbuddy-bench
