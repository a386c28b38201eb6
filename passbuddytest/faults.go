package passbuddytest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/internal/redisscript"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Down cuts every connection to Redis, and refuses new ones: for the fleet Redis is gone. Its data
// stays, and its clock goes on. Leases that nobody can renew end: a holder counts a permit as lost
// after nine tenths of TTL. RequireHeld and the other methods of a Fleet go on to see Redis.
func (f *Fleet) Down(t testing.TB) {
	t.Helper()
	f.here(t, "Down")
	f.mu.Lock()
	f.wasDown = true
	f.mu.Unlock()
	f.network.setDown(true)
}

// Up ends Down. Redis has the data that it had. Up returns once the sessions that Semaphore has
// opened have heard from it, which can take a second: go-redis pauses between dials.
func (f *Fleet) Up(t testing.TB) {
	t.Helper()
	f.here(t, "Up")
	f.network.setDown(false)
	f.renew(t, "Up", f.all())
}

// Delay holds each reply and each push of Redis back for d, from now on. Redis itself acts at once.
// 0 ends that, and delivers what is held back.
func (f *Fleet) Delay(d time.Duration) { f.network.setDelay(max(0, d)) }

// Flush has Redis lose all its state, as a restart without persistence does: data and scripts.
// Connections stay. Holders keep their permits, and tell Redis of them again with their next
// heartbeat, within a third of TTL. Until all of them have, or for one TTL, Redis grants nothing
// new: Acquire waits.
func (f *Fleet) Flush(t testing.TB) {
	t.Helper()
	f.here(t, "Flush")
	ctx, cancel := context.WithTimeout(context.Background(), f.patience())
	defer cancel()
	_, err := f.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.FlushAll(ctx)
		p.ScriptFlush(ctx)
		return nil
	})
	if err != nil {
		t.Fatalf("passbuddytest: Flush: %v", err)
	}
}

// ExpireLeases ends all leases now, as if no session had renewed any for a TTL: of every process,
// that of Exhaust included. When it returns, Redis has granted the permits to those that wait, or
// has them free. The sessions that Semaphore has opened have noticed: Permit.Lost is closed. A
// session that your code has opened is told to look at once. With passbuddy.Config.Fence, a permit
// goes on to count until its Postgres backend is gone.
//
// The consequences of a loss, such as the end of a Do's context or of a pool's connection, happen
// in goroutines that have been woken. In a synctest bubble they are done when ExpireLeases returns.
// Outside they can need a moment more.
//
// While Redis is Down, holders cannot notice. They go on to rely on their permits until they hear
// from Redis, or for nine tenths of TTL, although Redis has these free. In production a lease in
// Redis outlasts its holder's trust.
func (f *Fleet) ExpireLeases(t testing.TB) {
	t.Helper()
	f.here(t, "ExpireLeases")
	f.expire(t, "ExpireLeases", "", f.all())
}

// Expire ends the leases of one session now, as if its process had been stopped for a TTL: see
// ExpireLeases. Its requests in the queue stay there. The semaphore can come from Semaphore, or be
// opened by your code over Client or URL.
func (f *Fleet) Expire(t testing.TB, sem *semaphore.Semaphore) {
	t.Helper()
	f.here(t, "Expire")
	switch {
	case sem == nil:
		t.Fatal("passbuddytest: Expire: the semaphore is nil")
	case !f.isOurs(sem):
		t.Fatal("passbuddytest: Expire: the semaphore is not of this fleet, or the fleet has " +
			"closed it: open it by Semaphore, or over Client or URL")
	}
	f.expire(t, "Expire", sessionOf(sem), []*semaphore.Semaphore{sem})
}

// isOurs reports whether sem's Redis is the fleet's.
func (f *Fleet) isOurs(sem *semaphore.Semaphore) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.clients[sem.Client()] {
		return true
	}
	client, single := sem.Client().(*redis.Client)
	return single && f.listener != nil && client.Options().Addr == f.listener.Addr().String()
}

// noBackend stands in the quarantine for a permit that was revoked and covers no backend that Redis
// knows.
const noBackend = "0 0 0"

// expire ends the leases of one session, or of all if it is "". holders are those that can be
// asked to notice.
//
// The order is that of a lease that ends by itself. First the permits are revoked: they still
// count, and cannot be renewed or extended, also by what is on its way. Then their holders notice.
// Only then are they free. So no two processes hold one permit.
func (f *Fleet) expire(
	t testing.TB, method, session string, holders []*semaphore.Semaphore,
) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), f.patience())
	defer cancel()
	err := f.revoke(ctx, session)
	if err == nil {
		if !f.network.isDown() {
			f.renew(t, method, holders)
		}
		err = f.free(ctx, session)
	}
	if err != nil {
		t.Fatalf("passbuddytest: %s: %v", method, err)
	}
	// The fake clock of a bubble goes on only once every goroutine waits.
	time.Sleep(time.Millisecond)
}

func (f *Fleet) key(part string) string { return "{" + f.keys.All()[0] + "}:" + part }

// revoke revokes the permits of the session, or of all. The script tells each session to look.
func (f *Fleet) revoke(ctx context.Context, session string) error {
	sessions := []string{session}
	if session == "" {
		var err error
		sessions, err = f.client.ZRange(ctx, f.key("sessions"), 0, -1).Result()
		if err != nil {
			return err
		}
	}
	for _, s := range sessions {
		_, err := redisscript.Evict(ctx, f.client, f.keys, 0, s, true, "passbuddytest",
			"the lease ends")
		if err != nil {
			return err
		}
	}
	return nil
}

// free frees the permits that were revoked, and those of other clients. Permits with a backend
// (passbuddy.Config.Fence) stay in quarantine until that is gone.
func (f *Fleet) free(ctx context.Context, session string) error {
	permits := f.keys.All()[0]
	all, err := f.client.ZRange(ctx, permits, 0, -1).Result()
	if err != nil {
		return err
	}
	quarantine, err := f.client.HGetAll(ctx, f.key("quarantine")).Result()
	if err != nil {
		return err
	}
	var over []redis.Z
	for _, id := range all {
		state, revoked := quarantine[id]
		if strings.HasPrefix(id, session) && (state == noBackend || !revoked && !hasSession(id)) {
			over = append(over, redis.Z{Score: 1, Member: id}) // long ago
		}
	}
	if len(over) > 0 {
		if err := f.client.ZAddXX(ctx, permits, over...).Err(); err != nil {
			return err
		}
	}
	// The script by which a session leaves ends what has expired, and grants what is free. No
	// session has this name.
	epoch, err := f.client.HGet(ctx, f.key("meta"), "epoch").Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return err
	}
	return redisscript.Leave(ctx, f.client, f.keys, false, 0, "passbuddytest", epoch, nil)
}

// hasSession reports whether a permit's UUID is that of a session, not of a client of another kind:
// see common.lua.
func hasSession(id string) bool { return len(id) > 14 && id[14] == '8' }

// all returns the sessions that Semaphore and Exhaust have opened and not closed.
func (f *Fleet) all() []*semaphore.Semaphore {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.sessions))
}

// renew has sessions renew now. It returns once Redis has answered them.
func (f *Fleet) renew(t testing.TB, method string, sessions []*semaphore.Semaphore) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), f.patience())
	defer cancel()
	failed := make([]error, len(sessions))
	var group sync.WaitGroup
	for i, sem := range sessions {
		group.Go(func() { failed[i] = renewOne(ctx, sem) })
	}
	group.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatalf("passbuddytest: %s: a session does not hear from Redis: %v", method, err)
	}
}

// renewOne renews a session, again and again if that fails: connections that were just cut can
// make it fail once or twice.
func renewOne(ctx context.Context, sem *semaphore.Semaphore) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := sem.Engine(engine.Seam{}).Renew(ctx)
		if err == nil || errors.Is(err, semaphore.ErrClosed) {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}
