package pgxpool

import (
	"context"
	"sync/atomic"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// checkout is the context of one checkout. Our hooks use it to tell each other, through pgx, what
// only they know. It is the context that TraceAcquireStart returns. The pool passes it to
// ShouldPing, PrepareConn and TraceAcquireEnd as it is, and to BeforeConnect as the parent of
// another.
//
// A warm checkout of PerConnection has none: it keeps its caller's own context, and allocates
// nothing. A nil checkout stands for that.
//
// The deadline that AcquireTimeout sets, and the channel that tells of the pool's Close, travel in
// the embedded context: see allotment.Bounded.
type checkout struct {
	context.Context // the caller's

	pool *pool // a hook may use its context for a checkout of another pool, which ignores ours

	// err, if not nil, is why the checkout got no turn. The context is then done, with err as its
	// error, and pgx returns that to the caller before it does anything else.
	err error

	// slot is the checkout's permit in PerCheckout; nil without a turn, and in PerConnection.
	slot *allotment.Slot

	// byHand is the attempt to connect, where no pool makes it but a user.
	byHand *byHand

	// poolDone points to the Done channel of puddle's context, where a checkout that reclaims has
	// got as far as BeforeConnect.
	poolDone atomic.Pointer[<-chan struct{}]

	// arriving: the turn came with a return, and the caller is counted among the arrivals until it
	// has a connection, opens one, or gives up.
	arriving atomic.Bool

	purpose purpose
	evicted bool // evictIdle: its connection was found
}

// purpose says what a checkout is for.
type purpose uint8

const (
	// useConn: a caller is to use the connection.
	useConn purpose = iota
	// askServer: we end backends of other processes, or look for them. The user's hooks are spared
	// such a checkout, as far as pgx tells it from others: those of its release see it, and Stat
	// counts it. The engine bounds its wait.
	askServer
	// evictIdle: we end an idle connection, and the checkout is refused.
	evictIdle
	// seeClose: we look for the Close of the pool, and the checkout is refused.
	seeClose
)

func (c *checkout) asksServer() bool { return c != nil && c.purpose == askServer }
func (c *checkout) reclaims() bool   { return c != nil && c.purpose >= evictIdle }

// endWait tells the observer how long the checkout has waited. A nil one has not.
func (c *checkout) endWait() {
	if c != nil {
		c.pool.allot.EndWait(c.Context)
	}
}

type checkoutKey struct{}

// Value lets BeforeConnect find the checkout above the context that it gets.
func (c *checkout) Value(key any) any {
	if key == (checkoutKey{}) {
		return c
	}
	return c.Context.Value(key)
}

func (c *checkout) Done() <-chan struct{} {
	if c.err != nil {
		return done
	}
	return c.Context.Done()
}

func (c *checkout) Err() error {
	if c.err != nil {
		return c.err
	}
	return c.Context.Err()
}

var done = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// checkoutOf is the checkout that ctx is, or nil.
func (p *pool) checkoutOf(ctx context.Context) *checkout {
	if c, ok := ctx.(*checkout); ok && c.pool == p {
		return c
	}
	return nil
}

// checkoutAbove is the checkout that ctx descends from, or nil.
func (p *pool) checkoutAbove(ctx context.Context) *checkout {
	if c, ok := ctx.Value(checkoutKey{}).(*checkout); ok && c.pool == p {
		return c
	}
	return nil
}

// withCheckout returns ctx if it is a checkout of ours already, and else a caller's. A caller's ctx
// can itself be the checkout of a hook that checks another connection out.
func (p *pool) withCheckout(ctx context.Context) *checkout {
	if c := p.checkoutOf(ctx); c != nil && c.purpose != useConn {
		return c
	}
	return &checkout{Context: ctx, pool: p}
}

// refuse returns the context of a checkout that got no turn.
func (p *pool) refuse(ctx context.Context, err error) context.Context {
	c := p.withCheckout(ctx)
	c.err = err
	return c
}
