package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
)

// This file specifies the driver's calls for each use of a DB, and the user's error for each of the
// driver's answers. go-sqlmock plays the driver, and checks the order of the calls. A bare DB over
// the same driver meets the same specification.

var (
	errFailed = errors.New("the server refuses")
	bad       = driver.ErrBadConn
)

// A call is the next call of the driver, with its answer.
type call struct {
	method string
	expect func(m sqlmock.Sqlmock)
}

func pings(err error) call {
	return call{"Ping", func(m sqlmock.Sqlmock) { m.ExpectPing().WillReturnError(err) }}
}

func begins(err error) call {
	return call{"Begin", func(m sqlmock.Sqlmock) { m.ExpectBegin().WillReturnError(err) }}
}

func commits(err error) call {
	return call{"Commit", func(m sqlmock.Sqlmock) { m.ExpectCommit().WillReturnError(err) }}
}

func rollsBack(err error) call {
	return call{"Rollback", func(m sqlmock.Sqlmock) { m.ExpectRollback().WillReturnError(err) }}
}

func closes(err error) call {
	return call{"Close", func(m sqlmock.Sqlmock) { m.ExpectClose().WillReturnError(err) }}
}

func prepares(err error) call {
	return call{"Prepare", func(m sqlmock.Sqlmock) { m.ExpectPrepare("^x$").WillReturnError(err) }}
}

func executes(err error) call {
	return call{"Exec", func(m sqlmock.Sqlmock) {
		m.ExpectExec("^x$").WithArgs(1, "a").
			WillReturnResult(driver.RowsAffected(7)).WillReturnError(err)
	}}
}

func selects(err error) call {
	return call{"Query", func(m sqlmock.Sqlmock) {
		m.ExpectQuery("^x$").WithArgs(1, "a").
			WillReturnRows(sqlmock.NewRows([]string{"n"}).AddRow(7)).WillReturnError(err)
	}}
}

// A forwarded is one use of a DB: the driver's calls in order, the user's error, and how many
// connections stay open.
type forwarded struct {
	name  string
	calls []call
	use   func(db *sql.DB) error
	want  error
	open  int
}

// An operation makes one call of the driver, and later calls if that goes well.
type operation struct {
	name string
	call func(err error) call
	then []call
	on   func(c onConn) error
}

// onConn is an sql.DB, sql.Conn or sql.Tx.
type onConn interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

type onSession interface {
	onConn
	PingContext(ctx context.Context) error
	BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error)
}

func affected(res sql.Result, err error) error {
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); n != 7 || err != nil {
		return fmt.Errorf("%d rows affected, %v", n, err)
	}
	return nil
}

func scanned(row *sql.Row) error {
	var n int
	if err := row.Scan(&n); err != nil {
		return err
	}
	if n != 7 {
		return fmt.Errorf("read %d", n)
	}
	return nil
}

var anyOperations = []operation{
	{"Exec", executes, nil, func(c onConn) error {
		return affected(c.ExecContext(context.Background(), "x", 1, "a"))
	}},
	{"Query", selects, nil, func(c onConn) error {
		return scanned(c.QueryRowContext(context.Background(), "x", 1, "a"))
	}},
	{"Prepare", prepares, nil, func(c onConn) error {
		st, err := c.PrepareContext(context.Background(), "x")
		if err == nil {
			err = st.Close()
		}
		return err
	}},
}

var sessionOperations = append(slices.Clone(anyOperations),
	operation{"Ping", pings, nil, func(c onConn) error {
		return c.(onSession).PingContext(context.Background())
	}},
	operation{"Begin", begins, []call{rollsBack(nil)}, func(c onConn) error {
		tx, err := c.(onSession).BeginTx(context.Background(), nil)
		if err == nil {
			err = tx.Rollback()
		}
		return err
	}},
)

// inTx begins a transaction, uses it, and ends it. The first error counts.
func inTx(use func(tx *sql.Tx) error, end func(tx *sql.Tx) error) func(db *sql.DB) error {
	return func(db *sql.DB) error {
		tx, err := db.Begin()
		if err != nil {
			return err
		}
		return errors.Join(use(tx), end(tx))
	}
}

func nothing(*sql.Tx) error { return nil }

// specification lists all uses.
func specification() (all []forwarded) {
	add := func(name string, want error, open int, use func(db *sql.DB) error, calls ...call) {
		all = append(all, forwarded{name, calls, use, want, open})
	}
	// A DB tries again on another connection, three times in all. A bad connection is closed first.
	for _, op := range sessionOperations {
		use := func(db *sql.DB) error { return op.on(db) }
		good := append([]call{op.call(nil)}, op.then...)
		tryAgain := []call{op.call(bad), closes(nil)}
		add("DB."+op.name, nil, 1, use, good...)
		add("DB."+op.name+" fails", errFailed, 1, use, op.call(errFailed))
		if op.name == "Ping" { // Ping reports the error of the connection that it got
			add("DB.Ping, bad", bad, 0, use, tryAgain...)
			continue
		}
		add("DB."+op.name+", bad once", nil, 1, use, slices.Concat(tryAgain, good)...)
		add("DB."+op.name+", bad twice", nil, 1, use, slices.Concat(tryAgain, tryAgain, good)...)
		add("DB."+op.name+", always bad", bad, 0, use,
			slices.Concat(tryAgain, tryAgain, tryAgain)...)
	}
	// A Conn is closed with its bad connection.
	for _, op := range sessionOperations {
		use := func(db *sql.DB) error {
			c, err := db.Conn(context.Background())
			if err != nil {
				return err
			}
			defer c.Close()
			return op.on(c)
		}
		add("Conn."+op.name, nil, 1, use, append([]call{op.call(nil)}, op.then...)...)
		add("Conn."+op.name+" fails", errFailed, 1, use, op.call(errFailed))
		add("Conn."+op.name+", bad", bad, 0, use, op.call(bad), closes(nil))
	}
	// A Tx goes on to its end.
	for _, op := range anyOperations {
		use := inTx(func(tx *sql.Tx) error { return op.on(tx) }, (*sql.Tx).Rollback)
		for _, err := range []error{nil, errFailed, bad} {
			add(fmt.Sprintf("Tx.%s, %v", op.name, err), err, 1, use,
				begins(nil), op.call(err), rollsBack(nil))
		}
	}
	for _, end := range []struct {
		name string
		call func(error) call
		use  func(*sql.Tx) error
	}{{"Commit", commits, (*sql.Tx).Commit}, {"Rollback", rollsBack, (*sql.Tx).Rollback}} {
		use := inTx(nothing, end.use)
		add("Tx."+end.name, nil, 1, use, begins(nil), end.call(nil))
		add("Tx."+end.name+" fails", errFailed, 1, use, begins(nil), end.call(errFailed))
		add("Tx."+end.name+", bad", bad, 0, use, begins(nil), end.call(bad), closes(nil))
	}
	// A statement bypasses the wrapper. A statement of a DB is prepared again on another
	// connection.
	for _, op := range []struct {
		name string
		call func(error) call
		use  func(*sql.Stmt) error
	}{
		{"Exec", executes, func(st *sql.Stmt) error { return affected(st.Exec(1, "a")) }},
		{"Query", selects, func(st *sql.Stmt) error { return scanned(st.QueryRow(1, "a")) }},
	} {
		prepared := func(c onConn) error {
			st, err := c.PrepareContext(context.Background(), "x")
			if err != nil {
				return err
			}
			return errors.Join(op.use(st), st.Close())
		}
		onDB := func(db *sql.DB) error { return prepared(db) }
		good := []call{prepares(nil), op.call(nil)}
		tryAgain := []call{prepares(nil), op.call(bad), closes(nil)}
		add("DB.Prepare, "+op.name, nil, 1, onDB, good...)
		add("DB.Prepare, "+op.name+" fails", errFailed, 1, onDB, prepares(nil), op.call(errFailed))
		add("DB.Prepare, "+op.name+", bad once", nil, 1, onDB, slices.Concat(tryAgain, good)...)
		add("DB.Prepare, "+op.name+", always bad", bad, 0, onDB,
			slices.Concat(tryAgain, tryAgain, tryAgain)...)
		onTx := inTx(func(tx *sql.Tx) error { return prepared(tx) }, (*sql.Tx).Rollback)
		for _, err := range []error{nil, errFailed} {
			add(fmt.Sprintf("Tx.Prepare, %s, %v", op.name, err), err, 1, onTx,
				begins(nil), prepares(nil), op.call(err), rollsBack(nil))
		}
	}
	return all
}

const bare = "bare"

var modes = []string{bare, PerConnection.String(), PerCheckout.String()}

// TestForwarding checks a bare DB, and one in each scope, against the specification.
func TestForwarding(t *testing.T) {
	for _, mode := range modes {
		for _, f := range specification() {
			inBubble(t, mode+"/"+f.name, func(t *testing.T) {
				m, db, opens := mocked(t, mode)
				conns := f.open
				for _, c := range f.calls {
					c.expect(m)
					if c.method == "Close" {
						conns++
					}
				}
				if err := f.use(db); !errors.Is(err, f.want) {
					t.Errorf("the user gets %v, want %v", err, f.want)
				}
				time.Sleep(100 * time.Millisecond) // a bad connection is closed in the background
				if err := m.ExpectationsWereMet(); err != nil {
					t.Error(err)
				}
				if n := int(opens.Load()); n != conns {
					t.Errorf("%d connections were opened, want %d", n, conns)
				}
				for range f.open {
					closes(nil).expect(m)
				}
				if err := db.Close(); err != nil {
					t.Errorf("DB.Close: %v", err)
				}
			})
		}
	}
}

// TestForwardingOfClose: PassBuddy calls the driver's Close in the background, so DB.Close does not
// return its error.
func TestForwardingOfClose(t *testing.T) {
	for _, mode := range modes {
		inBubble(t, mode, func(t *testing.T) {
			m, db, _ := mocked(t, mode)
			pings(nil).expect(m)
			closes(errFailed).expect(m)
			must(t)(nil, db.Ping())
			err := db.Close()
			if mode == bare && !errors.Is(err, errFailed) || mode != bare && err != nil {
				t.Errorf("DB.Close: %v", err)
			}
		})
	}
}

// countingDriver counts the connections of another driver.
type countingDriver struct {
	driver.Driver
	opens *atomic.Int32
}

func (d countingDriver) Open(dsn string) (driver.Conn, error) {
	d.opens.Add(1)
	return d.Driver.Open(dsn)
}

// mocked returns a DB over a mocked driver, and a count of the connections that it has opened. By
// the end of the test all calls must have come.
func mocked(t *testing.T, mode string) (sqlmock.Sqlmock, *sql.DB, *atomic.Int32) {
	t.Helper()
	own, m, err := sqlmock.NewWithDSN(t.Name(), sqlmock.MonitorPingsOption(true))
	must(t)(own, err)
	opens := new(atomic.Int32)
	d := countingDriver{own.Driver(), opens}
	var c driver.Connector = dsnConnector{t.Name(), d}
	if mode != bare {
		cfg := Config{AcquireTimeout: time.Minute}
		if mode == PerCheckout.String() {
			cfg.Scope = PerCheckout
		}
		w := &wrappedDriver{inner: d, engine: newFleet(t, 1).source(), cfg: cfg}
		c, err = w.OpenConnector(t.Name())
		must(t)(c, err)
	}
	t.Cleanup(func() {
		if err := m.ExpectationsWereMet(); err != nil {
			t.Error(err)
		}
		m.ExpectClose() // of the connection that sqlmock itself has opened
		must(t)(nil, own.Close())
	})
	return m, sql.OpenDB(c), opens
}
