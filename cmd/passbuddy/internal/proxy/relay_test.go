package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/semaphore"
)

// The permit comes before the dial, and goes with the backend: not with the client.
func TestPermitFollowsTheBackend(t *testing.T) {
	ends, left := make(chan struct{}), make(chan struct{})
	p := start(t, fake(t, &fakepg.Server{OnEnd: func() { close(left); <-ends }}), 5)
	conn := p.mustConnect()
	if held, _ := p.counts(); held != 1 {
		t.Errorf("%d held while connected", held)
	}
	if err := conn.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	_ = conn.Close(t.Context())
	<-left
	if held, _ := p.counts(); held != 1 {
		t.Errorf("%d held although the backend lives", held)
	}
	close(ends)
	p.settles(0, 0)
}

// A client that dies does not say goodbye.
func TestClientDies(t *testing.T) {
	p := start(t, fake(t, &fakepg.Server{}), 5)
	conn := p.mustConnect()
	nc := conn.PgConn().Conn().(*net.TCPConn)
	_ = nc.SetLinger(0)
	_ = nc.Close()
	p.settles(0, 0)
}

// Postgres ends the session: the client hears its last word.
func TestServerCloses(t *testing.T) {
	p := start(t, raw(t, func(nc net.Conn) {
		_, _ = readFirst(nc, time.Minute)
		_, _ = nc.Write([]byte("last word"))
	}), 5)
	nc := p.dial()
	_, _ = nc.Write(startupPacket("x"))
	if got := closes(t, nc); string(got) != "last word" {
		t.Errorf("%q", got)
	}
	// although the client has not closed yet
	p.settles(0, 0)
}

// A server that closes without an answer.
func TestServerSaysNothing(t *testing.T) {
	p := start(t, raw(t, func(nc net.Conn) { _, _ = readFirst(nc, time.Minute) }), 5)
	nc := p.dial()
	_, _ = nc.Write(startupPacket("x"))
	if got := closes(t, nc); len(got) > 0 {
		t.Errorf("%q", got)
	}
	p.settles(0, 0)
	if f := p.s.ad.a.Figures(); f.Turns != 0 || f.Owned != 0 {
		t.Errorf("%+v", f)
	}
}

// The client leaves before the server's first byte.
func TestClientLeavesBeforeTheAnswer(t *testing.T) {
	arrived, answer := make(chan struct{}), make(chan struct{})
	p := start(t, raw(t, func(nc net.Conn) {
		_, _ = readFirst(nc, time.Minute)
		close(arrived)
		<-answer
		_, _ = nc.Write([]byte("N"))
		_, _ = io.Copy(io.Discard, nc)
	}), 5)
	nc := p.dial()
	_, _ = nc.Write(startupPacket("x"))
	<-arrived
	_ = nc.Close()
	p.noticed()
	close(answer)
	p.settles(0, 0)
	if f := p.s.ad.a.Figures(); f.Turns != 0 || f.Owned != 0 {
		t.Errorf("%+v", f)
	}
}

// A backend that sends without an end to a client that has gone: the connection is reset.
func TestServerThatGoesOnSending(t *testing.T) {
	failed := make(chan error, 1)
	p := start(t, raw(t, func(nc net.Conn) {
		_, _ = readFirst(nc, time.Minute)
		b := make([]byte, 1<<20)
		for {
			if _, err := nc.Write(b); err != nil {
				failed <- err
				return
			}
		}
	}), 5)
	nc := p.dial()
	_, _ = nc.Write(startupPacket("x"))
	if _, err := io.ReadFull(nc, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	_ = nc.Close()
	select {
	case <-failed:
	case <-time.After(patience):
		t.Fatal("the server can still send")
	}
	p.settles(0, 0)
}

// A client that has said everything, and closes its sending side, still gets the answer. While it
// waits for a permit, that counts as leaving.
func TestHalfClose(t *testing.T) {
	p := start(t, raw(t, func(nc net.Conn) {
		_, _ = readFirst(nc, time.Minute)
		_, _ = nc.Write([]byte("R"))
		b, _ := io.ReadAll(nc)
		_, _ = nc.Write(b)
	}), 5)
	nc := p.dial()
	_, _ = nc.Write(startupPacket("x"))
	if _, err := io.ReadFull(nc, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_, _ = nc.Write([]byte("to be said"))
	_ = nc.CloseWrite()
	if got := closes(t, nc); string(got) != "to be said" {
		t.Errorf("%q", got)
	}
	p.settles(0, 0)
}

// Both ends are cut when the lease is lost.
func TestLostLease(t *testing.T) {
	p := start(t, fake(t, &fakepg.Server{}), 5, func(p *setup) { p.ttl = 2 * time.Second })
	conn := p.mustConnect()
	p.redis.SetError("LOADING")
	_ = conn.PgConn().Conn().SetReadDeadline(time.Now().Add(patience))
	var b [1]byte
	_, err := conn.PgConn().Conn().Read(b[:])
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the connection lives: %v", err)
	}
	eventually(t, patience, func() (bool, string) {
		f := p.s.ad.a.Figures()
		return f.Owned == 0 && f.Out == 0 && f.Leaving == 0, "the slot is there"
	})
	if !strings.Contains(p.log.String(), "lease") {
		t.Error("the log has no word of it")
	}
}

// A recall is paid by the next connection that ends, before a client that waits here.
func TestRecallIsHonoured(t *testing.T) {
	p := start(t, fake(t, &fakepg.Server{}), 2)
	first, second := p.mustConnect(), p.mustConnect()
	_ = second
	// Clients of the proxy queue first ...
	waiting := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		conn, err := p.connect(ctx)
		if err == nil {
			defer conn.Close(context.Background())
		}
		waiting <- err
	}()
	eventually(t, patience, func() (bool, string) {
		return p.clientsWaiting() == 1, "the client does not wait"
	})
	// ... and yet a process that holds nothing comes before a pool that holds two.
	other := p.other()
	granted := make(chan *semaphore.Permit, 1)
	go func() {
		permit, err := other.Acquire(t.Context())
		if err != nil {
			t.Error(err)
		}
		granted <- permit
	}()
	eventually(t, patience, func() (bool, string) {
		return p.s.ad.a.Figures().Owed == 1, "the proxy has heard of no recall"
	})
	_ = first.Close(t.Context())
	permit := <-granted
	select {
	case err := <-waiting:
		t.Fatalf("the proxy's client was served before: %v", err)
	default:
	}
	if err := permit.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Error(err)
	}
}
