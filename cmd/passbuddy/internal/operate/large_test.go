package operate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/internal/status"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

const manySessions, manyPermits = 1000, 10_000

// populate writes the state of a large fleet into a real Redis. One real session comes first: its
// scripts make the rest of the state.
func populate(tb testing.TB) (*redis.Client, *Tool) {
	tb.Helper()
	server, err := throwaway.StartRedis(tb.Context(), throwaway.RedisOptions{})
	if errors.Is(err, throwaway.ErrNotFound) {
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = server.Stop() })
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	tb.Cleanup(func() { _ = client.Close() })
	sem, err := semaphore.New(tb.Context(), client, semaphore.Config{Capacity: 2 * manyPermits,
		TTL: time.Minute})
	if err != nil {
		tb.Fatal(err)
	}
	if err := sem.Close(); err != nil {
		tb.Fatal(err)
	}
	keys, err := client.Keys(tb.Context(), "*").Result()
	if err != nil {
		tb.Fatal(err)
	}
	at := func(suffix string) string {
		if suffix == "" {
			return "passbuddy-semaphore"
		}
		return "{passbuddy-semaphore}:" + suffix
	}
	if !strings.Contains(strings.Join(keys, " "), at("meta")) {
		tb.Fatalf("the keys are called otherwise: %q", keys)
	}
	expiry := float64(time.Now().Add(50 * time.Second).UnixMilli())
	pipe := client.Pipeline()
	pipe.HSet(tb.Context(), at("meta"), "cap", 2*manyPermits)
	for i := range manySessions {
		session := fmt.Sprintf("%08x-%04x-8001", i+1, i)
		info := message.SessionInfo{Owner: fmt.Sprintf("web-%04d", i), Host: "h", PID: i, Program: "api",
			Version: "v1", TTL: 60_000, Started: time.Now().Unix(), RoundTrip: time.Millisecond}
		held := manyPermits / manySessions
		info.Pools = []message.PoolFigures{{Name: "db:5432/orders", Permits: held, InUse: held,
			Waiting: 3, OldestWait: time.Second}}
		pipe.ZAdd(tb.Context(), at("sessions"), redis.Z{Score: expiry, Member: session})
		pipe.ZAdd(tb.Context(), at("capacities"), redis.Z{Score: 2 * manyPermits, Member: session})
		pipe.HSet(tb.Context(), at("info"), session, info.Encode())
		for n := range held {
			id := fmt.Sprintf("%s-8000-%012x", session, n)
			pipe.ZAdd(tb.Context(), at(""), redis.Z{Score: expiry, Member: id})
		}
		id := fmt.Sprintf("60000 %s-8000-%012x", session, manyPermits)
		pipe.ZAdd(tb.Context(), at("queue"), redis.Z{Score: float64(i), Member: id})
	}
	if _, err := pipe.Exec(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	tool := New()
	tool.Target = &target.Target{RedisURL: "redis://" + server.Addr()}
	tool.OnTerminal = func(any) bool { return false }
	tool.Getenv = func(string) string { return "" }
	return client, tool
}

// written is all that Redis counts as a change since it started.
func written(t *testing.T, client *redis.Client) string {
	t.Helper()
	info, err := client.Info(t.Context(), "persistence").Result()
	if err != nil {
		t.Fatal(err)
	}
	return parseInfo(info)["rdb_changes_since_last_save"]
}

// A large fleet is seen whole, nothing is written, and no command keeps Redis busy for long.
func TestStatusOfALargeFleet(t *testing.T) {
	client, tool := populate(t)
	inspector, end, err := tool.Inspect()
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	before := written(t, client)
	// The figure to reach is 5 ms. The bound is wide, for a machine that is busy with other tests,
	// and one look of three that keeps it is enough: the machine may stand still in a command.
	const tries = 3
	for try := 1; ; try++ {
		d, slowest, name := look(t, client, tool, inspector)
		if len(d.Processes) != manySessions || d.Held != manyPermits || d.Waiting != manySessions {
			t.Errorf("%d processes, %d permits, %d requests", len(d.Processes), d.Held, d.Waiting)
		}
		if slowest <= 100*time.Millisecond {
			break
		}
		if try == tries {
			t.Errorf("a command, %s, kept Redis busy for %v", name, slowest)
			break
		}
	}
	if after := written(t, client); after != before {
		t.Errorf("%s changes before, %s after", before, after)
	}
}

// look looks at the fleet once. It also returns the command that kept Redis busy for longest.
func look(t *testing.T, client *redis.Client, tool *Tool, inspector *semaphore.Inspector) (
	d status.Document, slowest time.Duration, name string,
) {
	t.Helper()
	for name, value := range map[string]string{
		"slowlog-log-slower-than": "0", "slowlog-max-len": "100000",
	} {
		if err := client.ConfigSet(t.Context(), name, value).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.Do(t.Context(), "slowlog", "reset").Err(); err != nil {
		t.Fatal(err)
	}
	d, err := tool.Build(t.Context(), inspector, nil)
	if err != nil {
		t.Fatal(err)
	}
	log, err := client.SlowLogGet(t.Context(), -1).Result()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := tool.show(&out, d, false); err != nil {
		t.Fatal(err)
	}
	for _, entry := range log {
		switch strings.ToLower(entry.Args[0]) {
		case "slowlog":
			continue
		}
		if entry.Duration > slowest {
			slowest, name = entry.Duration, entry.Args[0]
		}
	}
	t.Logf("%d commands, the slowest %s in %v; read in %.0f ms", len(log), name, slowest, 1000*d.Read)
	return d, slowest, name
}

// BenchmarkStatus is `passbuddy status` for 1,000 sessions with 10,000 permits, but for the start
// of the process. The figure to reach is 200 ms.
func BenchmarkStatus(b *testing.B) {
	_, tool := populate(b)
	inspector, end, err := tool.Inspect()
	if err != nil {
		b.Fatal(err)
	}
	defer end()
	var out bytes.Buffer
	for _, asJSON := range []bool{false, true} {
		b.Run("json="+strconv.FormatBool(asJSON), func(b *testing.B) {
			tool.JSON = asJSON
			for b.Loop() {
				d, err := tool.Build(context.Background(), inspector, nil)
				if err != nil {
					b.Fatal(err)
				}
				out.Reset()
				if err := tool.show(&out, d, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
