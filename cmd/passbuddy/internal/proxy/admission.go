package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/semaphore"
)

// dialTimeout bounds a dial, all of Postgres's addresses together.
const dialTimeout = 10 * time.Second

// admission is the proxy's connection pool, as the engine sees it. No connection of it is ever
// idle.
type admission struct {
	a       *allotment.Allotment
	pool    *engine.Pool
	to      string
	log     *slog.Logger
	dialer  net.Dialer
	closing chan struct{} // closed by close: ends every wait
}

var _ allotment.Pool = (*admission)(nil)

func newAdmission(sem *semaphore.Semaphore, to string, wait time.Duration, log *slog.Logger) (
	*admission, error,
) {
	opts, err := allotment.Options{AcquireTimeout: wait}.Resolve()
	if err != nil {
		return nil, err
	}
	ad := &admission{
		to: to, log: log, dialer: net.Dialer{Timeout: dialTimeout}, closing: make(chan struct{}),
	}
	ad.a = allotment.New(ad, opts)
	if ad.pool, err = ad.a.Join(sem.Engine(engine.Seam{})); err != nil {
		return nil, err
	}
	return ad, nil
}

// close refuses the clients that wait, and those that come.
func (ad *admission) close() { close(ad.closing) }

// cut ends what is left, in whatever state.
func (ad *admission) cut() {
	for _, attached := range ad.a.AllAttached() {
		r := attached.(*relay)
		reset(r.server)
		_ = r.client.Close()
	}
}

// leave takes the pool out of its session, once its last permit is given back.
func (ad *admission) leave() { ad.pool.Close() }

// Evict implements [allotment.Pool]: nothing is idle.
func (ad *admission) Evict() bool { return false }

// Abort implements [allotment.Pool]: the lease of slot is lost, or the session is being closed.
func (ad *admission) Abort(slot *allotment.Slot) {
	if r, ok := slot.Attached().(*relay); ok {
		r.abort(slot.AbortCause())
	} // else it is being dialled, and Attach will report false
}

// dialError says that Postgres cannot be reached.
type dialError struct{ error }

func (e dialError) Unwrap() error { return e.error }

// open waits for a permit, dials Postgres, and returns the pair of connections. It must be run, or
// dropped.
func (ad *admission) open(ctx context.Context, client *net.TCPConn) (*relay, error) {
	ctx = ad.a.Bounded(ctx, ad.closing)
	if _, err := ad.a.Enter(ctx, false); err != nil {
		return nil, err
	}
	slot, err := ad.a.OpenWithin(ctx)
	if err != nil {
		ad.a.Exit()
		return nil, err
	}
	server, err := ad.dial(ctx)
	if err != nil {
		slot.Gone()
		ad.a.Exit()
		return nil, dialError{err}
	}
	r := &relay{client: client, server: server, slot: slot, exit: ad.a.Exit, log: ad.log}
	if !slot.Attach(r) {
		r.drop()
		return nil, fmt.Errorf("while connecting: %w", semaphore.ErrLost)
	}
	return r, nil
}

func (ad *admission) dial(ctx context.Context) (*net.TCPConn, error) {
	nc, err := ad.dialer.DialContext(ctx, "tcp", ad.to)
	if err != nil {
		return nil, err
	}
	return nc.(*net.TCPConn), nil
}
