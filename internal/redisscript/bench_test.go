package redisscript

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// BenchmarkScriptTime measures what scripts cost the server by its own account, INFO commandstats,
// without the network.
func BenchmarkScriptTime(b *testing.B) {
	k := NewKeys("p-n")
	const capacity = 20
	s := "000000a0-0001-8010"
	id := func(pool string, n int) string { return fmt.Sprintf("%s-%s-%012x", s, pool, n) }
	var held []string
	for i := range capacity / 2 {
		held = append(held, id("8001", i))
	}
	x := message.Exchange{Session: s, TTLMillis: 60_000}
	plainly, shared := x, x
	plainly.Waits = []string{id(message.Plain, 99)}
	giveBack := x
	giveBack.Release = plainly.Waits
	shared.Requests = []message.Request{{Kind: message.Pool, Permits: message.Permits(60_000, id("8001", 99))}}
	dropped := x
	dropped.Drop = []string{message.Permits(60_000, id("8001", 99))}
	beat := message.Renewal{Session: s, TTLMillis: 60_000, Capacity: capacity, Info: "{}", NewEpoch: "e"}

	for _, c := range []struct {
		name   string
		script func(p *realServer, epoch string, expected int64) error
	}{
		{"plain acquire and release", func(p *realServer, epoch string, expected int64) error {
			return p.both(b, k, epoch, plainly, giveBack, expected)
		}},
		{"pool's acquire and release", func(p *realServer, epoch string, expected int64) error {
			return p.both(b, k, epoch, shared, dropped, expected)
		}},
		{"heartbeat of 10", func(p *realServer, epoch string, expected int64) error {
			n := beat
			n.Epoch, n.Expected, n.Permits, n.Pools = epoch, expected, held, []message.PoolReport{{Name: s + "-8001", Held: len(held)}}
			_, err := Renew(b.Context(), p.client, k, n)
			return err
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := newRealServer(b, k).(*realServer)
			got, err := p.joined(b, k, beat)
			if err != nil {
				b.Fatal(err)
			}
			_, err = Exchange(b.Context(), p.client, k, message.Exchange{Session: s, Epoch: got.Epoch, TTLMillis: 60_000, Requests: []message.Request{{Kind: message.Pool, Permits: message.Permits(60_000, held...)}}})
			if err != nil {
				b.Fatal(err)
			}
			expected := got.Now
			if err := p.client.ConfigResetStat(b.Context()).Err(); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for range b.N {
				if err := c.script(p, got.Epoch, expected); err != nil {
					b.Fatal(err)
				}
				expected = p.clock(b)
			}
			b.StopTimer()
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(p.scriptTime(b), "µs/script")
		})
	}
}

// joined joins, and waits until the session is not young any more: until then a pool of it is
// granted one permit at a time.
func (p *realServer) joined(b *testing.B, k Keys, join message.Renewal) (message.Renewed, error) {
	got, err := Renew(b.Context(), p.client, k, join)
	time.Sleep(200 * time.Millisecond)
	return got, err
}

func (p *realServer) both(b *testing.B, k Keys, epoch string, first, second message.Exchange, expected int64) error {
	first.Epoch, second.Epoch = epoch, epoch
	first.Expected, second.Expected = expected, expected
	got, err := Exchange(b.Context(), p.client, k, first)
	if err != nil {
		return err
	}
	if !got.All && len(got.Granted) == 0 {
		return fmt.Errorf("bug in the benchmark: not granted: %+v", got)
	}
	_, err = Exchange(b.Context(), p.client, k, second)
	return err
}

func (p *realServer) clock(b *testing.B) int64 {
	t, err := p.client.Time(b.Context()).Result()
	if err != nil {
		b.Fatal(err)
	}
	return t.UnixMilli()
}

// scriptTime returns the mean time of a script since the statistics were reset, in µs.
func (p *realServer) scriptTime(b *testing.B) (mean float64) {
	for line := range strings.Lines(p.client.Info(b.Context(), "commandstats").Val()) {
		var calls, total int64
		if _, err := fmt.Sscanf(line, "cmdstat_evalsha:calls=%d,usec=%d,usec_per_call=%f,", &calls, &total, &mean); err == nil {
			return mean
		}
	}
	b.Fatal("INFO commandstats shows no scripts")
	return 0
}
