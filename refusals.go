package passbuddy

import (
	"bytes"
	"context"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"time"
)

// refusals remembers for a moment why checkouts were refused. database/sql's retries of the same
// checkout are then refused without another wait, and the last one with the reason. See
// resetCheckout.
//
// The context alone does not name a checkout: many have context.Background. The goroutine does,
// since database/sql retries on its caller's. The context is compared too, in case a refusal is
// left over from a checkout that ended otherwise.
type refusals struct {
	mu   sync.Mutex
	list []refusal
}

type refusal struct {
	goroutine string
	ctx       context.Context
	err       error
	at        time.Time
	tries     int // how often database/sql has tried again
}

const (
	maxRefusals = 64
	refusalKept = time.Second
)

func (r *refusals) add(ctx context.Context, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 0 {
		time.AfterFunc(refusalKept, r.forget)
	}
	if len(r.list) == maxRefusals {
		r.list = slices.Delete(r.list, 0, 1)
	}
	known := refusal{goroutine: goroutine(), ctx: ctx, err: err, at: time.Now()}
	r.list = append(r.list, known)
}

// retries is how often database/sql tries a checkout again that was refused with ErrBadConn: once
// more with an idle connection, then with a new one.
const retries = 2

// again is called when a checkout is tried. It returns why that was refused just now, or nil, and
// whether this try is the last: the refusal is then forgotten. A try by Connect is the last for
// sure.
func (r *refusals) again(ctx context.Context, byConnect bool) (err error, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 0 {
		return nil, false
	}
	me := goroutine()
	i := slices.IndexFunc(r.list, func(known refusal) bool {
		return known.goroutine == me && sameContext(known.ctx, ctx) &&
			time.Since(known.at) < refusalKept
	})
	if i < 0 {
		return nil, false
	}
	known := &r.list[i]
	known.tries++
	err, last = known.err, byConnect || known.tries >= retries
	if last {
		r.list = slices.Delete(r.list, i, i+1)
	}
	return err, last
}

// sameContext compares contexts, of which some cannot be compared.
func sameContext(a, b context.Context) bool {
	return !reflect.ValueOf(a).Comparable() || !reflect.ValueOf(b).Comparable() || a == b
}

// goroutine names the running goroutine.
func goroutine() string {
	var buf [64]byte
	b := buf[:runtime.Stack(buf[:], false)]
	if i := bytes.IndexByte(b, '['); i > 0 {
		b = b[:i] // "goroutine 18 "
	}
	return string(b)
}

// forget drops what is too old, so that no context is kept alive for longer.
func (r *refusals) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.list) > 0 && time.Since(r.list[0].at) >= refusalKept {
		r.list[0] = refusal{}
		r.list = r.list[1:]
	}
	if len(r.list) > 0 {
		time.AfterFunc(refusalKept, r.forget)
	}
}
