package bubble

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// A StallLink is a network that can stall: replies are held back and dials hang until it resumes,
// as in a black hole. Deadlines end both.
type StallLink struct {
	redis *miniredis.Miniredis

	mu      sync.Mutex
	conns   []net.Conn
	stalled bool
}

// StallLink returns a network without a fault.
func (w *World) StallLink() *StallLink { return &StallLink{redis: w.Redis} }

// Stall stalls the network, or resumes it.
func (l *StallLink) Stall(yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stalled = yes
}

func (l *StallLink) stands() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stalled
}

// Break ends all connections.
func (l *StallLink) Break() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

// Dialer returns a redis.Options.Dialer. A dial gives up after timeout.
func (l *StallLink) Dialer(
	timeout time.Duration,
) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		for began := time.Now(); l.stands(); time.Sleep(time.Millisecond) {
			if ctx.Err() != nil || time.Since(began) >= timeout {
				return nil, &net.OpError{Op: "dial", Err: timeoutError{}}
			}
		}
		c, err := l.redis.Dial()
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		l.conns = append(l.conns, c)
		l.mu.Unlock()
		return &stallConn{Conn: c, l: l}, nil
	}
}

type stallConn struct {
	net.Conn
	l *StallLink

	mu       sync.Mutex
	deadline time.Time
}

func (c *stallConn) SetDeadline(t time.Time) error {
	c.note(t)
	return c.Conn.SetDeadline(t)
}

func (c *stallConn) SetReadDeadline(t time.Time) error {
	c.note(t)
	return c.Conn.SetReadDeadline(t)
}

func (c *stallConn) note(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
}

func (c *stallConn) isLate() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.deadline.IsZero() && !time.Now().Before(c.deadline)
}

func (c *stallConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if errors.Is(err, io.ErrClosedPipe) {
		err = syscall.EPIPE // as TCP has it
	}
	return n, err
}

func (c *stallConn) Read(b []byte) (int, error) {
	for c.l.stands() {
		if c.isLate() {
			return 0, &net.OpError{Op: "read", Err: timeoutError{}}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return c.Conn.Read(b)
}

type timeoutError struct{}

func (timeoutError) Error() string   { return "i/o timeout" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }
