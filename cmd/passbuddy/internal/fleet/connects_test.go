package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

func discardReports() *json.Encoder { return json.NewEncoder(io.Discard) }

func TestConnectsAreCountedByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConnectCounter()
		broken := errors.New("nobody there")
		dial := c.dial(func(context.Context, string, string) (net.Conn, error) {
			return nil, broken
		})
		begin := time.Now()
		for _, wait := range []time.Duration{0, 10 * time.Millisecond, time.Second,
			2 * time.Second} {
			time.Sleep(wait)
			if _, err := dial(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, broken) {
				t.Fatalf("the dial's own error became %v", err)
			}
		}
		got := c.connects()
		if got.Total() != 4 {
			t.Errorf("%d connects, want 4, those that failed included", got.Total())
		}
		for _, want := range []struct {
			from, until time.Duration
			n           int64
		}{{0, time.Second, 2}, {time.Second, 2 * time.Second, 1}, {2 * time.Second, time.Hour, 1},
			{0, time.Hour, 4}, {4 * time.Second, time.Hour, 0}} {
			if n := got.Between(begin.Add(want.from), begin.Add(want.until)); n != want.n {
				t.Errorf("%d connects from %v to %v, want %d", n, want.from, want.until, want.n)
			}
		}
	})
}
