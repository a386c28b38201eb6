package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/holdrun"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/operate"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

const docs = "../../docs/"

// guides are the pages of docs whose commands and snippets are run. To add one, add its name.
var guides = []string{
	"RUNBOOK.md", "CAPACITY.md", "DEPLOYS.md", "SERVERLESS.md", "REDIS.md", "POOLERS.md", "MIGRATING.md",
	"TROUBLESHOOTING.md",
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == holdrun.GuardCommand { // `passbuddy run` starts this program
		os.Exit(holdrun.RunGuard(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// says is a part of the output of each command in the guides, by its verb. No guide has other verbs.
var says = map[string]*regexp.Regexp{
	"status":   regexp.MustCompile(`web-7`),
	"capacity": regexp.MustCompile(`The capacity is \d+ now|\d+ in force, \d+ held\n`),
	"pause":    regexp.MustCompile(`Nothing is held any more`),
	"resume":   regexp.MustCompile(`Permits are granted again`),
	"doctor":   regexp.MustCompile(`Redis evicts no keys`),
	"evict":    regexp.MustCompile(`web-7 \(passbuddy.test, pid`),
	"events":   regexp.MustCompile(`joined\s+web-7`),
	"list":     regexp.MustCompile(`\bsemaphore\b`),
	"run":      regexp.MustCompile(`^$`), // the command that it runs is silent
}

// Every command and every query of a guide does what it is there for, in a fleet of one process that
// holds a connection. They run in the order in which they stand there.
func TestGuides(t *testing.T) {
	f := newGuideFleet(t)
	ran := make(map[string]bool)
	for _, guide := range guides {
		t.Run(guide, func(t *testing.T) {
			text := read(t, docs+guide)
			for _, query := range blocks(text, "sql") {
				f.query(t, query)
			}
			for _, block := range blocks(text, "sh") {
				for _, command := range strings.Split(strings.TrimSpace(block), "\n") {
					ran[f.command(t, command)] = true
				}
			}
		})
	}
	for verb := range says {
		if !ran[verb] && !t.Failed() {
			t.Errorf("no guide has a command %s any more", verb)
		}
	}
	t.Run("code", func(t *testing.T) { f.code(t) })
	t.Run("programs", func(t *testing.T) { f.programs(t) })
	t.Run("pooler", func(t *testing.T) { f.pooler(t) })
}

// guideFleet is a process called web-7 on servers of its own.
type guideFleet struct {
	pg    *throwaway.Postgres
	redis *throwaway.Redis
	sem   *semaphore.Semaphore
	pool  *pgxpool.Pool
}

func newGuideFleet(t *testing.T) (f guideFleet) {
	t.Helper()
	var err error
	f.pg, err = throwaway.StartPostgres(t.Context(), throwaway.PostgresOptions{})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("PostgreSQL is not installed (scripts/setup.sh): ", err)
	}
	must(t, err)
	t.Cleanup(func() { _ = f.pg.Stop() })
	f.redis, err = throwaway.StartRedis(t.Context(), throwaway.RedisOptions{})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("Redis is not installed (scripts/setup.sh --need redis): ", err)
	}
	must(t, err)
	t.Cleanup(func() { _ = f.redis.Stop() })
	t.Setenv(target.RedisEnv, "redis://"+f.redis.Addr())
	t.Setenv("REDIS_URL", "redis://"+f.redis.Addr())
	t.Setenv("DATABASE_URL", f.pg.URL())

	f.sem, err = semaphore.Open(t.Context(), "redis://"+f.redis.Addr(),
		semaphore.Config{Owner: "web-7", Capacity: 8})
	must(t, err)
	t.Cleanup(func() { _ = f.sem.Close() })
	f.pool, err = passpool.New(t.Context(), f.pg.URL(), f.sem, passbuddy.Config{})
	must(t, err)
	t.Cleanup(f.pool.Close)
	must(t, f.pool.Ping(t.Context()))
	return f
}

// command runs a line of a guide, and returns its verb.
func (f guideFleet) command(t *testing.T, line string) (verb string) {
	t.Helper()
	args := words(t, line)
	if args[0] != "passbuddy" || says[args[1]] == nil {
		t.Errorf("%s: is no command that this test knows", line)
		return ""
	}
	verb = args[1]
	out, code := runTool(t, args[1:])
	// doctor warns of a Redis that is slow because this machine is.
	if code != exit.OK && (code != exit.Trouble || verb != "doctor") || !says[verb].MatchString(out) {
		t.Errorf("%s: exit code %d, want %q in:\n%s", line, code, says[verb], out)
	}
	if verb == "pause" {
		if n := f.backends(t); n > 0 {
			t.Errorf("%s: %d backends of the fleet are left", line, n)
		}
		return verb // the next one resumes
	}
	if err := f.pool.Ping(t.Context()); err != nil { // the fleet works
		t.Errorf("after %s: %v", line, err)
	}
	return verb
}

// query runs a query of a guide, which has rows.
func (f guideFleet) query(t *testing.T, query string) {
	t.Helper()
	rows, err := f.pool.Query(t.Context(), query)
	must(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowToMap)
	if err != nil || len(all) == 0 {
		t.Errorf("%s: %d rows, %v", query, len(all), err)
	}
}

// backends counts the backends of the pool's user.
func (f guideFleet) backends(t *testing.T) (n int) {
	t.Helper()
	watcher, err := pgx.Connect(t.Context(), f.pg.AdminURL())
	must(t, err)
	defer watcher.Close(context.Background())
	must(t, watcher.QueryRow(t.Context(),
		"select count(*) from pg_stat_activity where usename = $1 and backend_type = 'client backend'",
		f.pool.Config().ConnConfig.User).Scan(&n))
	return n
}

// blocks are the code blocks of a language in a page.
func blocks(text, language string) (all []string) {
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// words splits a line as a shell does that knows double quotes and variables.
func words(t *testing.T, line string) (all []string) {
	t.Helper()
	for _, word := range regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(line, -1) {
		all = append(all, os.ExpandEnv(strings.Trim(word, `"`)))
	}
	return all
}

// runTool runs a command of the tool in this process, and returns all that it says.
func runTool(t *testing.T, args []string) (string, int) {
	t.Helper()
	var out bytes.Buffer
	root := newRoot(operate.New())
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetIn(strings.NewReader(""))
	root.SetArgs(args)
	if err := root.ExecuteContext(t.Context()); err != nil {
		return out.String() + err.Error(), codeOf(err)
	}
	return out.String(), exit.OK
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	return string(text)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
