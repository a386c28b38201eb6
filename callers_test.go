package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"runtime"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// TestCallers checks callers.go against the database/sql of this Go.
func TestCallers(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		use        func(t *testing.T, db *sql.DB)
		pinned     allotment.Pin
		statements bool
	}{
		"exec": {func(t *testing.T, db *sql.DB) { must(t)(db.Exec("x")) }, allotment.Free, false},
		"query": {func(t *testing.T, db *sql.DB) {
			r, err := db.Query("x")
			must(t)(r.Close(), err)
		}, allotment.Free, false},
		"tx exec": {func(t *testing.T, db *sql.DB) {
			tx, err := db.Begin()
			must(t)(tx, err)
			must(t)(tx.Exec("x"))
			must(t)(nil, tx.Commit())
		}, allotment.Free, false},
		"prepare": {func(t *testing.T, db *sql.DB) {
			must(t)(db.Prepare("x"))
		}, allotment.Held, true},
		"tx prepare": {func(t *testing.T, db *sql.DB) {
			tx, err := db.Begin()
			must(t)(tx, err)
			must(t)(tx.Prepare("x"))
			must(t)(nil, tx.Commit())
		}, allotment.Free, true},
		"conn prepare": {func(t *testing.T, db *sql.DB) {
			c, err := db.Conn(ctx)
			must(t)(c, err)
			must(t)(c.PrepareContext(ctx, "x"))
			must(t)(nil, c.Close())
		}, allotment.Fixed, true},
		"unknown": {func(t *testing.T, db *sql.DB) {
			c, err := db.Conn(ctx)
			must(t)(c, err)
			must(t)(nil, c.Raw(func(dc any) error {
				_, err := dc.(driver.Conn).Prepare("x")
				return err
			}))
			must(t)(nil, c.Close())
		}, allotment.Fixed, true},
	} {
		inBubble(t, name, func(t *testing.T) {
			db, _ := wrapped(t, &server{t: t}, plain, newFleet(t, 1), Config{})
			defer db.Close()
			c.use(t, db)
			conn, err := db.Conn(ctx)
			must(t)(conn, err)
			defer conn.Close()
			must(t)(nil, conn.Raw(func(dc any) error {
				ph := dc.(wrapper).base().ph
				if ph.pinned != c.pinned || ph.statements != c.statements {
					t.Errorf("pinned %d, statements %v; want %d, %v", ph.pinned, ph.statements,
						c.pinned, c.statements)
				}
				return nil
			}))
		})
	}
}

func must(t *testing.T) func(_ any, err error) {
	t.Helper()
	return func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestFollowsConnector: PassBuddy can set the dial function of this pgx's connectors, and leaves
// those of a pool alone.
func TestFollowsConnector(t *testing.T) {
	cfg, err := pgx.ParseConfig("host=localhost")
	if err != nil {
		t.Fatal(err)
	}
	plain := stdlib.GetConnector(*cfg)
	own := followConnector(plain)
	if own.Driver() != plain.Driver() {
		t.Error("the connector of another driver is followed")
	}
	at := new(connectAttempt)
	ctx, cancel := context.WithCancel(withAttempt(context.Background(), at))
	cancel()
	_, _ = own.Connect(ctx) // fails, but asks our dial function first
	if at.dialer.Dial == nil {
		t.Error("the connector is not followed")
	}
	pool := stdlib.GetPoolConnector(nil)
	if got := followConnector(pool); got == nil || got.Driver() != pool.Driver() {
		t.Error("the pool's connector was changed")
	}
}

// asksCaller is a connector whose Connect asks who calls it.
type asksCaller struct {
	s     *server
	heard chan bool
}

func (c *asksCaller) Driver() driver.Driver { return nil }
func (c *asksCaller) Connect(context.Context) (driver.Conn, error) {
	c.heard <- calledByOpener()
	return &fakeConn{s: c.s}, nil
}

// passingOn is another library's connector around it.
type passingOn struct{ driver.Connector }

func (c passingOn) Connect(ctx context.Context) (driver.Conn, error) { return c.Connector.Connect(ctx) }

// Connect tells database/sql's opener from a caller, directly below database/sql and behind another
// connector, and learns where callers come from.
func TestCalledByOpener(t *testing.T) {
	ctx := context.Background()
	for _, behind := range []bool{false, true} {
		connCalls.Store(0)
		c := &asksCaller{&server{t: t}, make(chan bool, 1)}
		var outer driver.Connector = c
		if behind {
			outer = passingOn{c}
		}
		db := sql.OpenDB(outer)
		db.SetMaxOpenConns(1)
		for range 2 { // the first time it looks at the whole stack
			conn, err := db.Conn(ctx)
			must(t)(conn, err)
			if <-c.heard {
				t.Errorf("behind another: %v. A caller is taken for the opener", behind)
			}
			if connCalls.Load() == 0 {
				t.Errorf("behind another: %v. It has not learned the place", behind)
			}
			waited := db.Stats().WaitCount
			next := make(chan *sql.Conn)
			go func() {
				conn, err := db.Conn(ctx)
				if err != nil {
					t.Error(err)
				}
				next <- conn
			}()
			for db.Stats().WaitCount == waited {
				runtime.Gosched()
			}
			_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // the opener opens another
			if !<-c.heard {
				t.Errorf("behind another: %v. The opener is taken for a caller", behind)
			}
			conn = <-next
			_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // which closes it
		}
		must(t)(nil, db.Close())
	}
}
