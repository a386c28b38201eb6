package pgxpool

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/sessions"
	"github.com/passbuddy/passbuddy/internal/settings"
)

// Open is [New] by settings alone: those of package env, in connString, in its service file or in
// the environment. docs/CONFIGURATION.md lists them. What pgx and the server get has none of the
// passbuddy_ keys left.
//
// All pools and DBs of this process that name the same Redis, prefix and name share one session of
// the semaphore. Open opens it if it is the first, for as long as ctx allows, 5s at most. The
// session is closed once the last pool has closed: within its Close, if a connection of it was open
// then, otherwise within a second after. A connection that lives on after Close, because it was
// hijacked or opened by hand, keeps the session.
//
// Errors are those of New and of [semaphore.Open]. A setting that is unknown or refused, and a
// missing Redis, are errors that name it. With PASSBUDDY_DISABLE=1 the result is a pool of pgx's
// that is not counted. No error quotes connString or the Redis URL.
func Open(ctx context.Context, connString string) (*pgxpool.Pool, error) {
	s, err := settings.Read(connString)
	if err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(s.DSN)
	if err != nil {
		return nil, settings.Explain(err)
	}
	if err := s.Finish(&config.ConnConfig.Config); err != nil {
		return nil, err
	}
	if s.Disabled {
		settings.WarnDisabled()
		return pgxpool.NewWithConfig(ctx, config)
	}
	use, err := sessions.Process.Acquire(ctx, s.RedisURL, s.Semaphore)
	if err != nil {
		return nil, err
	}
	p, err := configure(config, use.Semaphore(), s.Pool)
	if err != nil {
		_ = use.Release()
		return nil, err
	}
	p.session = newSessionUse(use)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		p.allot.Close()
		_ = use.Release()
		return nil, err
	}
	p.known.Store(pool)
	go p.await(pool)
	return pool, nil
}

// sessionUse is the semaphore of a pool that Open made. Nobody closes it but the pool's own end, and
// pgx tells no hook of that. closing.go says how it is seen: puddle's context, which the first
// connection that a caller opens shows, or a look.
//
//	pool lives --Close begins--> closing --no connection counts--> use released --> done
//
// await goes through these states. A Close that has connections to end waits for BeforeClose, and
// that waits for await: see endWithin. So a program that returns from main after Close leaves
// nothing behind in Redis.
type sessionUse struct {
	use      *sessions.Use
	seen     chan struct{} // closed when closings.last is known
	seenOnce sync.Once     // closes seen
	done     chan struct{} // closed when use was released
}

func newSessionUse(use *sessions.Use) *sessionUse {
	return &sessionUse{use: use, seen: make(chan struct{}), done: make(chan struct{})}
}

// saw is told that closings.last is known. A nil one is of a pool that Open did not make.
func (u *sessionUse) saw() {
	if u != nil {
		u.seenOnce.Do(func() { close(u.seen) })
	}
}

const (
	// lookEvery is how often a pool that has opened no connection for a caller is asked whether it
	// was closed. A look counts as a new connection in pgx's Stat: the usual pool is used before.
	lookEvery = time.Second
	// endTimeout bounds each of the two waits by which Close of the pool is longer than pgx's: for
	// the backend of a connection, and for the semaphore's Close.
	endTimeout = 5 * time.Second
)

// await releases the use once pool is closed and no connection counts any more.
func (p *pool) await(pool *pgxpool.Pool) {
	<-p.closingFound(pool)
	// A caller that still opens a connection finds the pool closed, or the semaphore.
	<-p.allot.Emptied()
	p.allot.Close()
	if err := p.session.use.Release(); err != nil {
		slog.Warn("passbuddy: the semaphore of a closed pool was not left in good order",
			"error", err)
	}
	close(p.session.done)
}

// closingFound returns the channel that is closed when pool is, once it is known.
func (p *pool) closingFound(pool *pgxpool.Pool) <-chan struct{} {
	for {
		select {
		case <-p.session.seen:
		case <-time.After(lookEvery):
		}
		p.closings.mu.Lock()
		closing := p.look(pool)
		p.closings.mu.Unlock()
		if closing != nil {
			return closing
		}
	}
}

// endWithin ends conn within Close of the pool, which has begun or not: it does nothing if not. It
// returns when the backend has ended, and when await is done if conn was the last.
func (p *pool) endWithin(conn *pgx.Conn) {
	pool := p.known.Load()
	if pool == nil {
		return
	}
	p.closings.mu.Lock()
	closing := p.look(pool)
	p.closings.mu.Unlock()
	if closing == nil {
		return
	}
	p.session.saw()
	if !allotment.IsClosed(closing) {
		return
	}
	bound := time.NewTimer(endTimeout)
	defer bound.Stop()
	if l := linkOf(conn); l != nil {
		slot := l.Slot()
		closeConn(conn)
		select {
		case <-l.Gone():
		case <-bound.C:
			return
		}
		if slot != nil {
			slot.Gone() // the link does it, too, a moment later
		}
	}
	if allotment.IsClosed(p.allot.Emptied()) {
		bound.Reset(endTimeout)
		select {
		case <-p.session.done:
		case <-bound.C:
		}
	}
}
