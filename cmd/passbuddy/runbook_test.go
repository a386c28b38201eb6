package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/operate"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Every command of the runbook does what it is there for, in a fleet of one process that holds a
// connection of each kind: the commands run in the order in which they stand there.
func TestRunbook(t *testing.T) {
	text, err := os.ReadFile("../../docs/RUNBOOK.md")
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		commands = append(commands, strings.Split(strings.TrimSpace(block[1]), "\n")...)
	}
	says := map[string]string{ // by verb: a part of its output
		"status": "web-7", "capacity": "The capacity is 40 now", "pause": "Nothing is held any more",
		"resume": "Permits are granted again", "doctor": "Redis evicts no keys",
		"evict": "web-7 (passbuddy.test, pid",
	}

	pg, err := throwaway.StartPostgres(t.Context(), throwaway.PostgresOptions{})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("PostgreSQL is not installed (scripts/setup.sh): ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pg.Stop() })
	server, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("Redis is not installed (scripts/setup.sh --need redis): ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	t.Setenv(target.RedisEnv, "redis://"+server.Addr())
	t.Setenv("DATABASE_URL", pg.URL())

	sem, err := semaphore.Open(t.Context(), "redis://"+server.Addr(),
		semaphore.Config{Owner: "web-7", Capacity: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sem.Close() })
	pool, err := passpool.New(t.Context(), pg.URL(), sem, passbuddy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	check := func(why string) { // the fleet works
		if err := pool.Ping(t.Context()); err != nil {
			t.Errorf("after %s: %v", why, err)
		}
	}
	check("the start")

	ran := make(map[string]bool)
	for _, command := range commands {
		args := words(t, command)
		if args[0] != "passbuddy" {
			t.Errorf("%s is no command of ours", command)
			continue
		}
		out, code := runTool(t, args[1:])
		if code != exit.OK || !strings.Contains(out, says[args[1]]) || says[args[1]] == "" {
			t.Errorf("%s: exit code %d, want %q in:\n%s", command, code, says[args[1]], out)
		}
		ran[args[1]] = true
		if args[1] == "pause" {
			if n := backendsOf(t, pool.Config(), pg.AdminURL()); n > 0 {
				t.Errorf("%s: %d backends of the fleet are left", command, n)
			}
			continue // the next one resumes
		}
		check(command)
	}
	for verb := range says {
		if !ran[verb] {
			t.Errorf("the runbook has no command %s any more", verb)
		}
	}
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

// backendsOf counts the backends of the pool's user.
func backendsOf(t *testing.T, config *pgxpool.Config, admin string) (n int) {
	t.Helper()
	watcher, err := pgxpool.New(context.Background(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	if err := watcher.QueryRow(t.Context(),
		"select count(*) from pg_stat_activity where usename = $1 and backend_type = 'client backend'",
		config.ConnConfig.User).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
