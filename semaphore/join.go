package semaphore

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// This file is how a session comes to be. How it ends is in close.go.

// startTimeout bounds what New does before it knows that Redis answers.
const startTimeout = 5 * time.Second

// leaveAfterFailure bounds how long New, which failed, tries to take back what it told Redis.
const leaveAfterFailure = time.Second

// parseURL is redis.ParseURL, without a piece of the password in its errors. They quote what they refuse, and in a password that is not
// encoded a slash or a question mark ends the authority: what follows it, up to the @ of the authority that was meant, is then path or query.
func parseURL(rawURL string) (*redis.Options, error) {
	opt, err := redis.ParseURL(rawURL)
	if err == nil {
		return opt, nil
	}
	u, parse := url.Parse(rawURL)
	if parse != nil || strings.Contains(u.Path+u.RawQuery+u.Fragment+u.Opaque, "@") {
		return nil, errors.New("semaphore: the Redis URL cannot be parsed: is the port a number, and are user and password percent-encoded?")
	}
	return nil, fmt.Errorf("semaphore: Redis URL: %w", err)
}

func newSemaphore(ctx context.Context, client redis.UniversalClient, ownClient bool, cfg Config) (*Semaphore, error) {
	if err := checkClient(client); err != nil {
		return nil, err
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	base := cfg.Prefix + "-" + cfg.Name
	s := &Semaphore{
		cfg: cfg, base: base, keys: redisscript.NewKeys(base), identity: newIdentity(cfg.Weight), info: encodeInfo(cfg),
		margin: cfg.TTL / 10, start: time.Now(), log: cfg.Logger,
		client: client, ownClient: ownClient,
		permits: make(map[string]*Permit), asks: make(map[string]*ask), capacity: int64(cfg.Capacity), min: int64(cfg.Min),
		marking: make(chan struct{}, recordsAtOnce), ending: make(map[string]*ending),
	}
	l := dedicated(client, cfg.TTL)
	s.own, s.flightClient, s.wires, s.listenTimeout = l.own, l.flights, l.wires, l.listenTimeout
	s.operator, s.borrowed = l.operator, l.borrowed
	if s.borrowed {
		s.log.Warn("the Redis client shows no options, so the session has no connections of its own: "+
			"if the application keeps all of the client's busy for a lease, leases are lost",
			"semaphore", base, "type", fmt.Sprintf("%T", client))
	}
	s.returned = sync.NewCond(&s.mu)
	s.heart = newHeart()
	s.ctx, s.cancel = context.WithCancel(context.Background())

	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// Three round trips in a row: connections, joining, subscribing. What does not depend on the one before
	// goes over a connection of its own, at the same time.
	var beside sync.WaitGroup
	beside.Go(func() { s.loadExchange(ctx) })
	beside.Go(func() { s.pubsub = s.connectSubscription(ctx) })
	if err := s.join(ctx); err != nil {
		s.mu.Lock()
		s.left = true
		asked := s.heart.last > 0
		s.mu.Unlock()
		if asked { // Redis may have taken us in all the same
			ctx, cancel := context.WithTimeout(context.Background(), leaveAfterFailure)
			_ = s.leave(ctx, nil)
			cancel()
		}
		s.cancel()
		s.closeOwn()
		beside.Wait()
		if s.pubsub != nil {
			_ = s.pubsub.Close()
		}
		s.wg.Wait()
		return nil, err
	}
	s.wg.Add(1)
	go s.heartbeats() // from now on, for the rest may take long
	beside.Wait()
	s.subscribe(ctx)
	return s, nil
}

// loadExchange has Redis load the script of requests, over the connection that will carry them, so that the
// first caller pays for neither. It releases a permit that nobody holds. An error costs nothing: the first
// request then does the same.
func (s *Semaphore) loadExchange(ctx context.Context) {
	x := redisscript.Exchange{Session: s.identity.session, TTLMillis: s.ttlMillis(), Load: true,
		Release: []string{s.identity.next(s.identity.plain())}}
	ctx, cancel := context.WithTimeout(ctx, max(s.cfg.TTL, startTimeout/2))
	defer cancel()
	_, _ = x.Run(ctx, s.flightClient, s.keys)
}

func (s *Semaphore) join(ctx context.Context) error {
	var server serverInfo
	var serverErr error
	var asked sync.WaitGroup
	asked.Go(func() { server, serverErr = inspectServer(ctx, s.own) })
	err := s.firstBeat(ctx)
	asked.Wait()
	if tooOld := server.check(); tooOld != nil {
		return fmt.Errorf("join %q: %w", s.base, unavailable(tooOld))
	}
	if err != nil && serverErr != nil {
		err = serverErr // refused credentials, or no connection at all: it is said best here
	}
	if server.mayEvict() {
		s.log.Warn("this Redis may evict keys, and with them permits: set maxmemory-policy noeviction",
			"semaphore", s.base, "maxmemory-policy", server.policy)
	}
	var refused redisscript.RefusedMin
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("%w: %w", ErrCapacity, refuse("Min", s.cfg.Min, "cannot be guaranteed: "+refused.Error()))
	case err != nil:
		return fmt.Errorf("join %q: %w", s.base, unavailable(err))
	}
	return nil
}
