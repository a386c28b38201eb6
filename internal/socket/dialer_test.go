package socket_test

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/socket"
)

// TestNextTryWaitsForTheLast: one attempt holds at most one permit.
func TestNextTryWaitsForTheLast(t *testing.T) {
	a := one(t)
	addr, accepted := server(t)
	d := dialer(a)
	ctx := d.Begin(context.Background())
	first := must(d.DialContext(ctx, "tcp", addr))(t)
	far := <-accepted
	first.Close()
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := d.DialContext(short, "tcp", addr); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	far.Close()
	second := must(d.DialContext(ctx, "tcp", addr))(t)
	far = <-accepted
	if got := a.Figures(); got.Opening != 1 || got.Owned != 1 {
		t.Errorf("%+v, want 1 opening and 1 owned", got)
	}
	far.Close()
	d.Fail()
	waitFor(t, func() bool {
		return a.Figures() == allotment.Figures{Owned: 1, Spare: 1, Turns: 1} ||
			a.Figures().Opening == 0
	})
	_ = second
	a.Exit()
}

// TestSilentTryIsAbandoned: a server that never sent anything does not keep the attempt from
// dialling its next host.
func TestSilentTryIsAbandoned(t *testing.T) {
	a := one(t)
	addr, accepted := server(t)
	d := dialer(a)
	ctx := d.Begin(context.Background())
	first := must(d.DialContext(ctx, "tcp", addr))(t)
	silent := <-accepted
	first.Close()
	must(d.DialContext(ctx, "tcp", addr))(t)
	far := <-accepted
	<-socket.Of(first).Gone()
	// it was reset
	waitFor(t, func() bool { _, err := silent.Write([]byte("R")); return err != nil })
	if got := a.Figures(); got.Opening != 1 || got.Owned != 1 {
		t.Errorf("%+v, want 1 opening and 1 owned", got)
	}
	d.Fail()
	far.Close()
	waitFor(t, func() bool { return a.Figures().Leaving == 0 })
	a.Exit()
}

// TestTryThatSpokeIsWaitedFor: the server of such a try may have a session, which takes its own
// time to end.
func TestTryThatSpokeIsWaitedFor(t *testing.T) {
	a := one(t)
	addr, accepted := server(t)
	d := dialer(a)
	ctx := d.Begin(context.Background())
	first := must(d.DialContext(ctx, "tcp", addr))(t)
	far := <-accepted
	if _, err := far.Write([]byte("R")); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	first.Close()
	dialled := make(chan error)
	go func() {
		_, err := d.DialContext(ctx, "tcp", addr)
		dialled <- err
	}()
	select {
	case err := <-dialled:
		t.Error("dialled while the last try's backend may live: ", err)
	case <-time.After(200 * time.Millisecond):
	}
	far.Close()
	far = <-accepted
	if err := <-dialled; err != nil {
		t.Error(err)
	}
	d.Fail()
	far.Close()
	waitFor(t, func() bool { return a.Figures().Leaving == 0 })
	a.Exit()
}

// TestForgottenTryIsClosed: the driver dials again, and leaves its first socket open. The attempt
// ends with the last open socket, so End does not take a cancel request with the attempt's context
// for it.
func TestForgottenTryIsClosed(t *testing.T) {
	addr, accepted := server(t)
	d := &socket.Dialer{Dial: (&net.Dialer{}).DialContext,
		OpenExtra: func(context.Context) *allotment.Slot {
			return nil
		}}
	ctx := d.Begin(context.Background())
	var nets []net.Conn
	var fars []net.Conn
	for range 3 {
		nets = append(nets, must(d.DialContext(ctx, "tcp", addr))(t))
		fars = append(fars, <-accepted)
	}
	nets[2].Close() // the cancel request
	if own := d.End(socket.Wrap(&net.TCPConn{}).Link()); own != socket.Of(nets[1]) || own.Closed() {
		t.Error("the attempt did not end with the connection's socket")
	}
	if _, err := fars[0].Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the forgotten socket: %v", err)
	}
	nets[1].Close()
	for i, far := range fars {
		far.Close()
		<-socket.Of(nets[i]).Gone()
	}
}

// TestCancelRequestsTakeNone: cancel requests take no permit, whenever they come.
func TestCancelRequestsTakeNone(t *testing.T) {
	a := one(t)
	addr, accepted := server(t)
	d := dialer(a)
	ctx := d.Begin(context.Background())
	plain := func(ctx context.Context) {
		t.Helper()
		nc := must(d.DialContext(ctx, "tcp", addr))(t)
		(<-accepted).Close()
		nc.Close()
		if socket.Of(nc) != nil {
			t.Error("a cancel request was given a permit")
		}
	}
	plain(context.Background())
	nc := must(d.DialContext(ctx, "tcp", addr))(t)
	far := <-accepted
	plain(context.Background())
	plain(ctx)
	l := d.End(nil)
	plain(ctx)
	if socket.Of(nc) != l || l.Slot() == nil {
		t.Error("Of does not find the link")
	}
	far.Close()
	nc.Close()
	<-l.Gone()
	plain(context.Background())
	waitFor(t, func() bool { return a.Figures().Leaving == 0 })
	a.Exit()
}

func TestDialFails(t *testing.T) {
	a := one(t)
	d := &socket.Dialer{Open: a.Open,
		Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, syscall.ECONNREFUSED
		}}
	if _, err := d.DialContext(d.Begin(context.Background()), "tcp", "x"); !errors.Is(err,
		syscall.ECONNREFUSED) {
		t.Error(err)
	}
	if got := a.Figures(); got != (allotment.Figures{Owned: 1, Spare: 1, Turns: 1}) {
		t.Errorf("%+v, want one spare permit and one turn", got)
	}
	a.Exit()
}
