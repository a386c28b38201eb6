package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/semaphore"
)

// tool runs the command as main does, and returns its exit code.
func tool(ctx context.Context, stderr io.Writer, args ...string) (int, error) {
	var t target.Target
	root := &cobra.Command{Use: "passbuddy", SilenceUsage: true, SilenceErrors: true}
	t.AddFlags(root.PersistentFlags())
	root.AddCommand(NewCommand(&t))
	root.SetArgs(append([]string{"proxy"}, args...))
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	return exit.Code(err), err
}

// member is a session of a Go process.
func member(t *testing.T, url string, capacity int) *semaphore.Semaphore {
	t.Helper()
	sem, err := semaphore.Open(t.Context(), url,
		semaphore.Config{Capacity: capacity, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sem.Close() })
	return sem
}

func TestRun(t *testing.T) {
	redis := miniredis.RunT(t)
	url := "redis://" + redis.Addr()
	sem := member(t, url, 7)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	read, write := io.Pipe()
	code := make(chan int, 1)
	go func() {
		n, err := tool(ctx, write, "--redis", url, "--listen", "127.0.0.1:0", "--json",
			"--to", fake(t, &fakepg.Server{}))
		if err != nil {
			t.Error(err)
		}
		_ = write.Close()
		code <- n
	}()
	var lines []map[string]any
	log := bufio.NewScanner(read)
	for log.Scan() {
		line := make(map[string]any)
		if err := json.Unmarshal(log.Bytes(), &line); err != nil {
			t.Errorf("%q: %v", log.Text(), err)
		}
		lines = append(lines, line)
		if line["msg"] != "listening" {
			continue
		}
		if line["capacity"] != 7.0 || line["semaphore"] != "passbuddy-semaphore" {
			t.Errorf("%q", log.Text())
		}
		nc, err := net.Dial("tcp", line["address"].(string))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = nc.Write(startupPacket("x"))
		if _, err := io.ReadFull(nc, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		now, err := sem.Snapshot(t.Context())
		if err != nil || now.Held != 1 || now.Capacity != 7 {
			t.Errorf("%d held, capacity %d: %v", now.Held, now.Capacity, err)
		}
		_ = nc.Close()
		stop()
	}
	if n := <-code; n != exit.OK {
		t.Errorf("exit code %d", n)
	}
	if len(lines) != 3 || !strings.Contains(lines[0]["msg"].(string), "--capacity") {
		t.Errorf("the log: %v", lines)
	}
}

func TestRunIsRefused(t *testing.T) {
	redis := miniredis.RunT(t)
	url := "redis://" + redis.Addr()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	listen := []string{"--listen", "127.0.0.1:0", "--to", "127.0.0.1:1"}
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"no Postgres", []string{"--redis", url}, exit.Usage, "--to"},
		{"bad address", []string{"--redis", url, "--listen", "nowhere", "--to", "x"}, exit.Usage,
			"--listen"},
		{"nobody declares a capacity", append(listen, "--redis", url), exit.Usage, "--capacity"},
		{"no time to wait", append(listen, "--redis", url, "--wait", "0"), exit.Usage, "--wait"},
		{"too much weight", append(listen, "--redis", url, "--capacity", "5",
			"--weight", "1000"), exit.Usage, "--weight is 1000"},
		{"Redis is away", append(listen, "--redis", "redis://:secret@127.0.0.1:1", "--capacity",
			"5"), exit.Unavailable, "passbuddy-semaphore"},
		{"port is taken", []string{"--redis", url, "--capacity", "5", "--to", "127.0.0.1:1",
			"--listen", taken.Addr().String()}, exit.Failed, "in use"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			code, err := tool(ctx, io.Discard, c.args...)
			if code != c.code || err == nil || !strings.Contains(err.Error(), c.says) ||
				strings.Contains(err.Error(), "secret") {
				t.Errorf("exit code %d, %v", code, err)
			}
		})
	}
	for _, key := range redis.Keys() {
		if strings.HasSuffix(key, ":sessions") {
			t.Errorf("left in Redis: %q", redis.Keys())
		}
	}
}
