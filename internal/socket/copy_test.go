package socket_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/internal/socket"
	"github.com/passbuddy/passbuddy/semaphore"
)

// connectFake connects over a socket of ours. Later sockets, of cancel requests, are plain.
func connectFake(t *testing.T, cfg *pgx.ConnConfig) (*pgx.Conn, *socket.Link) {
	t.Helper()
	var link *socket.Link
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := dial(ctx, network, addr)
		if err != nil || link != nil {
			return nc, err
		}
		s := socket.Wrap(nc)
		link = s.Link()
		return s, nil
	}
	c, err := pgx.ConnectConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c, link
}

type endless struct{ reads atomic.Int64 }

func (e *endless) Read(b []byte) (int, error) {
	e.reads.Add(1)
	time.Sleep(5 * time.Millisecond)
	b[0] = '\n'
	return 1, nil
}

// CopyFrom on a connection that we ended under it must not read its reader after it has returned. A
// user that tries again with the same file would lose that data.
func TestCopyFromOfAnEndedConnection(t *testing.T) {
	pg := &fakepg.Server{OnQuery: func(b *fakepg.Backend, _ string) {
		b.Send(&pgproto3.CopyInResponse{})
		_ = b.Flush()
	}}
	c, l := connectFake(t, pg.Listen(t))
	src := new(endless)
	go func() { time.Sleep(100 * time.Millisecond); l.AbortFor(semaphore.ErrLost) }()
	_, err := c.PgConn().CopyFrom(context.Background(), src, "copy t from stdin")
	if !errors.Is(err, semaphore.ErrLost) {
		t.Errorf("CopyFrom: %v, want ErrLost", err)
	}
	n := src.reads.Load()
	time.Sleep(500 * time.Millisecond)
	if m := src.reads.Load(); m > n+1 {
		t.Errorf("CopyFrom read its reader after it had returned: %d more in 500ms", m-n)
	}
	<-l.Gone()
}
