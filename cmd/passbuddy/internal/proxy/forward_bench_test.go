package proxy

import (
	"context"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// BenchmarkThroughput moves the same data through the proxy and through a plain TCP forwarder, in
// turn. x-plain is the proxy's throughput, as a part of the forwarder's: 1 is as fast.
func BenchmarkThroughput(b *testing.B) {
	echo := raw(b, func(nc net.Conn) { _, _ = io.Copy(nc, nc) })
	for _, load := range []struct {
		name        string
		size, times int // of a message, and how often each connection sends one
	}{
		{"64B", 64, 500},
		{"8KiB", 8 << 10, 250},
		{"1MiB", 1 << 20, 8},
	} {
		b.Run(load.name, func(b *testing.B) {
			const conns = 8
			p := start(b, echo, conns, calm)
			through := func(addr string) func() time.Duration {
				var all []net.Conn
				for range conns {
					nc, err := net.Dial("tcp", addr)
					if err != nil {
						b.Fatal(err)
					}
					b.Cleanup(func() { _ = nc.Close() })
					exchange(b, nc, startupPacket("x"))
					all = append(all, nc)
				}
				return func() time.Duration {
					return round(b, all, load.size, load.times)
				}
			}
			compare(b, through(forwarder(b, echo)), through(p.addr))
			b.SetBytes(int64(2 * conns * load.size * load.times))
		})
	}
}

// BenchmarkPgbench is the same for pgbench's queries, without TLS.
func BenchmarkPgbench(b *testing.B) {
	pg, err := throwaway.StartPostgres(b.Context(), throwaway.PostgresOptions{})
	if err != nil {
		skipIfMissing(b, err)
	}
	b.Cleanup(func() { _ = pg.Stop() })
	pgbench := client(b, "pgbench")
	const clients, transactions = 8, 1000
	p := start(b, pg.Addr(), clients, calm)
	script := filepath.Join(b.TempDir(), "script")
	if err := os.WriteFile(script, []byte("select 1;\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	through := func(addr string) func() time.Duration {
		u, err := url.Parse(pg.URL())
		if err != nil {
			b.Fatal(err)
		}
		u.Host = addr
		return func() time.Duration {
			cmd := exec.Command(pgbench, "-n", "-c", strconv.Itoa(clients), "-j", "2",
				"-t", strconv.Itoa(transactions), "-f", script, u.String())
			out, err := cmd.CombinedOutput()
			tps := regexp.MustCompile(`tps = ([0-9.]+)`).FindSubmatch(out)
			if err != nil || tps == nil {
				b.Fatalf("pgbench: %v\n%s", err, out)
			}
			rate, _ := strconv.ParseFloat(string(tps[1]), 64)
			return time.Duration(float64(time.Second) / rate * clients * transactions)
		}
	}
	compare(b, through(forwarder(b, pg.Addr())), through(p.addr))
}

// calm is for a proxy under a load.
func calm(p *setup) { p.o.Verbose = false }

// compare runs rounds of both in turn, each time in the other order, and reports the median of the
// ratios: a round that the machine disturbs does not count for more than another.
func compare(b *testing.B, plain, proxied func() time.Duration) {
	b.Helper()
	plain()
	proxied()
	var ratios []float64
	for i := 0; b.Loop(); i++ {
		var p, q time.Duration
		if i%2 == 0 {
			p, q = plain(), proxied()
		} else {
			q, p = proxied(), plain()
		}
		ratios = append(ratios, p.Seconds()/q.Seconds())
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "x-plain")
}

// round sends messages over all connections at the same time, and waits for each to come back.
func round(b *testing.B, conns []net.Conn, size, times int) time.Duration {
	began := time.Now()
	var running sync.WaitGroup
	for _, nc := range conns {
		running.Go(func() {
			message := make([]byte, size)
			for range times {
				exchange(b, nc, message)
			}
		})
	}
	running.Wait()
	return time.Since(began)
}

// exchange sends a message and reads as much. A long one is read while it is sent.
func exchange(b *testing.B, nc net.Conn, message []byte) {
	sent := make(chan error, 1)
	send := func() { _, err := nc.Write(message); sent <- err }
	if len(message) > 64<<10 {
		go send()
	} else {
		send()
	}
	_, err := io.CopyN(io.Discard, nc, int64(len(message)))
	if e := <-sent; err == nil {
		err = e
	}
	if err != nil {
		b.Error(err)
	}
}

// forwarder is the plain rival: it counts nothing.
func forwarder(b *testing.B, to string) (addr string) {
	return raw(b, func(client net.Conn) {
		server, err := new(net.Dialer).DialContext(context.Background(), "tcp", to)
		if err != nil {
			b.Error(err)
			return
		}
		defer server.Close()
		go func() {
			_, _ = io.Copy(server, client)
			_ = server.(*net.TCPConn).CloseWrite()
		}()
		_, _ = io.Copy(client, server)
	})
}
