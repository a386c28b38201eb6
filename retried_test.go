package passbuddy

import (
	"database/sql"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A statement whose connection is ended under it, because the lease is lost, is not tried again: the
// server may have executed it. Here its write takes so long that pgx reads in the background.
func TestEndedStatementIsNotRetried(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t)(l, err)
	defer l.Close()
	var executed atomic.Int32
	got := make(chan struct{}, 10)
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				b := pgproto3.NewBackend(nc, nc)
				if m, err := b.ReceiveStartupMessage(); err != nil {
					return
				} else if _, ok := m.(*pgproto3.StartupMessage); !ok {
					return
				}
				b.Send(&pgproto3.AuthenticationOk{})
				b.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}})
				b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
				_ = b.Flush()
				time.Sleep(100 * time.Millisecond) // a network of some length
				for {
					m, err := b.Receive()
					if err != nil {
						return
					}
					if q, ok := m.(*pgproto3.Query); ok && strings.HasPrefix(q.String, "insert") {
						n := executed.Add(1) // committed
						got <- struct{}{}
						if n == 1 {
							_, _ = io.Copy(io.Discard, nc) // no reply comes
							return
						}
						b.Send(&pgproto3.CommandComplete{CommandTag: []byte("INSERT 0 1")})
						b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
						_ = b.Flush()
					}
				}
			}()
		}
	}()
	host, port, _ := net.SplitHostPort(l.Addr().String())
	cfg, err := pgx.ParseConfig("host=" + host + " port=" + port + " user=x dbname=x sslmode=disable")
	must(t)(cfg, err)
	fleet := newFleet(t, 2)
	inner := followConnector(stdlib.GetConnector(*cfg))
	c, err := Config{}.WithDefaults()
	must(t)(c, err)
	cn := newConnector(inner, inner.Driver(), fleet.source(), c)
	db := sql.OpenDB(cn)
	defer db.Close()
	lost := make(chan struct{})
	go func() {
		defer close(lost)
		<-got
		time.Sleep(50 * time.Millisecond) // the reply is awaited
		fleet.lose(t)
	}()
	_, err = db.Exec("insert into t values ('" + strings.Repeat("x", 20<<20) + "')")
	if n := executed.Load(); n != 1 || !errors.Is(err, semaphore.ErrLost) {
		t.Errorf("the server has executed it %d times; Exec: %v, want once and ErrLost", n, err)
	}
	<-lost
	for cn.a.Figures() != (allotment.Figures{}) { // until its socket has ended
		time.Sleep(time.Millisecond)
	}
}
