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

	"github.com/passbuddy/passbuddy/internal/socket"
	"github.com/passbuddy/passbuddy/semaphore"
)

func fakePG(t *testing.T, onQuery func(b *pgproto3.Backend)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				b := pgproto3.NewBackend(nc, nc)
				m, err := b.ReceiveStartupMessage()
				if err != nil {
					return
				}
				if _, ok := m.(*pgproto3.StartupMessage); !ok {
					return
				}
				b.Send(&pgproto3.AuthenticationOk{})
				b.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}})
				b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
				b.Flush()
				for {
					m, err := b.Receive()
					if err != nil {
						return
					}
					if _, ok := m.(*pgproto3.Query); ok {
						onQuery(b)
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

func connectFake(t *testing.T, addr string) (*pgx.Conn, *socket.Link) {
	host, port, _ := net.SplitHostPort(addr)
	cfg, err := pgx.ParseConfig("host=" + host + " port=" + port + " user=x dbname=x sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	var link *socket.Link
	cfg.DialFunc = func(ctx context.Context, n, a string) (net.Conn, error) {
		nc, err := (&net.Dialer{}).DialContext(ctx, n, a)
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

// CopyFrom on a connection that was ended under it leaves its reader alone once it has returned: a
// user who tries again with the same file would lose what is read besides.
func TestCopyFromOfAnEndedConnection(t *testing.T) {
	addr := fakePG(t, func(b *pgproto3.Backend) {
		b.Send(&pgproto3.CopyInResponse{})
		b.Flush()
	})
	c, l := connectFake(t, addr)
	src := new(endless)
	go func() { time.Sleep(100 * time.Millisecond); l.AbortFor(semaphore.ErrLost) }()
	if _, err := c.PgConn().CopyFrom(context.Background(), src, "copy t from stdin"); !errors.Is(err, semaphore.ErrLost) {
		t.Errorf("CopyFrom: %v, want ErrLost", err)
	}
	n := src.reads.Load()
	time.Sleep(500 * time.Millisecond)
	if m := src.reads.Load(); m > n+1 {
		t.Errorf("CopyFrom has returned, and its reader is still read: %d times more in 500ms", m-n)
	}
	<-l.Gone()
}
