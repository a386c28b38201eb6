package bubble

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// A SlowLink is a network with a delay. Bytes of one connection stay in order.
type SlowLink struct {
	redis *miniredis.Miniredis

	mu    sync.Mutex
	delay func() time.Duration // each way
	// holes is how many connections, counted from the first, lose their bytes.
	holes int
	conns int // opened so far
}

// SlowLink returns a network with that delay each way.
func (w *World) SlowLink(delay func() time.Duration) *SlowLink {
	return &SlowLink{redis: w.Redis, delay: delay}
}

// Always returns a delay of d.
func Always(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// About returns a delay of d, plus or minus up to a half.
func About(d time.Duration) func() time.Duration {
	return func() time.Duration { return d/2 + rand.N(d) }
}

// SetDelay sets the delay of the bytes sent from now on.
func (l *SlowLink) SetDelay(delay func() time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = delay
}

// Forget silently loses all bytes of the connections that are open now.
func (l *SlowLink) Forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holes = l.conns
}

// Silence loses all bytes that are sent. After Silence(false), only connections that were open
// before it work again.
func (l *SlowLink) Silence(yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holes = l.conns
	if yes {
		l.holes = 1 << 30
	}
}

// Heal ends Forget and Silence, for open connections too.
func (l *SlowLink) Heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holes = 0
}

// Dial is a redis.Options.Dialer.
func (l *SlowLink) Dial(context.Context, string, string) (net.Conn, error) {
	server, err := l.redis.Dial()
	if err != nil {
		return nil, err
	}
	ours, theirs := net.Pipe()
	l.mu.Lock()
	l.conns++
	number := l.conns
	l.mu.Unlock()
	go l.pump(number, server, theirs)
	go l.pump(number, theirs, server)
	return ours, nil
}

// pump copies the bytes that a connection sends one way.
func (l *SlowLink) pump(number int, to, from net.Conn) {
	type piece struct {
		b  []byte
		at time.Time
	}
	pieces := make(chan piece, 1000)
	go func() {
		defer to.Close()
		for p := range pieces {
			time.Sleep(time.Until(p.at))
			l.mu.Lock()
			gone := number <= l.holes
			l.mu.Unlock()
			if gone {
				continue
			}
			if _, err := to.Write(p.b); err != nil {
				_ = from.Close()
			}
		}
	}()
	defer close(pieces)
	for {
		b := make([]byte, 64<<10)
		n, err := from.Read(b)
		if err != nil {
			return
		}
		l.mu.Lock()
		d := l.delay()
		l.mu.Unlock()
		pieces <- piece{b[:n], time.Now().Add(d)}
	}
}
