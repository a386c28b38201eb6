package fleet

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Connects counts the connects that a worker began, failed ones included, in bins of BinWidth from
// Since on.
type Connects struct {
	Since time.Time
	Bins  []int64 `json:",omitempty"`
}

// Between returns how many connects began in the bins that start at or after from, and before
// until.
func (c Connects) Between(from, until time.Time) (n int64) {
	for i, connects := range c.Bins {
		if at := c.Since.Add(time.Duration(i) * BinWidth); !at.Before(from) && at.Before(until) {
			n += connects
		}
	}
	return n
}

// Total returns the number of connects.
func (c Connects) Total() (n int64) {
	for _, connects := range c.Bins {
		n += connects
	}
	return n
}

// connectCounter counts a worker's connects in its pool's dial function, which both integrations
// have. The workers' servers speak no TLS, so a connect dials once.
type connectCounter struct {
	since time.Time

	mu   sync.Mutex
	bins []int64
}

func newConnectCounter() *connectCounter { return &connectCounter{since: time.Now()} }

// dial returns a function that counts each call of next.
func (c *connectCounter) dial(next pgconn.DialFunc) pgconn.DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c.note(time.Now())
		return next(ctx, network, addr)
	}
}

func (c *connectCounter) note(t time.Time) {
	bin := int(max(0, t.Sub(c.since)) / BinWidth)
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.bins) <= bin {
		c.bins = append(c.bins, 0)
	}
	c.bins[bin]++
}

func (c *connectCounter) connects() Connects {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Connects{Since: c.since.Round(0), Bins: append([]int64(nil), c.bins...)}
}
