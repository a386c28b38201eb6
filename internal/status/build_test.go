package status

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/quiet"
	"github.com/passbuddy/passbuddy/semaphore"
)

func init() { quiet.Redis() }

func join(t *testing.T, client redis.UniversalClient, cfg semaphore.Config) *semaphore.Semaphore {
	t.Helper()
	sem, err := semaphore.New(t.Context(), client, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sem.Close() })
	return sem
}

// Build tells what the sessions are, and changes nothing in Redis.
func TestBuild(t *testing.T) {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	a := join(t, client, semaphore.Config{Owner: "a", Capacity: 4, Weight: 3, TTL: time.Minute})
	join(t, client, semaphore.Config{Owner: "b", Capacity: 6, TTL: time.Minute})
	join(t, client, semaphore.Config{Owner: "run", Capacity: NoCapacity, TTL: time.Minute})
	if _, err := a.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	inspector, err := semaphore.NewInspector(client, "", "")
	if err != nil {
		t.Fatal(err)
	}
	before := server.Dump()
	d, err := Build(t.Context(), inspector, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if after := server.Dump(); after != before {
		t.Errorf("written: %s\nbefore: %s", after, before)
	}
	switch c := d.Capacity; {
	case c.InForce != 4, !c.Mismatch, len(c.Declared) != 2, c.Declared[0] != (Declared{4, 1}),
		c.Declared[1] != (Declared{6, 1}):
		t.Errorf("%+v", c)
	}
	if d.Held != 1 || len(d.Processes) != 3 || d.Processes[0].Due != 4 || d.Processes[1].Due != 0 ||
		len(d.Events) != 3 || d.Semaphore != "semaphore" || d.Version != 1 {
		t.Errorf("%+v", d)
	}
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if i := strings.Index(string(text), ":null"); i >= 0 &&
		strings.Count(string(text), ":null") != strings.Count(string(text), `"pause":null`)+
			strings.Count(string(text), `"postgres":null`)+strings.Count(string(text), `"set_at":null`) {
		t.Errorf("a list is null: %s", text)
	}
}

func TestBuildWithoutRedis(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { _ = client.Close() })
	inspector, err := semaphore.NewInspector(client, "", "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	d, err := Build(ctx, inspector, Options{Semaphore: "orders"})
	if err == nil || d.RedisError == "" || d.Worst() != Critical || d.Semaphore != "orders" {
		t.Errorf("%v: %+v", err, d)
	}
}

// Timeouts of a time are those of the sessions that were there before, or have come since.
func TestRecentTimeouts(t *testing.T) {
	before := Document{At: now.Add(-time.Minute), Processes: []Process{
		{Session: "a", Timeouts: 10}, {Session: "gone", Timeouts: 99}}}
	d := Document{At: now, Processes: []Process{
		{Session: "a", Timeouts: 12},
		{Session: "new", Timeouts: 3, Started: now.Add(-10 * time.Second)},
		{Session: "unknown", Timeouts: 50, Started: now.Add(-time.Hour)},
	}}
	d.compare(&before)
	if d.RecentTimeouts != 5 || d.RecentSeconds != 60 || d.Processes[2].RecentTimeouts != 0 {
		t.Errorf("%+v", d)
	}
}
