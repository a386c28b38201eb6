package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// This file is how a session begins. close.go is how it ends.

const (
	// startTimeout bounds what Open does before it knows that Redis answers.
	startTimeout = 5 * time.Second
	// leaveAfterFailure bounds how long an Open that failed tries to take back what it told Redis.
	leaveAfterFailure = time.Second
	// joinPause is the time between the tries of joinOnce.
	joinPause = 100 * time.Millisecond
)

// Open joins the fleet over connections with the options of client. own: Close closes client, too.
//
// It takes three round trips in a row: connections, joining, subscribing. Work that does not depend
// on the step before goes over a connection of its own, at the same time.
func Open(
	ctx context.Context, client redis.UniversalClient, own bool, cfg Config,
) (*Session, error) {
	if err := checkClient(client); err != nil {
		return nil, err
	}
	s := newSession(client, own, cfg)
	if s.clients.borrowed {
		s.warn("the Redis client shows no options, so the session has no connections of its own: "+
			"if the application keeps all of the client's busy for a lease, leases are lost",
			"type", fmt.Sprintf("%T", client))
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var beside sync.WaitGroup
	var ps *redis.PubSub
	beside.Go(func() { s.loadExchange(ctx) })
	beside.Go(func() { ps = s.connectSubscription(ctx) })
	if err := s.join(ctx); err != nil {
		asked := false
		s.step(func(c *core.Core, now time.Duration) {
			asked = c.LastCall() > 0
			c.Leave(now)
		})
		if asked { // Redis may have taken us in all the same
			ctx, cancel := context.WithTimeout(context.Background(), leaveAfterFailure)
			_ = s.leave(ctx, nil)
			cancel()
		}
		s.cancel()
		s.clients.close()
		beside.Wait()
		if ps != nil {
			_ = ps.Close()
		}
		s.wg.Wait()
		return nil, err
	}
	// The heartbeat begins now, because the rest may take long.
	s.step(func(c *core.Core, now time.Duration) { c.Joined(now) })
	beside.Wait()
	s.subscribe(ctx, ps)
	return s, nil
}

// loadExchange has Redis load the script of requests, over the connection that requests will use.
// So the first caller pays for neither. The script then releases a permit that no session holds. An
// error costs nothing: the first request then does the same.
func (s *Session) loadExchange(ctx context.Context) {
	x := message.Exchange{
		Session: s.name, TTLMillis: s.cfg.TTL.Milliseconds(), Load: true,
		Release: []string{s.NewPermit().ID},
	}
	ctx, cancel := context.WithTimeout(ctx, max(s.cfg.TTL, startTimeout/2))
	defer cancel()
	_, _ = redisscript.Exchange(ctx, s.scripter(s.clients.batches), s.keys, x)
}

func (s *Session) join(ctx context.Context) error {
	var server serverInfo
	var serverErr error
	var inspected sync.WaitGroup
	inspected.Go(func() { server, serverErr = inspectServer(ctx, s.clients.own, s.cfg.Base) })
	err := s.joinOnce(ctx)
	inspected.Wait()
	if tooOld := server.check(); tooOld != nil {
		return fmt.Errorf("join %q: %w", s.cfg.Base, core.Unavailable(tooOld))
	}
	if err != nil && serverErr != nil {
		err = serverErr // refused credentials, or no connection at all: this error says it best
	}
	if server.mayEvict() {
		s.warn("this Redis may evict keys, and with them permits: set maxmemory-policy noeviction",
			"maxmemory-policy", server.policy)
	}
	var refused message.RefusedMin
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("%w: %w", core.ErrCapacity, refused)
	case err != nil:
		return fmt.Errorf("join %q: %w", s.cfg.Base, core.Unavailable(err))
	}
	return nil
}

// joinOnce is the heartbeat by which a session joins. It retries for as long as ctx allows: if
// Redis cannot serve yet, if too few replicas acknowledge, or if a call times out. To join twice is
// the same as once.
func (s *Session) joinOnce(ctx context.Context) error {
	var cause error // the last answer of Redis
	for {
		err := explainCluster(s.clients.own, s.beatWithin(ctx, startTimeout))
		var late net.Error
		switch {
		case err == nil || errors.Is(err, errCluster):
			return err
		case errors.As(err, new(unacknowledged)) || isTemporary(err):
			cause = err
		case errors.Is(err, context.DeadlineExceeded), errors.As(err, &late) && late.Timeout():
		default:
			return err
		}
		select {
		case <-time.After(joinPause):
		case <-ctx.Done():
			return cmp.Or(cause, err)
		}
	}
}
