package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var kinds = map[string]func(fakeConn) driver.Conn{
	"none": plain, "all": full, "legacy": legacy, "statements": stmtOnly, "no validator": unvalid,
}

var scopes = []Scope{PerConnection, PerCheckout}

// wrapped opens a DB over a fake server, with permits from a fake fleet.
func wrapped(t testing.TB, s *server, kind func(fakeConn) driver.Conn, fleet *fakeFleet,
	cfg Config) (*sql.DB, *connector) {
	t.Helper()
	cfg, err := cfg.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	inner := &fakeConnector{s, kind}
	cn := newConnector(inner, inner.Driver(), fleet.source(), cfg)
	db := sql.OpenDB(cn)
	db.SetMaxIdleConns(fleet.capacity)
	return db, cn
}

// A step is one use of a DB. The test compares its results.
var steps = []struct {
	name string
	do   func(db *sql.DB) []any
}{
	{"ping", func(db *sql.DB) []any { return []any{db.Ping()} }},
	{"exec", func(db *sql.DB) []any { return result(db.Exec("x")) }},
	{"exec again", func(db *sql.DB) []any { return result(db.Exec("x", 1, "a")) }},
	{"exec, argument of the driver's own", func(db *sql.DB) []any {
		return result(db.Exec("x", point{1, 2}))
	}},
	{"exec, argument removed", func(db *sql.DB) []any { return result(db.Exec("x", "remove", 2)) }},
	{"exec, argument refused", func(db *sql.DB) []any { return result(db.Exec("x", "refuse")) }},
	{"exec, checker skips", func(db *sql.DB) []any { return result(db.Exec("x", "skip")) }},
	{"exec, named", func(db *sql.DB) []any { return result(db.Exec("x", sql.Named("n", 1))) }},
	{"exec, unsupported type", func(db *sql.DB) []any { return result(db.Exec("x", struct{}{})) }},
	{"query", func(db *sql.DB) []any { return rows(db.Query("x", 1)) }},
	{"query that skips", func(db *sql.DB) []any { return rows(db.Query("skip", 1)) }},
	{"prepared", func(db *sql.DB) []any {
		st, err := db.Prepare("x")
		if err != nil {
			return []any{err}
		}
		out := append(result(st.Exec(1)), rows(st.Query(2))...)
		return append(out, result(st.Exec(point{1, 2}))[0], st.Close())
	}},
	{"transaction", func(db *sql.DB) []any {
		tx, err := db.Begin()
		if err != nil {
			return []any{err}
		}
		st, err := tx.Prepare("x")
		if err != nil {
			return []any{err, tx.Rollback()}
		}
		out := append(result(tx.Exec("x")), result(st.Exec(1))...)
		return append(out, tx.Commit())
	}},
	{"rollback", func(db *sql.DB) []any {
		tx, err := db.Begin()
		if err != nil {
			return []any{err}
		}
		return []any{tx.Rollback()}
	}},
	{"isolation", func(db *sql.DB) []any {
		return begin(db, &sql.TxOptions{Isolation: sql.LevelSerializable})
	}},
	{"read-only", func(db *sql.DB) []any { return begin(db, &sql.TxOptions{ReadOnly: true}) }},
	{"one connection", func(db *sql.DB) []any {
		c, err := db.Conn(context.Background())
		if err != nil {
			return []any{err}
		}
		st, err := c.PrepareContext(context.Background(), "x")
		if err != nil {
			return []any{err}
		}
		out := append(result(st.Exec(1)), c.PingContext(context.Background()))
		return append(out, st.Close(), c.Close())
	}},
	{"statement outlives its connection", func(db *sql.DB) []any {
		c, err := db.Conn(context.Background())
		if err != nil {
			return []any{err}
		}
		st, err := c.PrepareContext(context.Background(), "x")
		if err != nil {
			return []any{err}
		}
		return []any{c.Close(), st.Close()}
	}},
}

func result(r sql.Result, err error) []any {
	if err != nil {
		return []any{err}
	}
	n, err := r.RowsAffected()
	return []any{n, err}
}

func rows(r *sql.Rows, err error) []any {
	if err != nil {
		return []any{err}
	}
	n := 0
	for r.Next() {
		n++
	}
	return []any{n, r.Err(), r.Close()}
}

func begin(db *sql.DB, opts *sql.TxOptions) []any {
	tx, err := db.BeginTx(context.Background(), opts)
	if err != nil {
		return []any{err}
	}
	return []any{tx.Commit()}
}

// TestConformance uses a bare DB and a wrapped one alike, and compares both the results and the
// driver's calls.
func TestConformance(t *testing.T) {
	for kindName, kind := range kinds {
		for _, scope := range scopes {
			inBubble(t, fmt.Sprintf("%s/%v", kindName, scope), func(t *testing.T) {
				bareServer, ourServer := &server{t: t}, &server{t: t}
				bare := sql.OpenDB(&fakeConnector{bareServer, kind})
				defer bare.Close()
				ours, _ := wrapped(t, ourServer, kind, newFleet(t, 2), Config{Scope: scope})
				defer ours.Close()
				for _, st := range steps {
					want, got := printed(st.do(bare)), printed(st.do(ours))
					if !slices.Equal(want, got) {
						t.Errorf("%s: returns %v, bare %v", st.name, got, want)
					}
					wantCalls, gotCalls := bareServer.calls(), ourServer.calls()
					if !slices.Equal(wantCalls, gotCalls) {
						t.Errorf("%s: calls\n\t%s\nbare\n\t%s", st.name,
							strings.Join(gotCalls, "\n\t"), strings.Join(wantCalls, "\n\t"))
					}
				}
				if want, got := bareServer.dials.Load(), ourServer.dials.Load(); want != got {
					t.Errorf("dialled %d times, bare %d", got, want)
				}
			})
		}
	}
}

func inBubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		t.Helper()
		synctest.Test(t, f)
	})
}

func printed(vs []any) []string {
	out := make([]string, len(vs))
	for i, v := range vs {
		out[i] = fmt.Sprint(v)
	}
	return out
}

// TestCancelledTransaction: the inner driver decides whether the connection survives.
func TestCancelledTransaction(t *testing.T) {
	for kindName, kind := range kinds {
		for _, scope := range scopes {
			inBubble(t, fmt.Sprintf("%s/%v", kindName, scope), func(t *testing.T) {
				dials := func(db *sql.DB, s *server) int32 {
					defer db.Close()
					ctx, cancel := context.WithCancel(context.Background())
					tx, err := db.BeginTx(ctx, nil)
					if err != nil {
						t.Fatal(err)
					}
					cancel()
					for db.Stats().InUse > 0 { // until awaitDone has rolled back
						time.Sleep(100 * time.Microsecond)
					}
					if err := tx.Commit(); err == nil {
						t.Error("the cancelled transaction was committed")
					}
					if err := db.Ping(); err != nil {
						t.Fatal(err)
					}
					// A transaction that ends before its context does not lose the connection.
					ctx, cancel = context.WithCancel(context.Background())
					if tx, err = db.BeginTx(ctx, nil); err != nil {
						t.Fatal(err)
					}
					s.onCommit = cancel // during the commit
					if err := tx.Commit(); err != nil {
						t.Fatal(err)
					}
					if err := db.Ping(); err != nil {
						t.Fatal(err)
					}
					return s.dials.Load()
				}
				s := &server{t: t}
				want := dials(sql.OpenDB(&fakeConnector{s, kind}), s)
				s = &server{t: t}
				db, _ := wrapped(t, s, kind, newFleet(t, 2), Config{Scope: scope})
				if got := dials(db, s); got != want {
					t.Errorf("dialled %d times, bare %d", got, want)
				}
			})
		}
	}
}

// TestAdvertises: a wrapper has Exec and Query only if the driver's connection has them, and passes
// the driver's own objects through.
func TestAdvertises(t *testing.T) {
	for kindName, kind := range kinds {
		inBubble(t, kindName, func(t *testing.T) {
			s := &server{t: t}
			db, _ := wrapped(t, s, kind, newFleet(t, 1), Config{})
			defer db.Close()
			c, err := db.Conn(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			err = c.Raw(func(dc any) error {
				inner := dc.(RawConn).Raw()
				_, e := inner.(driver.ExecerContext)
				_, olde := inner.(driver.Execer) //nolint:staticcheck // drivers have it
				if _, ok := dc.(driver.ExecerContext); ok != (e || olde) {
					t.Errorf("ExecerContext: %v", ok)
				}
				_, q := inner.(driver.QueryerContext)
				_, oldq := inner.(driver.Queryer) //nolint:staticcheck // drivers have it
				if _, ok := dc.(driver.QueryerContext); ok != (q || oldq) {
					t.Errorf("QueryerContext: %v", ok)
				}
				st, err := dc.(driver.ConnPrepareContext).PrepareContext(context.Background(), "x")
				if err != nil {
					return err
				}
				if p := reflect.TypeOf(st).String(); !strings.HasSuffix(p, "Stmt") ||
					!strings.HasPrefix(p, "*passbuddy.") {
					t.Errorf("Stmt is a %v", p)
				}
				tx, err := dc.(driver.ConnBeginTx).BeginTx(context.Background(), driver.TxOptions{})
				if _, ok := tx.(*fakeTx); !ok || err != nil {
					t.Errorf("Tx is a %T, %v", tx, err)
				}
				return st.Close()
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestConnectNeverReturnsErrBadConn(t *testing.T) {
	for _, scope := range scopes {
		inBubble(t, scope.String(), func(t *testing.T) {
			s := &server{t: t, connectErr: func() error {
				return fmt.Errorf("refused: %w", driver.ErrBadConn)
			}}
			db, cn := wrapped(t, s, full, newFleet(t, 1), Config{Scope: scope})
			defer db.Close()
			_, err := cn.Connect(context.Background())
			if err == nil || errors.Is(err, driver.ErrBadConn) ||
				!strings.Contains(err.Error(), "refused") {
				t.Error(err)
			}
			s.connectErr = nil
			if err := db.Ping(); err != nil {
				t.Errorf("the permit was not given back: %v", err)
			}
		})
	}
}
