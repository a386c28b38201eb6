package passbuddy

import (
	"bytes"
	"context"
	"reflect"
	"runtime"
	"sync"
	"time"
)

// refusals remembers for a moment why checkouts were refused, so that database/sql's retries of the same checkout are refused
// without another wait, and the last one with the reason. See resetCheckout.
//
// The context alone does not name a checkout: many have context.Background. The goroutine does, as database/sql
// retries on its caller's; the context is compared too, lest something is left over from a checkout that ended otherwise.
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
	refusalsMost = 64
	refusalKept  = time.Second
)

func (r *refusals) add(ctx context.Context, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 0 {
		time.AfterFunc(refusalKept, r.forget)
	}
	if len(r.list) == refusalsMost {
		r.list = append(r.list[:0], r.list[1:]...)
	}
	r.list = append(r.list, refusal{goroutine: goroutine(), ctx: ctx, err: err, at: time.Now()})
}

// retries is how often database/sql tries a checkout again that was refused with ErrBadConn: once more
// with an idle connection, then with a new one.
const retries = 2

// of returns why this checkout was refused just now, or nil. With last, it will not be tried again.
func (r *refusals) of(ctx context.Context, last bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.find(ctx)
	if i < 0 {
		return nil
	}
	err := r.list[i].err
	if last {
		r.list = append(r.list[:i], r.list[i+1:]...)
	}
	return err
}

// again is of for a retry, and reports whether it is the last.
func (r *refusals) again(ctx context.Context) (err error, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.find(ctx)
	if i < 0 {
		return nil, false
	}
	known := &r.list[i]
	known.tries++
	err, last = known.err, known.tries >= retries
	if last {
		r.list = append(r.list[:i], r.list[i+1:]...)
	}
	return err, last
}

// find needs mu. It returns -1 if this checkout was not refused.
func (r *refusals) find(ctx context.Context) int {
	if len(r.list) == 0 {
		return -1
	}
	me := goroutine()
	for i, known := range r.list {
		if known.goroutine == me && sameContext(known.ctx, ctx) && time.Since(known.at) < refusalKept {
			return i
		}
	}
	return -1
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
