package passbuddy

import (
	"database/sql"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A lost lease ends the connection of a running statement. The statement is not retried, because
// the server may have executed it. Here its write takes so long that pgx reads in the background.
func TestEndedStatementIsNotRetried(t *testing.T) {
	var executed atomic.Int32
	got := make(chan struct{}, 10)
	pg := &fakepg.Server{
		Distance: 100 * time.Millisecond,
		OnQuery: func(b *fakepg.Backend, query string) {
			if !strings.HasPrefix(query, "insert") {
				return
			}
			n := executed.Add(1) // committed
			got <- struct{}{}
			if n == 1 {
				_, _ = io.Copy(io.Discard, b.Conn) // no reply comes
				return
			}
			b.Done("INSERT 0 1")
		},
	}
	fleet := newFleet(t, 2)
	inner := followConnector(stdlib.GetConnector(*pg.Listen(t)))
	c, err := Config{}.withDefaults()
	must(t)(c, err)
	cn := newConnector(inner, inner.Driver(), fleet.source(), c)
	db := sql.OpenDB(cn)
	defer db.Close()
	lost := make(chan struct{})
	go func() {
		defer close(lost)
		<-got
		time.Sleep(50 * time.Millisecond) // pgx waits for the reply
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
