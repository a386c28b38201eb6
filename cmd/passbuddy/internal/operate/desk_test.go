package operate

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/internal/quiet"
	"github.com/passbuddy/passbuddy/semaphore"
)

func init() { quiet.Redis() }

// A desk runs commands against a Redis.
type desk struct {
	t        *testing.T
	server   *miniredis.Miniredis
	client   *redis.Client
	terminal bool
	typed    string // what its user types
	env      map[string]string
}

func newDesk(t *testing.T) *desk {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	return &desk{t: t, server: server, client: client,
		env: map[string]string{target.RedisEnv: "redis://" + server.Addr()}}
}

func (d *desk) join(cfg semaphore.Config) *semaphore.Semaphore {
	d.t.Helper()
	cfg.Logger = slog.New(slog.DiscardHandler)
	if cfg.TTL == 0 {
		cfg.TTL = time.Minute
	}
	sem, err := semaphore.New(d.t.Context(), d.client, cfg)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = sem.Close() })
	return sem
}

// once calls f soon after the condition is true, or after a minute. Meanwhile the tool can hear
// that it is.
func (d *desk) once(condition func() bool, f func()) {
	var polling sync.WaitGroup
	d.t.Cleanup(polling.Wait)
	polling.Go(func() {
		defer f()
		for deadline := time.Now().Add(time.Minute); !condition() && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
	})
}

func (d *desk) acquire(sem *semaphore.Semaphore) *semaphore.Permit {
	d.t.Helper()
	p, err := sem.Acquire(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

func (d *desk) tool() *Tool {
	return &Tool{
		Target: &target.Target{}, Getenv: func(name string) string { return d.env[name] },
		OnTerminal: func(any) bool { return d.terminal },
		Size:       func(any) (int, int) { return 80, 24 },
	}
}

// run runs a command, and returns its output and exit code.
func (d *desk) run(args ...string) (out, complaint string, code int) {
	d.t.Helper()
	return d.runContext(d.t.Context(), args...)
}

func (d *desk) runContext(ctx context.Context, args ...string) (string, string, int) {
	tool := d.tool()
	root := &cobra.Command{Use: "passbuddy", SilenceErrors: true, SilenceUsage: true}
	tool.AddFlags(root.PersistentFlags())
	root.AddCommand(tool.Commands()...)
	var out, complaint bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&complaint)
	root.SetIn(strings.NewReader(d.typed))
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		complaint.WriteString(err.Error())
	}
	return out.String(), complaint.String(), exit.Code(err)
}

// expect runs a command that must end with a code and say some texts.
func (d *desk) expect(code int, says []string, args ...string) string {
	d.t.Helper()
	out, complaint, got := d.run(args...)
	if got != code {
		d.t.Errorf("%q: code %d, want %d:\n%s%s", args, got, code, out, complaint)
	}
	for _, s := range says {
		if !strings.Contains(out+complaint, s) {
			d.t.Errorf("%q does not say %q:\n%s%s", args, s, out, complaint)
		}
	}
	return out
}

func (d *desk) snapshot() semaphore.Snapshot {
	d.t.Helper()
	i, err := semaphore.NewInspector(d.client, "", "")
	if err != nil {
		d.t.Fatal(err)
	}
	s, err := i.Snapshot(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}
