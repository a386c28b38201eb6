package socket_test

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/internal/socket"
	"github.com/passbuddy/passbuddy/semaphore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fleet is a fleet without Redis. The allotment uses its FallbackConns, so it needs no engine.
type fleet struct{}

func (fleet) Ask(int)                                     {}
func (fleet) Give(*engine.Permit)                         {}
func (fleet) Offer(int)                                   {}
func (fleet) Moved(time.Duration)                         {}
func (fleet) Stay(bool)                                   {}
func (fleet) Full() bool                                  { return true }
func (fleet) Err() error                                  { return semaphore.ErrUnavailable }
func (fleet) Try(context.Context) (*engine.Permit, error) { return nil, semaphore.ErrUnavailable }
func (fleet) Close()                                      {}
func (fleet) AtCapacity() error                           { return semaphore.ErrCapacity }
func (fleet) Evict() bool                                 { return false }
func (fleet) Abort(c *allotment.Slot)                     { c.Attached().(*socket.Link).Abort() }

func (fleet) RecordBackend(*engine.Permit, string) func(context.Context) error { return nil }
func (fleet) ClearBackend(*engine.Permit) func(context.Context) error          { return nil }

// one returns an allotment that may hold one connection, and a caller that has the turn for it.
func one(t *testing.T) *allotment.Allotment {
	t.Helper()
	a := allotment.New(fleet{}, allotment.Options{AcquireTimeout: 10 * time.Second,
		FallbackConns: 1})
	a.Attach(fleet{})
	if _, err := a.Enter(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	return a
}

// server accepts connections and hands its ends to the test.
func server(t *testing.T) (addr string, accepted chan *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted = make(chan *net.TCPConn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- nc.(*net.TCPConn)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String(), accepted
}

func dialer(a *allotment.Allotment) *socket.Dialer {
	return &socket.Dialer{Dial: (&net.Dialer{}).DialContext, Open: a.Open}
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestPermitFollowsServersEnd: Close returns at once, half-closes, and gives the permit back only
// when the server closes.
func TestPermitFollowsServersEnd(t *testing.T) {
	a := one(t)
	addr, accepted := server(t)
	d := dialer(a)
	ctx := d.Begin(context.Background())
	nc := must(d.DialContext(ctx, "tcp", addr))(t)
	far := <-accepted
	l := d.End(nil)
	l.Slot().Ready()
	l.Slot().CheckOut()

	reading := make(chan error)
	go func() { _, err := nc.Read(make([]byte, 1)); reading <- err }()
	if err := nc.SetDeadline(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := nc.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-reading; !errors.Is(err, net.ErrClosed) {
		t.Error("the reader was told: ", err)
	}
	for name, err := range map[string]error{
		"SetDeadline":      nc.SetDeadline(time.Unix(1, 0)),
		"SetReadDeadline":  nc.SetReadDeadline(time.Unix(1, 0)),
		"SetWriteDeadline": nc.SetWriteDeadline(time.Unix(1, 0)),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if _, err := nc.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Error("the server did not see the half-close: ", err)
	}
	if got := a.Figures(); got.Leaving != 1 || got.Turns != 0 || got.Owned != 1 {
		t.Errorf("before the server's end: %+v", got)
	}
	// The drain reads what the server still sends, here more than any buffer holds.
	if _, err := far.Write(make([]byte, 64<<20)); err != nil {
		t.Error(err)
	}
	select {
	case <-l.Gone():
		t.Error("Gone was closed before the server's end")
	default:
	}
	far.Close()
	<-l.Gone()
	waitFor(t, func() bool { return a.Figures() == allotment.Figures{} })
}

func waitFor(t *testing.T, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("not within 10s")
		}
	}
}

// TestDropped: a socket without references is closed.
func TestDropped(t *testing.T) {
	a := one(t)
	addr, accepted := server(t)
	l := func() *socket.Link {
		d := dialer(a)
		_ = must(d.DialContext(d.Begin(context.Background()), "tcp", addr))(t)
		return d.End(nil)
	}()
	far := <-accepted
	far.Close()
	waitFor(t, func() bool { runtime.GC(); return l.Closed() })
	<-l.Gone()
	waitFor(t, func() bool { return a.Figures().Leaving == 0 })
	a.Exit()
}

// TestAbortCancels: Abort cancels the query of a busy backend, which does not notice that its
// client has gone.
func TestAbortCancels(t *testing.T) {
	a := one(t)
	addr, accepted := server(t)
	d := dialer(a)
	must(d.DialContext(d.Begin(context.Background()), "tcp", addr))(t)
	far := <-accepted
	l := d.End(nil)
	cancels := 0
	l.SetCancel(func(context.Context) error {
		if cancels++; cancels == 2 { // the first one met another statement
			far.Close()
		}
		return nil
	})
	l.Abort()
	if cancels < 2 {
		t.Errorf("%d cancel requests", cancels)
	}
	waitFor(t, func() bool { return a.Figures().Leaving == 0 })
	a.Exit()
}

// TestBindAfterTheEnd: a permit arrives at a socket that is already closed (PerCheckout).
func TestBindAfterTheEnd(t *testing.T) {
	a := one(t)
	addr, accepted := server(t)
	nc := must(net.Dial("tcp", addr))(t)
	(<-accepted).Close()
	s := socket.Wrap(nc)
	s.Close()
	<-s.Link().Gone()
	c := must(a.Open(context.Background()))(t)
	c.CheckOut()
	s.Link().Bind(c)
	if got := a.Figures(); got != (allotment.Figures{}) {
		t.Errorf("%+v, want no permit", got)
	}
}

// TestMemory measures what an idle connection costs beyond the driver's own memory.
func TestMemory(t *testing.T) {
	const n = 2000
	a := make([]net.Conn, n)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	inner := &net.TCPConn{}
	for i := range a {
		a[i] = socket.Wrap(inner)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := int64(after.HeapAlloc-before.HeapAlloc) / n
	t.Logf("%d bytes for each", per)
	// Goroutines of earlier tests may still be about to end.
	if more := runtime.NumGoroutine() - goroutines; per > 512 || more >= n/2 {
		t.Errorf("%d bytes for each connection, %d goroutines", per, more)
	}
	for _, c := range a {
		c.Close()
	}
	for _, c := range a {
		<-socket.Of(c).Gone()
	}
}
