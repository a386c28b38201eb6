package proxy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/fakepg"
)

// A proxy that is stopped lets connections end, and begins none.
func TestStopWaitsForConnections(t *testing.T) {
	t.Parallel()
	p := start(t, fake(t, &fakepg.Server{}), 1)
	conn := p.mustConnect()
	waiting := make(chan error, 1)
	go func() {
		_, err := p.connect(context.Background())
		waiting <- err
	}()
	p.settles(1, 1)
	silent := p.dial()
	eventually(t, patience, func() (bool, string) {
		return p.s.clients.Load() == 3, "the silent client was not accepted"
	})
	p.stop()
	refusedWith(t, <-waiting, cannotConnectNow)
	refusedRaw(t, silent, cannotConnectNow)
	// A connection that comes while the listener closes is reset.
	eventually(t, patience, func() (bool, string) {
		_, err := p.connect(t.Context())
		if err == nil {
			t.Fatal("a new connection is served")
		}
		return errors.Is(err, syscall.ECONNREFUSED), fmt.Sprintf("a new connection: %v", err)
	})
	if err := conn.Ping(t.Context()); err != nil {
		t.Errorf("a connection that was there: %v", err)
	}
	_ = conn.Close(t.Context())
	if code := <-p.code; code != 0 {
		t.Errorf("exit code %d", code)
	}
	p.nothingLeft()
}

// Connections that do not end are cut, and their permits given back as their backends end.
func TestStopCutsConnections(t *testing.T) {
	p := start(t, fake(t, &fakepg.Server{}), 1,
		func(p *setup) { p.o.StopTimeout = 200 * time.Millisecond })
	p.mustConnect()
	p.stop()
	select {
	case code := <-p.code:
		if code != 1 {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	if out := p.log.String(); !strings.Contains(out, "1 connections were cut") {
		t.Errorf("the log: %s", out)
	}
	p.nothingLeft()
}

// nothingLeft fails if anything of the proxy's is left in Redis.
func (p *setup) nothingLeft() {
	p.t.Helper()
	for _, key := range p.redis.Keys() {
		if !strings.HasSuffix(key, ":meta") && !strings.HasSuffix(key, ":events") {
			p.t.Errorf("left in Redis: %q", p.redis.Keys())
		}
	}
}
