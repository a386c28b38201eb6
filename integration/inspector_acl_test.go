package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

// documentedUser returns the rule of docs/SECURITY.md for that user, with a password, as the server
// of these tests knows it.
func documentedUser(t *testing.T, user string) string {
	t.Helper()
	text, err := os.ReadFile("../docs/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	rule := regexp.MustCompile("(?m)^user " + user + " .*$").FindString(string(text))
	if !strings.Contains(rule, ">CHANGE-ME") {
		t.Fatalf("docs/SECURITY.md has no rule for %s: %q", user, rule)
	}
	version, err := serverVersion()
	if err != nil {
		skipIfMissing(t, err)
	}
	if version[0] < 7 {
		rule = strings.NewReplacer("%R~", "~", "+spublish", "+publish",
			"+pubsub|shardchannels +pubsub|shardnumsub", "+pubsub|channels +pubsub|numsub",
		).Replace(rule)
	}
	if version[0] < 6 || version[0] == 6 && version[1] < 2 {
		rule = regexp.MustCompile(` resetchannels| &\S+`).ReplaceAllString(rule, "")
	}
	return strings.Replace(rule, "CHANGE-ME", userSecret, 1)
}

// inspectorUnderACL returns an inspector that has logged in as one user, and a session of another
// one, which may do anything.
func inspectorUnderACL(t *testing.T, user string) (
	*semaphore.Inspector, *semaphore.Semaphore, *redis.Client, *redis.Client,
) {
	t.Helper()
	r, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{Password: adminSecret,
		ACL: []string{documentedUser(t, user)}})
	if err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = r.Stop() })
	admin := redis.NewClient(r.Options())
	t.Cleanup(func() { _ = admin.Close() })
	sem, err := semaphore.New(t.Context(), admin, semaphore.Config{Name: "orders", Capacity: 3,
		Owner: "web"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sem.Close() })
	if _, err := sem.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	opts, err := redis.ParseURL(fmt.Sprintf("redis://%s:%s@%s", user, userSecret, r.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	opts.DisableIdentity = true
	c := redis.NewClient(opts)
	t.Cleanup(func() { _ = c.Close() })
	i, err := semaphore.NewInspector(c, "", "orders")
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.ACLLogReset(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	return i, sem, admin, c
}

// readAll reads everything that an inspector can read.
func readAll(ctx context.Context, t *testing.T, i *semaphore.Inspector, c *redis.Client) {
	t.Helper()
	snap, err := i.Snapshot(ctx)
	if err != nil || snap.Held != 1 || len(snap.Sessions) != 1 || snap.Sessions[0].Owner != "web" {
		t.Errorf("Snapshot: %+v, %v", snap, err)
	}
	if events, err := i.Events(ctx); err != nil || len(events) == 0 {
		t.Errorf("Events: %v, %v", events, err)
	}
	if names, err := semaphore.List(ctx, c, ""); err != nil || len(names) != 1 {
		t.Errorf("List: %q, %v", names, err)
	}
}

// A watcher reads everything under exactly the documented ACL, and can change nothing.
func TestDocumentedACLOfAWatcher(t *testing.T) {
	i, _, admin, c := inspectorUnderACL(t, "passbuddy-watch")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	readAll(ctx, t, i, c)
	if refusals := denied(t, admin); len(refusals) > 0 {
		t.Errorf("Redis has denied %q", refusals)
	}
	for name, err := range map[string]error{
		"SetCapacity": i.SetCapacity(ctx, 1),
		"Pause":       i.Pause(ctx, semaphore.PauseOptions{}),
		"Resume":      i.Resume(ctx),
	} {
		if !errors.Is(err, semaphore.ErrUnavailable) || !strings.Contains(err.Error(), "NOPERM") {
			t.Errorf("%s: %v, want NOPERM", name, err)
		}
	}
}

// An operator does everything under exactly the documented ACL.
func TestDocumentedACLOfAnOperator(t *testing.T) {
	i, sem, admin, c := inspectorUnderACL(t, "passbuddy-operator")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	readAll(ctx, t, i, c)
	snap, err := i.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// To an operator's first script this is a fleet that may have died: it asks who listens.
	silence := -semaphore.DefaultTTL.Milliseconds()
	if err := admin.HIncrBy(ctx, "{passbuddy-orders}:meta", "last", silence).Err(); err != nil {
		t.Fatal(err)
	}
	if err := i.Resume(ctx); err != nil {
		t.Error(err)
	}
	if p, err := sem.TryAcquire(ctx); err != nil {
		t.Errorf("after the first script: %v", err)
	} else if err := p.Release(ctx); err != nil {
		t.Error(err)
	}
	evict := semaphore.EvictOptions{Force: true, Timeout: time.Millisecond}
	for name, err := range map[string]error{
		"SetCapacity": i.SetCapacity(ctx, 2),
		"withdraw":    i.SetCapacity(ctx, 0),
		"Pause":       i.Pause(ctx, semaphore.PauseOptions{Reason: "test"}),
		"Evict":       i.Evict(ctx, snap.Sessions[0].ID, evict),
		"Resume":      i.Resume(ctx),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := i.Resume(ctx); err != nil { // the map has no order
		t.Error(err)
	}
	if p, err := sem.Acquire(ctx); err != nil {
		t.Errorf("after it all: %v", err)
	} else if err := p.Release(ctx); err != nil {
		t.Error(err)
	}
	if refusals := denied(t, admin); len(refusals) > 0 {
		t.Errorf("Redis has denied %q", refusals)
	}
}
