package allotment

import (
	"context"
	"time"
)

// waiter is a caller in one of the queues. slot and err are written under the lock before ready is
// closed, and read after.
type waiter struct {
	ready   chan struct{}
	claim   bool
	warm    bool            // see EnterPool
	urgent  bool            // see urgentKey
	closing <-chan struct{} // closed when the caller's pool is, or nil; see Bounded
	began   time.Time       // when it began to wait here
	queued  bool            // it has to wait, and the wait is not counted yet: see endWait
	wait    *wait           // of its checkout
	out     int             // how many connections were checked out when it began to wait here
	returns uint64          // slots.returns at that time: see explain
	slot    *Slot
	err     error
	ring[waiter]
}

func (a *Allotment) newWaiter(ctx context.Context) *waiter {
	w := &waiter{ready: make(chan struct{}), urgent: a.isUrgent(ctx)}
	if b, ok := ctx.Value(boundKey{a}).(*bound); ok {
		w.closing, w.wait = b.closing, &b.wait
	} else {
		w.wait = new(wait)
	}
	return w
}

// await waits until w is served, and reports whether it was. If not, cause is why ctx has ended, or
// nil if it was the timeout or the pool's close.
func (w *waiter) await(ctx context.Context, timeout <-chan time.Time) (served bool, cause error) {
	select {
	case <-w.ready:
		return true, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	case <-w.closing:
	case <-timeout:
	}
	return false, nil
}

// queue is a FIFO of waiters from which any can leave in constant time. init must precede its use.
type queue struct {
	ring[waiter]
	n int
}

// add puts w at the end, or at the head if it is urgent.
func (q *queue) add(w *waiter) {
	w.v = w
	if w.urgent {
		w.follow(&q.ring)
	} else {
		w.follow(q.prev)
	}
	q.n++
}

func (q *queue) pop() *waiter {
	w := q.next.v
	q.remove(w)
	return w
}

// withdraw takes w out, and reports false if it was served, or refused, already.
func (q *queue) withdraw(w *waiter) bool {
	if w.next == nil {
		return false
	}
	q.remove(w)
	return true
}

func (q *queue) remove(w *waiter) {
	w.unlink()
	q.n--
}

// ring is a link of a ring, or its head: the one with a nil v.
type ring[T any] struct {
	prev, next *ring[T] // nil: in no ring
	v          *T
}

func (r *ring[T]) init() { r.prev, r.next = r, r }

// follow puts r, which is in no ring, behind prev.
func (r *ring[T]) follow(prev *ring[T]) {
	r.prev, r.next = prev, prev.next
	prev.next, r.next.prev = r, r
}

// unlink takes r out of its ring, if it is in one.
func (r *ring[T]) unlink() {
	if r.next != nil {
		r.prev.next, r.next.prev = r.next, r.prev
		r.prev, r.next = nil, nil
	}
}
