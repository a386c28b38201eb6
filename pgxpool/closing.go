package pgxpool

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// pgx tells no hook that a pool was closed. A caller that waits for a permit would wait past the
// Close.
//
// But Close cancels the context in which puddle opens connections for callers, and BeforeConnect
// sees that context: its Done channel is closed exactly when the pool is. So the first connection
// that a caller opens shows it. Where a caller has to wait for some time before any was opened, a
// checkout for seeClose has the pool try to open one. BeforeConnect refuses it, and pgx's Stat
// counts it as a new connection. (Background connections of MinConns are opened in another context,
// which has a deadline.) While idle connections keep the pool from opening one, it is asked again
// and again.
//
// Several pools can be made of one configuration and share its permits. BeforeConnect cannot tell
// whose context it sees, so what it sees counts only while one pool is known. A closed pool does
// not count: the usual case is that the next pool replaces it.

// closings knows when the pools of one configuration are closed.
type closings struct {
	last    atomic.Pointer[closing]
	several atomic.Bool // more than one pool lives, or did

	mu sync.Mutex // one writer of pool.known, and one look, at a time

	// Guarded by mu.
	polls []*poll
}

// closing is the channel that is closed when a pool is.
type closing struct {
	pool *pgxpool.Pool
	done <-chan struct{}
}

// poll asks a pool again and again whether it was closed, for callers that wait.
type poll struct {
	closing
	closed chan struct{} // closing.done
	until  time.Time     // until then, callers may wait
}

// meet makes pool the known one. several is set before a second pool is known: see saw.
func (p *pool) meet(pool *pgxpool.Pool) {
	p.closings.mu.Lock()
	defer p.closings.mu.Unlock()
	before := p.known.Load()
	if before == pool {
		return
	}
	if before != nil {
		last := p.closings.last.Load()
		if last == nil || last.pool != before || !allotment.IsClosed(last.done) {
			p.closings.several.Store(true)
		}
	}
	p.known.Store(pool)
}

// saw takes in a context that puddle opens a caller's connection with. A caller makes its pool
// known before that. So if one pool is known, and several is not set after that was read, the
// context is that pool's. A context that has ended may be that of a pool which was replaced.
func (p *pool) saw(ctx context.Context) {
	pool := p.known.Load()
	if pool == nil || p.closings.several.Load() || ctx.Err() != nil {
		return
	}
	if last := p.closings.last.Load(); last == nil || last.pool != pool {
		p.closings.last.Store(&closing{pool, ctx.Done()})
		p.session.saw()
	}
}

const (
	lookTimeout = 10 * time.Millisecond // a look takes microseconds
	// pollFirst is long enough for most pools that start to open their first connection before.
	pollFirst = 20 * time.Millisecond
	pollEvery = 100 * time.Millisecond
)

// closingOf returns the channel that is closed when pool is.
func (p *pool) closingOf(pool *pgxpool.Pool) <-chan struct{} {
	if last := p.closings.last.Load(); last != nil && last.pool == pool {
		return last.done
	}
	c := &p.closings
	c.mu.Lock()
	defer c.mu.Unlock()
	until := time.Now().Add(p.opts.AcquireTimeout)
	for _, asked := range c.polls {
		if asked.pool == pool {
			asked.until = until
			return asked.done
		}
	}
	asked := &poll{closed: make(chan struct{}), until: until}
	asked.closing = closing{pool, asked.closed}
	c.polls = append(c.polls, asked)
	time.AfterFunc(pollFirst, func() { p.poll(asked) })
	return asked.done
}

// poll looks once, and again later while callers may wait.
func (p *pool) poll(asked *poll) {
	c := &p.closings
	c.mu.Lock()
	defer c.mu.Unlock()
	closed := allotment.IsClosed(p.look(asked.pool))
	if closed {
		close(asked.closed)
	}
	if closed || time.Now().After(asked.until) {
		c.polls = slices.DeleteFunc(c.polls, func(other *poll) bool { return other == asked })
		return
	}
	time.AfterFunc(pollEvery, func() { p.poll(asked) })
}

// look returns the channel that is closed when pool is. It returns nil if it cannot tell now: an
// idle connection comes instead of an attempt to open one, or no place is free in the pool. In the
// latter case a caller learns of the Close at the next return, as in pgx. mu is held.
func (p *pool) look(pool *pgxpool.Pool) <-chan struct{} {
	if last := p.closings.last.Load(); last != nil && last.pool == pool {
		return last.done
	}
	if s := pool.Stat(); s.AcquiredConns()+s.ConstructingConns() >= s.MaxConns() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
	defer cancel()
	c := &checkout{Context: ctx, pool: p, purpose: seeClose}
	conn, err := pool.Acquire(c)
	if err == nil { // no hook of ours stood in the way
		conn.Release()
	}
	found := &closing{pool: pool}
	switch poolDone := c.poolDone.Load(); {
	case poolDone != nil:
		found.done = *poolDone
	case err == nil || errors.Is(err, errReclaimed) || ctx.Err() != nil:
		return nil
	default:
		found.done = done // pgx refuses for one reason only
	}
	p.closings.last.Store(found)
	return found.done
}

// asClosed is err in pgx's words, if it says that pool was closed.
func asClosed(err error, pool *pgxpool.Pool) error {
	if errors.Is(err, allotment.ErrPoolClosed) {
		return errClosedPool(pool)
	}
	return err
}

var closedPool struct {
	once sync.Once
	err  error
}

// errClosedPool is pgx's error for calls on a closed pool: puddle's ErrClosedPool. We ask a
// pool for it that was made of the same configuration and closed at once. It never opens anything.
func errClosedPool(pool *pgxpool.Pool) error {
	closedPool.once.Do(func() {
		closedPool.err = errors.New("closed pool")
		cfg := pool.Config()
		cfg.MinConns, cfg.MinIdleConns = 0, 0
		cfg.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { return errReclaimed }
		cfg.ConnConfig.Tracer = nil
		other, err := pgxpool.NewWithConfig(context.Background(), cfg)
		if err != nil {
			return
		}
		other.Close()
		_, err = other.Acquire(context.Background())
		if err != nil && !errors.Is(err, errReclaimed) {
			closedPool.err = err
		}
	})
	return closedPool.err
}
