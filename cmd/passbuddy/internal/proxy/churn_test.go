package proxy

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// 10,000 connects and closes, of all kinds, leave no goroutine, no file, no permit and no request.
func TestManyConnectsLeaveNothing(t *testing.T) {
	const total, clients, capacity = 10_000, 32, 20
	if testing.Short() {
		t.Skip("-short: this connects for some seconds")
	}
	redis, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{})
	if err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = redis.Stop() })
	var backends, peak atomic.Int64
	to := raw(t, func(nc net.Conn) {
		if f, _ := readFirst(nc, time.Minute); f.kind == cancelRequest {
			return
		}
		n := backends.Add(1)
		defer backends.Add(-1)
		for most := peak.Load(); n > most && !peak.CompareAndSwap(most, n); most = peak.Load() {
		}
		_, _ = nc.Write([]byte("R"))
		_, _ = io.Copy(nc, nc)
	})
	p := start(t, to, capacity, func(p *setup) {
		p.url, p.o.Verbose = redis.URL(), false
		p.o.Wait = time.Minute
	})
	warm := func(n int) {
		var running sync.WaitGroup
		for c := range clients {
			running.Go(func() {
				for i := range n / clients {
					if err := p.oneConnect(c + i); err != nil {
						t.Errorf("connect: %v", err)
						return
					}
				}
			})
		}
		running.Wait()
		p.settles(0, 0)
	}
	warm(10 * clients)
	goroutines, files := leftNow()
	warm(total)
	eventually(t, patience, func() (bool, string) {
		g, f := leftNow()
		return g <= goroutines && f <= files, fmt.Sprintf(
			"%d goroutines and %d files, there were %d and %d", g, f, goroutines, files)
	})
	if f := p.s.ad.a.Figures(); f.Owned != 0 || f.Turns != 0 || f.Waiting != 0 || f.Leaving != 0 {
		t.Errorf("%+v", f)
	}
	if n := peak.Load(); n > capacity {
		t.Errorf("%d backends, capacity %d", n, capacity)
	} else if n < capacity/2 {
		t.Errorf("%d backends at the most, of %d", n, capacity)
	}
	if n := p.s.clients.Load(); n != 0 {
		t.Errorf("%d clients are counted", n)
	}
}

// oneConnect is one connection, which ends in one of five ways.
func (p *setup) oneConnect(i int) error {
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		return err
	}
	nc := conn.(*net.TCPConn)
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(time.Minute))
	switch i % 5 {
	case 0: // hangs up, perhaps while it waits
		_, err = nc.Write(startupPacket("x"))
		return err
	case 1: // a health check
		return nil
	case 2:
		if _, err = nc.Write(codePacket(codeCancel, "12345678")); err == nil {
			_, err = io.Copy(io.Discard, nc)
		}
		return err
	}
	if _, err := nc.Write(append(startupPacket("x"), "said too early"...)); err != nil {
		return err
	}
	if _, err := io.ReadFull(nc, make([]byte, 1+len("said too early"))); err != nil {
		return fmt.Errorf("after the startup: %w", err)
	}
	if i%5 == 3 { // dies
		return nc.SetLinger(0)
	}
	if _, err := nc.Write([]byte("hello")); err != nil {
		return err
	}
	if _, err := io.ReadFull(nc, make([]byte, 5)); err != nil {
		return fmt.Errorf("after hello: %w", err)
	}
	return nil
}

// leftNow counts the goroutines and the open files of this process. Those that
// only wait for the garbage collector do not count.
func leftNow() (goroutines, files int) {
	for range 3 { // a pool keeps what it has for two collections, and a finalizer runs after one
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	entries, _ := os.ReadDir("/proc/self/fd") // none elsewhere than on Linux
	return runtime.NumGoroutine(), len(entries)
}

// A limit on open files bounds the clients.
func TestLimitClients(t *testing.T) {
	files := maxFiles()
	if files == 0 {
		t.Skip("the limit on open files is unknown here")
	}
	o := Options{MaxClients: files}
	o.limitClients(slog.New(slog.DiscardHandler))
	if o.MaxClients*filesPerClient > files || o.MaxClients < 1 {
		t.Errorf("%d clients of %d files", o.MaxClients, files)
	}
	var none Options
	none.limitClients(slog.New(slog.DiscardHandler))
	if none.MaxClients < 1 || none.MaxClients > min(defaultMaxClients, o.MaxClients) {
		t.Errorf("%d clients by default", none.MaxClients)
	}
	few := Options{MaxClients: 1}
	few.limitClients(slog.New(slog.DiscardHandler))
	if few.MaxClients != 1 {
		t.Errorf("%d clients", few.MaxClients)
	}
}
