package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// serverVersion returns the version of the server, major and minor. For a Valkey it is the Redis
// version that it is compatible with.
var serverVersion = sync.OnceValues(func() (version [2]int, err error) {
	r, err := throwaway.StartRedis(context.Background(), throwaway.RedisOptions{})
	if err != nil {
		return version, err
	}
	defer r.Stop()
	c := redis.NewClient(r.Options())
	defer c.Close()
	text, err := c.Info(context.Background(), "server").Result()
	if err != nil {
		return version, err
	}
	_, text, _ = strings.Cut(text, "redis_version:")
	_, err = fmt.Sscanf(text, "%d.%d", &version[0], &version[1])
	return version, err
})

// aclOfServer returns the rule that docs/SECURITY.md recommends for the server of these tests.
func aclOfServer(t *testing.T) string {
	t.Helper()
	version, err := serverVersion()
	if err != nil {
		skipIfMissing(t, err)
	}
	rule := documentedACL(t)
	if version[0] < 7 {
		rule = strings.NewReplacer("+ssubscribe", "+subscribe", "+sunsubscribe", "+unsubscribe",
			"+spublish", "+publish",
			"+pubsub|shardchannels", "+pubsub|channels").Replace(rule)
	}
	if version[0] < 6 || version[0] == 6 && version[1] < 2 {
		rule = regexp.MustCompile(` resetchannels| &\S+`).ReplaceAllString(rule, "")
	}
	return rule
}

// documentedACL returns the rule that docs/SECURITY.md recommends for Redis 7, with a password.
func documentedACL(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../docs/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	rule := regexp.MustCompile("(?m)^user passbuddy .*$").FindString(string(text))
	if !strings.Contains(rule, ">CHANGE-ME") {
		t.Fatalf("docs/SECURITY.md has no rule: %q", rule)
	}
	return strings.Replace(rule, "CHANGE-ME", userSecret, 1)
}

// startWithACL starts a Redis with one user beside its admin, and returns the admin's client.
func startWithACL(t *testing.T, rule string) (*throwaway.Redis, *redis.Client, string) {
	t.Helper()
	r, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{Password: adminSecret,
		ACL: []string{rule}})
	if err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = r.Stop() })
	admin := redis.NewClient(r.Options())
	t.Cleanup(func() { _ = admin.Close() })
	if err := admin.ACLLogReset(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	return r, admin, fmt.Sprintf("redis://passbuddy:%s@%s", userSecret, r.Addr())
}

// denied returns the commands that Redis has refused for lack of a right.
func denied(t *testing.T, admin *redis.Client) (refusals []string) {
	t.Helper()
	log, err := admin.ACLLog(t.Context(), 100).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range log {
		refusals = append(refusals, fmt.Sprintf("%s of %q to %q, %d times", e.Reason, e.Object,
			e.Username, e.Count))
	}
	return refusals
}

// The documented ACL gives every command that the scripts call, and few others.
func TestDocumentedACLIsTheLeast(t *testing.T) {
	sources, err := filepath.Glob("../internal/redisscript/*.lua")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	needed := map[string]bool{"eval": true, "evalsha": true, "info": true, "ping": true,
		"ssubscribe": true, "sunsubscribe": true, "pubsub|shardchannels": true,
		"pubsub|shardnumsub": true,
		"hscan":              true, "zscan": true} // Snapshot
	call := regexp.MustCompile(`redis\.p?call\((?:sharded and )?'([A-Z]+)'`)
	for _, name := range sources {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllSubmatch(text, -1) {
			if command := strings.ToLower(string(m[1])); command != "pubsub" {
				needed[command] = true
			}
		}
	}
	given := make(map[string]bool)
	for _, word := range strings.Fields(documentedACL(t)) {
		if command, ok := strings.CutPrefix(word, "+"); ok {
			given[command] = true
			if !needed[command] {
				t.Errorf("docs/SECURITY.md allows %s, which no script calls", word)
			}
		}
	}
	for command := range needed {
		if !given[command] {
			t.Errorf("docs/SECURITY.md does not allow +%s", command)
		}
	}
}

// A semaphore and two pools use every feature under exactly the documented ACL, and Redis denies
// them nothing.
func TestDocumentedACL(t *testing.T) {
	const capacity = 3
	s := startServers(t, 50)
	_, admin, address := startWithACL(t, aclOfServer(t))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	watching, stop := context.WithCancel(ctx)
	seen := s.watch(watching)
	var sessions []*semaphore.Semaphore
	var work sync.WaitGroup
	var pools []*pgxpool.Pool
	for _, least := range []int{0, 1} {
		sem, err := semaphore.Open(ctx, address, semaphore.Config{Name: "orders",
			Capacity: capacity, Min: least})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = sem.Close() })
		sessions = append(sessions, sem)
		pool, err := passpool.New(ctx, s.postgres.URL(), sem, passbuddy.Config{Fence: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		pools = append(pools, pool)
	}
	load := func() {
		for _, pool := range pools {
			for range 4 {
				work.Go(func() {
					for range 20 {
						if _, err := pool.Exec(ctx, "select pg_sleep(0.005)"); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
		}
		work.Wait()
	}
	load()
	if err := admin.FlushAll(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	load()
	for { // the load may not have asked Redis for anything, and heartbeats bring the sessions back
		snap, err := sessions[0].Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(snap.Sessions) == 2 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, n := range []int{2, 0} {
		if err := sessions[0].SetCapacity(ctx, n); err != nil {
			t.Error(err)
		}
	}
	for i, pool := range pools {
		pool.Close()
		if err := sessions[i].Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	stop()
	if peak, _ := seen.peak(t); peak > capacity || peak == 0 {
		t.Errorf("%d backends, capacity %d", peak, capacity)
	}
	if refusals := denied(t, admin); len(refusals) > 0 {
		t.Errorf("the documented ACL denies needed commands: %q", refusals)
	}
}

// Without the right to the channel no push arrives, and waiters find their grants by themselves.
func TestDeniedChannel(t *testing.T) {
	t.Parallel() // it mostly waits
	rule := aclOfServer(t)
	if !strings.Contains(rule, " &") {
		t.Skip("Redis 6.0 has no rules for channels")
	}
	rule = regexp.MustCompile(` &\S+`).ReplaceAllString(rule, "")
	_, admin, address := startWithACL(t, rule)
	var s [2]*semaphore.Semaphore
	for i := range s {
		var err error
		cfg := semaphore.Config{Name: t.Name(), Capacity: 2, TTL: time.Minute,
			RetryInterval: 100 * time.Millisecond, MaxAttempts: -1}
		if s[i], err = semaphore.Open(t.Context(), address, cfg); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s[i].Close() })
	}
	t.Logf("hand-over without pushes: %v", handOver(t, s[0], s[1], 2))
	if refusals := denied(t, admin); len(refusals) == 0 {
		t.Error("Redis denied no command, so the test proves nothing")
	} else {
		t.Logf("denied: %q", refusals)
	}
}
