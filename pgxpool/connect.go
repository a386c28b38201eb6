package pgxpool

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/backend"
	"github.com/passbuddy/passbuddy/internal/socket"
)

// connectAttempt is one attempt to connect. It is the tracer of that connect alone:
// TraceConnectStart is the one place where the attempt's context can be marked, and it puts the
// user's tracer in its own place before the connection reads it.
type connectAttempt struct {
	// Tracer is the user's. It is unused as long as pgx reads ConnConfig.Tracer after
	// TraceConnectStart.
	*multitracer.Tracer
	p      *pool
	user   pgx.QueryTracer
	config *pgx.ConnConfig
	dialer socket.Dialer
	ctx    context.Context // has the checkout's deadline, which recordBackend needs
	ended  func()          // for a background attempt: see backgroundDials
	began  time.Time       // when it had its permit, or zero
}

func (at *connectAttempt) init(p *pool, user pgx.QueryTracer) {
	at.p, at.user, at.Tracer = p, user, allOf(user)
}

var noTracer = new(multitracer.Tracer)

// allOf is user, which may be nil, as a tracer of everything.
func allOf(user pgx.QueryTracer) *multitracer.Tracer {
	if user == nil {
		return noTracer
	}
	return multitracer.New(user)
}

func (p *pool) beforeConnect(ctx context.Context, cfg *pgx.ConnConfig) error {
	c := p.checkoutAbove(ctx)
	if c.reclaims() {
		closes := ctx.Done()
		c.poolDone.Store(&closes)
		return errReclaimed // nothing is idle, and the checkout must not open anything
	}
	c.endArrival()
	cfg.Tracer = p.userTracer
	if p.user.BeforeConnect != nil {
		if err := p.user.BeforeConnect(ctx, cfg); err != nil {
			return err
		}
	}
	at := new(connectAttempt)
	at.init(p, cfg.Tracer)
	at.dialer.Dial = cfg.DialFunc
	// pgx opens for a caller with a context that has no deadline (it outlives the caller), and for
	// MinConns and MinIdleConns with one.
	_, background := ctx.Deadline()
	if !p.opts.PerCheckout {
		at.dialer.Open, at.dialer.OpenExtra = p.open, p.allot.OpenExtra
		if background {
			at.ended = p.background.begin()
			at.dialer.Open = p.backgroundOpener(at.ended)
		}
		at.dialer.Open = at.beginWith(at.dialer.Open)
	}
	if !background {
		p.saw(ctx)
	}
	cfg.DialFunc = at.dialer.DialContext
	cfg.Tracer = at
	if after := cfg.AfterNetConnect; after != nil {
		cfg.AfterNetConnect = func(
			ctx context.Context, config *pgconn.Config, nc net.Conn,
		) (net.Conn, error) {
			wrapped, err := after(ctx, config, nc)
			if err != nil {
				nc.Close() // pgx closes only what the hook returned
				if wrapped == nil {
					wrapped = nc
				}
			}
			return wrapped, err
		}
	}
	return nil
}

// TraceConnectStart is the door of a checkout that had its turn without waiting: AcquireTimeout
// becomes its deadline here. A checkout that had to wait for its turn keeps the deadline that it
// got then.
func (at *connectAttempt) TraceConnectStart(
	ctx context.Context, data pgx.TraceConnectStartData,
) context.Context {
	data.ConnConfig.Tracer = at.user
	at.config = data.ConnConfig
	if t, ok := at.user.(pgx.ConnectTracer); ok {
		ctx = t.TraceConnectStart(ctx, data)
	}
	if at.ended == nil && !at.p.opts.PerCheckout {
		ctx = at.p.allot.Bounded(ctx, nil)
	}
	if at.p.opts.PerCheckout {
		at.began = time.Now()
	}
	at.ctx = ctx
	return at.dialer.Begin(ctx)
}

func (at *connectAttempt) TraceConnectEnd(ctx context.Context, data pgx.TraceConnectEndData) {
	at.endDials(data)
	switch {
	case failed(data):
		if data.Err != nil { // else a hook panicked
			at.countOpen(data.Err)
		}
		if at.ended != nil {
			at.ended()
		}
	default:
		data.Conn.PgConn().CustomData()[attemptData] = at // for afterConnect
	}
	if t, ok := at.user.(pgx.ConnectTracer); ok {
		t.TraceConnectEnd(ctx, data)
	}
}

// endDials ends the attempt of the dialer. The socket that came of it learns whose it is. The
// configuration gets the pool's tracer back: pgx has read it, and shows it in Config, by which
// users open connections by hand.
func (at *connectAttempt) endDials(data pgx.TraceConnectEndData) {
	if failed(data) {
		at.dialer.Fail()
		return
	}
	pc := data.Conn.PgConn()
	own := socket.Of(pc.Conn())
	if l := at.dialer.End(own); l != nil {
		if own == nil {
			pc.CustomData()[customData] = l
		}
		l.Opened(pc)
	}
	at.config.Tracer = at.p.tracer
}

// failed reports whether no connection came of an attempt: also if a hook panicked.
func failed(data pgx.TraceConnectEndData) bool {
	return data.Err != nil || data.Conn == nil || data.Conn.PgConn() == nil
}

const attemptData = customData + "/attempt"

// beginWith is open, and notes when the attempt has its permit: the time before is a wait.
func (at *connectAttempt) beginWith(
	open func(context.Context) (*allotment.Slot, error),
) func(context.Context) (*allotment.Slot, error) {
	return func(ctx context.Context) (*allotment.Slot, error) {
		slot, err := open(ctx)
		if err == nil && at.began.IsZero() {
			at.began = time.Now()
		}
		return slot, err
	}
}

// countOpen counts the attempt, which ends now, unless it never had a permit to dial under.
func (at *connectAttempt) countOpen(err error) {
	if !at.began.IsZero() {
		at.p.allot.CountOpen(at.began, err)
	}
}

func (at *connectAttempt) recordBackend(slot *allotment.Slot, pc *pgconn.PgConn) error {
	if slot == nil {
		return errUntracked
	}
	return backend.Record(at.ctx, at.p.allot, slot, pc)
}

// refusalTimeout is how long a refused background attempt keeps its refusal to itself.
const refusalTimeout = time.Second

// backgroundOpener returns how a background attempt gets its permit.
//
// pgx opens several at a time, and cancels them all when the first one fails. A refusal comes at
// once, so it would undo those that did get a permit: it waits for them.
func (p *pool) backgroundOpener(ended func()) func(context.Context) (*allotment.Slot, error) {
	var refusal error
	return func(ctx context.Context) (*allotment.Slot, error) {
		if refusal != nil {
			return nil, refusal // the next host of the same attempt
		}
		var slot *allotment.Slot
		if slot, refusal = p.openBackground(ctx); refusal != nil {
			ended()
			ctx, cancel := context.WithTimeout(ctx, refusalTimeout)
			defer cancel()
			p.background.wait(ctx)
		}
		return slot, refusal
	}
}

// backgroundDials counts background attempts that are under way.
type backgroundDials struct {
	mu   sync.Mutex
	n    int           // guarded by mu
	none chan struct{} // closed when n falls to zero; guarded by mu
}

// begin counts one more, and returns how to end it, once or more.
func (b *backgroundDials) begin() (end func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.n++; b.n == 1 {
		b.none = make(chan struct{})
	}
	return sync.OnceFunc(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.n--; b.n == 0 {
			close(b.none)
		}
	})
}

// wait returns when none is under way.
func (b *backgroundDials) wait(ctx context.Context) {
	b.mu.Lock()
	none, n := b.none, b.n
	b.mu.Unlock()
	if n == 0 {
		return
	}
	select {
	case <-none:
	case <-ctx.Done():
	}
}

// open takes a permit for a caller that has a turn. It waits at most for a connection to end, or
// its pool's Close: nothing else cancels ctx, which is puddle's. A timeout of the connect shows as
// a timeout.
func (p *pool) open(ctx context.Context) (*allotment.Slot, error) {
	slot, err := p.allot.OpenWithin(ctx)
	p.allot.EndWait(ctx)
	if err == nil {
		return slot, nil
	}
	known := p.known.Load()
	if known != nil && (errors.Is(err, allotment.ErrPoolClosed) || ctx.Err() == context.Canceled) {
		err = fmt.Errorf("passbuddy: while waiting for a connection permit: %w",
			errClosedPool(known))
	}
	return nil, err
}

// openBackground takes a permit that nobody waits for, or none.
//
// pgx answers a refusal by not ending idle connections that are past MaxConnIdleTime, not until the
// wish for MinConns is fulfilled. At capacity that can be never, so they are ended here.
func (p *pool) openBackground(ctx context.Context) (*allotment.Slot, error) {
	slot, err := p.allot.OpenBackground(ctx)
	if err != nil {
		closeInPlace(p.allot.SweepIdle(p.user.MaxConnIdleTime, int(p.user.MinConns))...)
		return nil, fmt.Errorf("pgxpool: a background connection: %w", err)
	}
	return slot, nil
}

var errUntracked = errors.New("pgxpool: bug: a connection was opened without a permit")

func (p *pool) afterConnect(ctx context.Context, conn *pgx.Conn) (err error) {
	l := linkOf(conn)
	data := conn.PgConn().CustomData()
	at, ok := data[attemptData].(*connectAttempt)
	if l == nil || p.opts.Fence && !ok {
		return errUntracked
	}
	if ok {
		delete(data, attemptData)
		defer func() { at.countOpen(err) }()
		if at.ended != nil {
			defer at.ended()
		}
	}
	if p.opts.Fence {
		// Before anything else: until it is recorded, nobody else can end it.
		if err := at.recordBackend(l.Slot(), conn.PgConn()); err != nil {
			return err // pgx closes it
		}
	}
	if p.user.AfterConnect != nil {
		if err := p.user.AfterConnect(ctx, conn); err != nil {
			return err // pgx closes it
		}
	}
	if slot := l.Slot(); slot != nil {
		slot.Ready()
	}
	return nil
}

func (p *pool) beforeClose(conn *pgx.Conn) {
	if p.user.BeforeClose != nil {
		p.user.BeforeClose(conn)
	}
	if taken(conn) {
		return // nothing ends but what the pool has of it
	}
	if l := linkOf(conn); l != nil {
		if slot := l.Slot(); slot != nil {
			slot.Leave()
		}
		l.Leaving()
	}
	if p.session != nil {
		p.endWithin(conn)
	}
}
