package proxy

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/fakepg"
)

// All clients of a proxy are one pool of the fleet: a proxy with many clients gets no more than one
// with few that could use as much. If each client asked for itself, it would get ten times as much.
func TestClientsOfAProxyAreOnePool(t *testing.T) {
	const capacity = 4
	to := fake(t, &fakepg.Server{})
	quiet := func(p *setup) { p.o.Verbose = false }
	many := start(t, to, capacity, quiet)
	few := start(t, to, capacity, quiet, func(p *setup) { p.url = many.url })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const enough = 300 // sessions, however long they take
	var all atomic.Int64
	var running sync.WaitGroup
	load := func(p *setup, clients int) *atomic.Int64 {
		n := new(atomic.Int64)
		for range clients {
			running.Go(func() {
				for ctx.Err() == nil {
					conn, err := p.connect(ctx)
					if err != nil {
						if ctx.Err() == nil {
							t.Error(err)
						}
						return
					}
					time.Sleep(10 * time.Millisecond) // the client's work
					_ = conn.Close(context.Background())
					n.Add(1)
					if all.Add(1) == enough {
						cancel()
					}
				}
			})
		}
		return n
	}
	ofMany, ofFew := load(many, 20), load(few, 2)
	running.Wait()
	t.Logf("%d sessions of 20 clients, %d of 2", ofMany.Load(), ofFew.Load())
	if n := all.Load(); n < enough {
		t.Errorf("only %d sessions in a minute, want %d", n, enough)
	}
	if ofFew.Load() < ofMany.Load()/3 {
		t.Errorf("%d sessions of 20 clients, %d of 2", ofMany.Load(), ofFew.Load())
	}
	many.settles(0, 0)
}
