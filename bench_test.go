package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"testing"
)

// quietConn is an in-memory driver that does nothing, so the benchmark measures only the cost of
// database/sql and of PassBuddy. It has the interfaces of pgx's stdlib.
type quietConn struct{}

func (*quietConn) Prepare(string) (driver.Stmt, error)      { return nil, driver.ErrSkip }
func (*quietConn) Begin() (driver.Tx, error)                { return nil, driver.ErrSkip }
func (*quietConn) Close() error                             { return nil }
func (*quietConn) Ping(context.Context) error               { return nil }
func (*quietConn) ResetSession(context.Context) error       { return nil }
func (*quietConn) CheckNamedValue(*driver.NamedValue) error { return nil }
func (*quietConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return nil, driver.ErrSkip
}
func (*quietConn) PrepareContext(context.Context, string) (driver.Stmt, error) {
	return nil, driver.ErrSkip
}
func (*quietConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return nil, driver.ErrSkip
}

func (*quietConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.ResultNoRows, nil
}

type quietConnector struct{}

func (quietConnector) Connect(context.Context) (driver.Conn, error) { return new(quietConn), nil }
func (quietConnector) Driver() driver.Driver                        { return nil }

// BenchmarkWarmCheckout is one Exec on a warm connection: checkout, an operation that costs
// nothing, return.
func BenchmarkWarmCheckout(b *testing.B) {
	run := func(b *testing.B, db *sql.DB) {
		defer db.Close()
		ctx := context.Background()
		if _, err := db.ExecContext(ctx, "x"); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := db.ExecContext(ctx, "x"); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("bare", func(b *testing.B) { run(b, sql.OpenDB(quietConnector{})) })
	b.Run("passbuddy", func(b *testing.B) {
		cfg, _ := Config{}.withDefaults()
		run(b, sql.OpenDB(newConnector(quietConnector{}, nil, newFleet(b, 2).source(), cfg)))
	})
}
