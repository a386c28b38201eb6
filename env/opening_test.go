package env

import (
	"context"
	"database/sql/driver"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// However many callers connect first, one session comes of it, and one allotment.
func TestFirstConnects(t *testing.T) {
	w := newWorld(t)
	t.Setenv("PASSBUDDY_CAPACITY", "3")
	db := w.open("passbuddy", w.dsn())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := db.Ping(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.expect("semaphore", 1)
	ok(t, db.Close())
	w.expect("semaphore", 0)
}

// A Redis that cannot be reached fails a connect, and not the next one.
func TestTriedAgain(t *testing.T) {
	w := newWorld(t)
	db := w.open("passbuddy", w.dsn())
	w.redis.Close()
	if err := db.Ping(); !errors.Is(err, semaphore.ErrUnavailable) {
		t.Errorf("without Redis: %v", err)
	}
	ok(t, w.redis.Restart())
	ok(t, db.Ping())
	w.expect("semaphore", 1)
}

// silentRedis accepts connections and says nothing.
func silentRedis(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return "redis://" + l.Addr().String()
}

// A caller that waits for the semaphore to be opened gives up with its context, and learns of the
// Close of its DB.
func TestGivesUpOpening(t *testing.T) {
	w := newWorld(t)
	t.Setenv("PASSBUDDY_REDIS_URL", silentRedis(t))
	db := w.open("passbuddy", w.dsn())
	ctx, cancel := context.WithTimeout(ctxb, 10*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := db.PingContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller's deadline: %v", err)
	}
	got := make(chan error)
	cn, err := (&envDriver{base: pgxBase{}}).OpenConnector(w.dsn())
	ok(t, err)
	go func() {
		_, err := cn.Connect(ctxb)
		got <- err
	}()
	ok(t, cn.(*connector).Close())
	if err := <-got; err == nil || err.Error() != "sql: database is closed" {
		t.Errorf("Close: %v", err)
	}
	if took := time.Since(began); took > 4*time.Second { // package semaphore gives up after 5s
		t.Errorf("they were told after %v", took)
	}
}

// badContext has ended by an error that would have database/sql try again.
type badContext struct{ context.Context }

func (badContext) Err() error { return driver.ErrBadConn }

func (badContext) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

func TestNeverBadConn(t *testing.T) {
	w := newWorld(t)
	t.Setenv("PASSBUDDY_REDIS_URL", silentRedis(t))
	cn, err := (&envDriver{base: pgxBase{}}).OpenConnector(w.dsn())
	ok(t, err)
	if _, err := cn.Connect(badContext{ctxb}); err == nil || errors.Is(err, driver.ErrBadConn) {
		t.Errorf("got %v", err)
	}
}
