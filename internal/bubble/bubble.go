// Package bubble runs tests in a bubble of fake time, with a Redis of their own and networks that
// can fail. A test that waits ten seconds takes none, and fake time shows whether a waiter polled
// or was pushed to. Only tests import it.
package bubble

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
)

// A World is one Redis, and any number of sessions that reach it over links.
type World struct {
	T     *testing.T
	Redis *miniredis.Miniredis
}

// Run runs f in a bubble with a Redis of its own.
func Run(t *testing.T, f func(t *testing.T, w *World)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &World{T: t, Redis: miniredis.NewMiniRedis()}
		t.Cleanup(func() {
			// go-redis's dialling goroutines check once a second whether their pool is closed.
			time.Sleep(2 * time.Second)
			w.Redis.Close()
		})
		f(t, w)
	})
}

// Answers has f see each command before Redis does, those of scripts included. f returns true if it
// has answered.
func (w *World) Answers(t *testing.T, f func(c *server.Peer, cmd string, args ...string) bool) {
	t.Helper()
	c, err := w.Redis.Dial() // The server exists only once a client has dialled.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	w.Redis.Server().SetPreHook(f)
}

// Client returns a client over a link of its own.
func (w *World) Client() (*redis.Client, *Link) {
	l := w.Link()
	c := redis.NewClient(&redis.Options{
		Addr: Addr, Dialer: l.Dial, Protocol: 2, DisableIdentity: true,
		ReadTimeout: 500 * time.Millisecond, DialerRetries: 1,
	})
	return c, l
}

// Addr is the address of a World's Redis. It is an IP literal: a name would be looked up outside of
// the bubble.
const Addr = "127.0.0.1:6379"

// Pending is a call under way.
type Pending[T any] struct {
	Done chan struct{} // closed at its end

	// Read once Done is closed.
	Result T
	Err    error
	Took   time.Duration
}

// Later starts a call, and returns once all goroutines of the bubble wait.
func Later[T any](call func() (T, error)) *Pending[T] {
	p := &Pending[T]{Done: make(chan struct{})}
	began := time.Now()
	go func() {
		defer close(p.Done)
		p.Result, p.Err = call()
		p.Took = time.Since(began)
	}()
	synctest.Wait()
	return p
}

// IsDone reports whether the call has ended.
func (p *Pending[T]) IsDone() bool {
	synctest.Wait()
	select {
	case <-p.Done:
		return true
	default:
		return false
	}
}
