package allotment

// waiter is a caller in one of the queues. conn and err are written under the lock
// before ready is closed, and read after.
type waiter struct {
	ready      chan struct{}
	claim      bool
	warm       bool // see EnterPool
	urgent     bool // see urgentKey
	conn       *Conn
	err        error
	prev, next *waiter
}

// queue is a FIFO of waiters from which any can leave in constant time.
// The zero value is empty.
type queue struct {
	head, tail *waiter
	n          int
}

func (q *queue) len() int { return q.n }

func (q *queue) push(w *waiter) {
	w.prev = q.tail
	if q.tail == nil {
		q.head = w
	} else {
		q.tail.next = w
	}
	q.tail = w
	q.n++
}

func (q *queue) pushFront(w *waiter) {
	w.next = q.head
	if q.head == nil {
		q.tail = w
	} else {
		q.head.prev = w
	}
	q.head = w
	q.n++
}

func (q *queue) pop() *waiter {
	w := q.head
	q.remove(w)
	return w
}

func (q *queue) remove(w *waiter) {
	if w.prev == nil {
		q.head = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		q.tail = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next = nil, nil
	q.n--
}
