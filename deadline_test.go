package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/semaphore"
)

// AcquireTimeout is one deadline for all stations of a checkout. Here each station takes some time,
// and the last one never ends. A deadline that started anew at a station would let the caller wait
// longer, by the time of the earlier stations.
const stationsTimeout = 10 * time.Second

// bounded fails the test if wait takes longer than AcquireTimeout plus slack.
func bounded(t *testing.T, slack time.Duration, wait func() error) error {
	t.Helper()
	began := time.Now()
	err := wait()
	if d := time.Since(began); d < stationsTimeout || d > stationsTimeout+slack {
		t.Errorf("waited %v, AcquireTimeout is %v: %v", d, stationsTimeout, err)
	}
	return err
}

// The stations: a turn (4s), a permit, a dial (1s), and all again because the lease is lost
// meanwhile. In PerConnection the permit takes 3s, because the turn's connection is dead and its
// backend ends slowly.
func TestDeadlineIsOneForAllStations(t *testing.T) {
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			cfg := Config{Scope: scope, AcquireTimeout: stationsTimeout}
			bubble(t, 1, full, cfg, func(t *testing.T, b *bench) {
				held := b.conn(t)
				var dead atomic.Bool
				b.server.onReset = func(*fakeConn) error {
					if dead.Load() {
						return driver.ErrBadConn
					}
					return nil
				}
				b.server.onClose = func() {
					if dead.Load() {
						time.Sleep(3 * time.Second)
					}
				}
				b.server.connectErr = func() error {
					time.Sleep(time.Second)
					b.fleet.take(1)
					b.fleet.lose(t)
					return nil
				}
				time.AfterFunc(4*time.Second, func() {
					dead.Store(true)
					_ = held.Close()
				})
				err := bounded(t, 0, b.db.Ping)
				if !errors.Is(err, semaphore.ErrCapacity) {
					t.Errorf("%v, want at capacity", err)
				}
				if n := b.server.dials.Load(); n != 2 {
					t.Errorf("dialled %d times, want 2: the test missed a station", n)
				}
			})
		})
	}
}

// A caller gets its turn late, with a dead connection. It does not wait as long again for that
// connection's end.
func TestAcquireTimeoutIsOneForACheckout(t *testing.T) {
	const most = stationsTimeout
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			bubble(t, 1, full, Config{Scope: scope, AcquireTimeout: most},
				func(t *testing.T, b *bench) {
					var dead atomic.Bool
					b.server.onClose = func() {
						if dead.Load() {
							time.Sleep(time.Minute)
						}
					}
					b.server.onReset = func(*fakeConn) error {
						if dead.Load() {
							return driver.ErrBadConn
						}
						return nil
					}
					held := b.conn(t)
					waited := make(chan time.Duration, 1)
					go func() {
						began := time.Now()
						_, err := b.db.Exec("x")
						if scope == PerConnection && !errors.Is(err, semaphore.ErrCapacity) {
							t.Errorf(
								"%v, want at capacity: the dead connection's backend lives for a "+
									"minute", err)
						}
						waited <- time.Since(began)
					}()
					time.Sleep(most - 100*time.Millisecond)
					dead.Store(true)
					_ = held.Close()
					if d := <-waited; d > most+time.Second {
						t.Errorf("waited %v, AcquireTimeout is %v", d, most)
					}
					dead.Store(false)
					time.Sleep(5 * time.Minute)
				})
		})
	}
}

// recordingFleet records backends, which takes as long as the function record does.
type recordingFleet struct {
	*fakeFleet
	record func(context.Context) error
}

func (f recordingFleet) RecordBackend(
	*engine.Permit, string,
) (record func(context.Context) error) {
	return f.record
}

// fencedDB is a DB with Fence and one permit, over pgx and pg. dialling runs before each connect,
// and record is the record in Redis.
func fencedDB(
	t *testing.T, pg *fakepg.Server, dialling func(), record func(context.Context) error,
) *sql.DB {
	t.Helper()
	config := fakepg.Config(t)
	config.DialFunc = pg.Dial
	before := func(context.Context, *pgx.ConnConfig) error { dialling(); return nil }
	inner := followConnector(stdlib.GetConnector(*config, stdlib.OptionBeforeConnect(before)))
	cfg, err := Config{Fence: true, AcquireTimeout: stationsTimeout}.withDefaults()
	must(t)(cfg, err)
	fleet := newFleet(t, 1)
	engine := func(a *allotment.Allotment) error {
		err := fleet.source()(a)
		a.Attach(recordingFleet{fleet, record})
		return err
	}
	return sql.OpenDB(newConnector(inner, inner.Driver(), engine, cfg))
}

// The stations with Fence: a turn (6s), a permit (0.2s, as above), a dial (1s), and the record of
// the backend.
func TestDeadlineIsOneForTheRecordToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		var records atomic.Int32
		pg := &fakepg.Server{
			OnQuery: func(b *fakepg.Backend, query string) {
				if slow.Load() && strings.Contains(query, "ping") {
					b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", Code: "XX000"})
					b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
					_ = b.Flush()
					return
				}
				b.Answer(query)
			},
			OnEnd: func() { time.Sleep(200 * time.Millisecond) },
		}
		dialling := func() {
			if slow.Load() {
				time.Sleep(time.Second)
			}
		}
		db := fencedDB(t, pg, dialling, func(ctx context.Context) error {
			records.Add(1)
			if slow.Load() {
				<-ctx.Done()
			}
			return ctx.Err()
		})
		held, err := db.Conn(context.Background())
		must(t)(held, err)
		time.AfterFunc(6*time.Second, func() {
			slow.Store(true)
			_ = held.Close()
		})
		if bounded(t, 0, db.Ping) == nil {
			t.Error("the connection was handed out without its record")
		}
		if n := records.Load(); n != 2 {
			t.Errorf("%d backends were recorded, want 2: the test missed a station", n)
		}
		_ = db.Close()
		time.Sleep(time.Minute)
	})
}

// The deadline cuts no dial short, however long it takes: the resulting connection is recorded and
// used.
func TestDeadlineCutsNoDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dialling := func() { time.Sleep(2 * stationsTimeout) }
		db := fencedDB(t, new(fakepg.Server), dialling, func(ctx context.Context) error {
			time.Sleep(100 * time.Millisecond)
			return ctx.Err()
		})
		must(t)(nil, db.Ping())
		_ = db.Close()
		time.Sleep(time.Minute)
	})
}
