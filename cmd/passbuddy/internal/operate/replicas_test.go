package operate

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/internal/status"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

func TestReplicasAgainstWaitReplicas(t *testing.T) {
	online := "ip=10.0.0.1,port=6379,state=online,offset=1,lag=0"
	copies := "ip=10.0.0.2,port=6379,state=wait_bgsave,offset=0,lag=0"
	for name, c := range map[string]struct {
		connected, first, second string // of INFO
		waits                    []int  // of each process
		severity, code           string
		says                     []string
	}{
		"none, and nobody waits": {connected: "0", waits: []int{0, 0}},
		"none, and one waits": {connected: "0", waits: []int{0, 1}, severity: status.Critical,
			code: "few-replicas", says: []string{"no replica", "b waits", "up to 1", "WaitReplicas to 0"}},
		"fewer than wanted": {connected: "1", first: online, waits: []int{2, 2, 2, 2},
			severity: status.Critical, code: "few-replicas",
			says: []string{"1 replica", "4 processes wait (a, b, c and 1 more)", "up to 2"}},
		"one still copies": {connected: "2", first: online, second: copies, waits: []int{2},
			severity: status.Critical, code: "few-replicas", says: []string{"1 replica", "up to 2"}},
		"one does not wait": {connected: "2", first: online, second: online, waits: []int{1, 0},
			severity: status.Info, code: "replicas", says: []string{"2 replicas", "b waits for none"}},
		"nobody is there": {connected: "2", first: online, second: online, severity: status.Info,
			code: "replicas", says: []string{"2 replicas", "forget the last grants"}},
		"all of them": {connected: "2", first: online, second: online, waits: []int{1, 2},
			severity: status.Info, code: "all-replicas", says: []string{"wait for all", "Add a replica"}},
		"well": {connected: "2", first: online, second: online, waits: []int{1, 1}},
	} {
		info := map[string]string{"role": "master", "connected_slaves": c.connected,
			"slave_read_only": "1"}
		for field, value := range map[string]string{"slave0": c.first, "slave1": c.second} {
			if value != "" {
				info[field] = value
			}
		}
		var processes []status.Process
		for i, n := range c.waits {
			processes = append(processes, status.Process{Owner: string(rune('a' + i)), WaitReplicas: n})
		}
		r := &report{}
		r.replicas(info, processes)
		if c.code == "" {
			if len(r.Findings) > 0 {
				t.Errorf("%s: %+v", name, r.Findings)
			}
			continue
		}
		if len(r.Findings) != 1 || r.Findings[0].Code != c.code || r.Findings[0].Severity != c.severity {
			t.Errorf("%s: %+v", name, r.Findings)
			continue
		}
		all := r.Findings[0].Text + " " + r.Findings[0].Effect
		for _, text := range c.says {
			if !strings.Contains(all, text) {
				t.Errorf("%s does not say %q: %s", name, text, all)
			}
		}
	}
}

// Doctor learns from Redis how many replicas follow, and from each session how many it waits for.
func TestDoctorCountsReplicas(t *testing.T) {
	primary, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = primary.Stop() })
	replica, err := primary.StartReplica(t.Context(), throwaway.RedisOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = replica.Stop() })
	if err := replica.AwaitSync(t.Context(), primary); err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(primary.Options())
	t.Cleanup(func() { _ = client.Close() })
	d := &desk{t: t, client: client,
		env: map[string]string{target.RedisEnv: "redis://" + primary.Addr()}}
	d.join(semaphore.Config{Owner: "web-1", WaitReplicas: 1, TTL: time.Minute})
	d.expect(exit.OK, []string{"1 replica, and processes wait for all of them"}, "doctor")
	d.join(semaphore.Config{Owner: "web-2", TTL: time.Minute})
	d.expect(exit.OK, []string{"1 replica, and web-2 waits for none"}, "doctor")
	if s := d.snapshot(); !slices.ContainsFunc(s.Sessions, func(s semaphore.Session) bool {
		return s.WaitReplicas == 1
	}) {
		t.Errorf("no session says that it waits: %+v", s.Sessions)
	}
	if err := replica.Stop(); err != nil {
		t.Fatal(err)
	}
	for {
		_, _, code := d.run("doctor")
		if code == exit.Trouble {
			break // Redis has noticed that its replica is gone
		}
		if t.Context().Err() != nil {
			t.Fatal("Redis does not notice that its replica is gone")
		}
	}
	d.expect(exit.Trouble, []string{"no replica, and web-1 waits for up to 1", "leases end"}, "doctor")
}
