package passbuddy

import (
	"context"
	"reflect"
	"sync"
	"time"
)

// refusals remembers for a moment why checkouts were refused, by their context. See resetCheckout.
type refusals struct {
	mu   sync.Mutex
	list []refusal
}

type refusal struct {
	ctx context.Context
	err error
	at  time.Time
}

const (
	refusalsMost = 64
	refusalKept  = time.Second
)

func (r *refusals) add(ctx context.Context, err error) {
	if !reflect.ValueOf(ctx).Comparable() {
		return // the caller waits again
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 0 {
		time.AfterFunc(refusalKept, r.forget)
	}
	if len(r.list) == refusalsMost {
		r.list = append(r.list[:0], r.list[1:]...)
	}
	r.list = append(r.list, refusal{ctx, err, time.Now()})
}

// of returns why ctx was refused just now, or nil.
func (r *refusals) of(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 0 || !reflect.ValueOf(ctx).Comparable() {
		return nil
	}
	for _, known := range r.list {
		if known.ctx == ctx && time.Since(known.at) < refusalKept {
			return known.err
		}
	}
	return nil
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
