package bubble

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/alicebob/miniredis/v2"
)

// A Link is the network between one session and Redis.
type Link struct {
	redis *miniredis.Miniredis

	mu    sync.Mutex
	conns []net.Conn
	cut   bool
	deaf  bool
}

// Link returns a network without a fault.
func (w *World) Link() *Link { return &Link{redis: w.Redis} }

// Dial is a redis.Options.Dialer.
func (l *Link) Dial(context.Context, string, string) (net.Conn, error) {
	// This runs without l.mu: a goroutine that holds the server's lock may be waiting for l.mu.
	c, err := l.redis.Dial()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		_ = c.Close()
		return nil, errors.New("link is cut")
	}
	l.conns = append(l.conns, c)
	return &linkConn{Conn: c, l: l}, nil
}

// SetCut ends all connections and refuses new ones, or allows them again.
func (l *Link) SetCut(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		for _, c := range l.conns {
			_ = c.Close()
		}
		l.conns = nil
	}
}

// SetDeaf loses the replies to all requests, which still arrive, or stops that.
func (l *Link) SetDeaf(deaf bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deaf = deaf
}

type linkConn struct {
	net.Conn
	l *Link
}

func (c *linkConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		c.l.mu.Lock()
		deaf := c.l.deaf
		c.l.mu.Unlock()
		if !deaf || err != nil {
			return n, err
		}
	}
}
