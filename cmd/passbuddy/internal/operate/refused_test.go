package operate

import (
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2/server"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Input that is refused ends a command with 2, before Redis is asked, and the error names the flag.
func TestRefusedInput(t *testing.T) {
	d := newDesk(t)
	d.env[target.RedisEnv] = "redis://127.0.0.1:1" // nobody asks it
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"status", "--name", ""}, "--name is empty"},
		{[]string{"capacity", "5", "--yes", "--name", ""}, "--name is empty"},
		{[]string{"status", "--prefix", ""}, "--prefix is empty"},
		{[]string{"status", "--redis", ""}, "--redis is empty"},
		{[]string{"status", "--postgres", ""}, "--postgres is empty"},
		{[]string{"status", "--name", "a\nb"}, "--name, or PASSBUDDY_NAME"},
		{[]string{"list", "--prefix", "{a}"}, "--prefix, or PASSBUDDY_PREFIX"},
		{[]string{"pause", "--yes", "--name", strings.Repeat("x", 200)}, "too long"},
		{[]string{"status", "--over", "-1s"}, "--over is -1s"},
		{[]string{"status", "--over", "25h"}, "--over is 25h"},
		{[]string{"capacity", "--from-postgres", "--over", "0s"}, "--over is 0s"},
		{[]string{"capacity", ""}, "from 1"},
		{[]string{"capacity", "1e3"}, "from 1"},
		{[]string{"pause", "--for", "-1s"}, "--for -1s"},
		{[]string{"pause", "--for", "721h"}, "720h"},
		{[]string{"pause", "--drain", "--timeout", "721h"}, "720h"},
		{[]string{"pause", "--timeout", "1s"}, "--timeout is for --drain"},
		{[]string{"evict", "web-1", "--timeout", "0s"}, "above 0"},
		{[]string{"evict", "web-1", "--timeout", "-1s"}, "above 0"},
		{[]string{"evict", "", "--force", "--yes"}, "SESSION is empty"},
		{[]string{"status", "--postgres", "postgres://h:port/db"}, "--postgres: this is not a URL"},
	} {
		out, complaint, code := d.run(c.args...)
		if code != exit.Usage || !strings.Contains(complaint, c.says) || out != "" {
			t.Errorf("%q: %d, want 2 and %q: %s%s", c.args, code, c.says, out, complaint)
		}
	}
	d.env[target.NameEnv] = "a\tb"
	d.expect(exit.Usage, []string{"PASSBUDDY_NAME"}, "resume", "--yes")
}

// A name with spaces, quotes and a dollar sign is a name. The commands that are advised quote it.
func TestNameForAShell(t *testing.T) {
	d := newDesk(t)
	const name = "o'brien's $HOME db"
	d.join(semaphore.Config{Name: name, Owner: "web 1", Capacity: 4})
	d.expect(exit.OK, []string{"Nothing new", `passbuddy resume --name 'o'\''brien'\''s $HOME db'`},
		"pause", "--yes", "--name", name)
	d.expect(exit.OK, []string{name}, "list")
	d.expect(exit.OK, []string{"ends the pause"}, "resume", "--yes", "--name", name)
	d.expect(exit.OK, []string{"holds nothing"}, "evict", "web 1", "--yes", "--name", name)
}

// A verb for a name that nobody uses says so: it may be a typing error.
func TestAnUnknownNameIsPointedOut(t *testing.T) {
	for _, args := range [][]string{{"capacity", "5"}, {"pause"}, {"pause", "--drain"}} {
		d := newDesk(t)
		d.join(semaphore.Config{Owner: "web-1", Capacity: 4})
		d.expect(exit.Declined, []string{`Nobody has used "ordres"`, "passbuddy list"},
			append(args, "--name", "ordres")...)
		if out, complaint, _ := d.run(args...); strings.Contains(out+complaint, "Nobody has used") {
			t.Errorf("%q of a fleet that is there: %s%s", args, out, complaint)
		}
	}
}

// Ctrl-C at the question ends the program at once, and nothing was changed.
func TestInterruptedQuestion(t *testing.T) {
	d := newDesk(t)
	d.join(semaphore.Config{Owner: "web-1", Capacity: 4})
	d.terminal = true
	before := d.server.Dump()
	ctx, cancel := context.WithCancel(t.Context())
	asked, says := io.Pipe()
	never, typed := io.Pipe()
	t.Cleanup(func() { _ = typed.Close() })
	ended := make(chan error, 1)
	go func() {
		tool := d.tool()
		root := &cobra.Command{Use: "passbuddy", SilenceErrors: true, SilenceUsage: true}
		tool.AddFlags(root.PersistentFlags())
		root.AddCommand(tool.Commands()...)
		root.SetErr(says)
		root.SetOut(says)
		root.SetIn(never)
		root.SetArgs([]string{"capacity", "2"})
		ended <- root.ExecuteContext(ctx)
		_ = says.Close()
	}()
	heard := ""
	part := make([]byte, 1000)
	for !strings.Contains(heard, "[y/N]") {
		n, err := asked.Read(part)
		if err != nil {
			t.Fatalf("%v: %q", err, heard)
		}
		heard += string(part[:n])
	}
	cancel()
	go func() { _, _ = io.Copy(io.Discard, asked) }()
	if err := <-ended; exit.Code(err) != exit.Interrupted || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("%d: %v", exit.Code(err), err)
	}
	if d.server.Dump() != before {
		t.Error("the capacity was changed")
	}
}

// Ctrl-C during an eviction is no time-out.
func TestInterruptedEviction(t *testing.T) {
	d := newDesk(t)
	d.acquire(d.join(semaphore.Config{Owner: "web-1", Capacity: 4}))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	inspector, err := semaphore.NewInspector(d.client, "", "")
	if err != nil {
		t.Fatal(err)
	}
	d.once(func() bool {
		events, err := inspector.Events(t.Context())
		return err != nil || slices.ContainsFunc(events, func(e semaphore.Event) bool {
			return e.Kind == semaphore.EventEvicted
		})
	}, cancel)
	_, complaint, code := d.runContext(ctx, "evict", "web-1", "--timeout", "1m", "--yes")
	if code != exit.Interrupted || !strings.Contains(complaint, "still given back") {
		t.Errorf("%d: %s", code, complaint)
	}
}

// trouble is a Redis that refuses, and what each command has to say of that.
type trouble struct {
	name, url string
	change    func(*redis.Client) error // by an administrator, beforehand
	undo      func(*redis.Client) error
	says      []string
	status    int // the exit code of passbuddy status
}

// What Redis refuses is said in its words, with the next step, whatever the command is.
func TestRedisRefuses(t *testing.T) {
	server, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{Password: "s3cr3t"})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	admin := redis.NewClient(&redis.Options{Addr: server.Addr(), Password: "s3cr3t"})
	t.Cleanup(func() { _ = admin.Close() })
	right := "redis://:s3cr3t@" + server.Addr()
	const key = "passbuddy-semaphore"
	for _, c := range []trouble{
		{name: "no password", status: exit.Unavailable, url: "redis://" + server.Addr(), says: []string{"NOAUTH", "check user and password"}},
		{name: "a wrong password", status: exit.Unavailable, url: "redis://:guessed@" + server.Addr(), says: []string{"WRONGPASS", "check user and password"}},
		{name: "a wrong user", status: exit.Unavailable, url: "redis://me:s3cr3t@" + server.Addr(), says: []string{"WRONGPASS", "check user and password"}},
		{name: "a foreign key", status: exit.Unavailable, url: right, says: []string{"WRONGTYPE", key, "delete or rename it"},
			change: func(c *redis.Client) error { return c.Set(t.Context(), key, "x", 0).Err() },
			undo:   func(c *redis.Client) error { return c.Del(t.Context(), key).Err() }},
		{name: "a replica", url: right, says: []string{"READONLY", "point --redis at the primary"},
			status: exit.OK,
			change: func(c *redis.Client) error {
				return c.Do(t.Context(), "REPLICAOF", "127.0.0.1", "1").Err()
			},
			undo: func(c *redis.Client) error { return c.Do(t.Context(), "REPLICAOF", "NO", "ONE").Err() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.change != nil {
				if err := c.change(admin); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := c.undo(admin); err != nil {
						t.Fatal(err)
					}
				}()
			}
			d := &desk{t: t, client: admin, env: map[string]string{target.RedisEnv: c.url}}
			for _, args := range [][]string{{"capacity", "5", "--yes"}, {"pause", "--yes"}} {
				d.expect(exit.Unavailable, append(c.says, "passbuddy doctor"), args...)
			}
			d.expect(c.status, nil, "status")
			doctor := c.says[len(c.says)-1]
			out, complaint, code := d.run("doctor")
			if code == exit.OK || c.name != "a replica" && !strings.Contains(strings.Join(strings.Fields(out), " "), doctor) {
				t.Errorf("doctor: %d, and does not say %q: %s%s", code, doctor, out, complaint)
			}
			for _, secret := range []string{"s3cr3t", "guessed"} {
				if strings.Contains(out+complaint, secret) {
					t.Errorf("a password is shown: %s%s", out, complaint)
				}
			}
		})
	}
}

// A drain takes too long, and Redis is gone when the tool resumes the fleet. The fleet resumes later,
// by itself, and the tool does not say that it has.
func TestADrainIsNotResumed(t *testing.T) {
	d := newDesk(t)
	d.acquire(d.join(semaphore.Config{Capacity: 2}))
	d.server.Server().SetPreHook(func(peer *server.Peer, command string, args ...string) bool {
		if !strings.HasPrefix(strings.ToUpper(command), "EVAL") {
			return false
		}
		keys, _ := strconv.Atoi(args[1])
		resumes := len(args) == 2+keys+5 && args[2+keys+1] == "0"
		if resumes {
			peer.WriteError("LOADING")
		}
		return resumes
	})
	defer d.server.Server().SetPreHook(nil)
	_, complaint, code := d.run("pause", "--drain", "--timeout", "100ms", "--yes")
	if code != exit.StillHeld || strings.Contains(complaint, "has been resumed") ||
		!strings.Contains(complaint, "resumes by itself within seconds") {
		t.Errorf("code %d: %s", code, complaint)
	}
}
