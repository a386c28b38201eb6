package passbuddy

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
)

// The fake drivers connect to server. It detects concurrent use of a connection.
type server struct {
	t        *testing.T
	dials    atomic.Int32
	open     atomic.Int32
	peak     atomic.Int32
	running  atomic.Int32 // operations
	mostRuns atomic.Int32

	connectErr func() error
	onClose    func()
	onCommit   func()
	onReset    func(*fakeConn) error
	onExec     func(ctx context.Context, query string) error
	onStmtExec func()

	mu  sync.Mutex
	log []string
}

func (s *server) record(format string, args ...any) {
	s.mu.Lock()
	s.log = append(s.log, fmt.Sprintf(format, args...))
	s.mu.Unlock()
}

func (s *server) calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.log
	s.log = nil
	return log
}

func raise(most *atomic.Int32, n int32) {
	for {
		m := most.Load()
		if n <= m || most.CompareAndSwap(m, n) {
			return
		}
	}
}

// fakeConn has no optional interface.
type fakeConn struct {
	s      *server
	n      int32
	busy   bool // written without a lock, so that -race sees misuse
	closed bool
	bad    bool
}

func (c *fakeConn) enter() func() {
	if c.busy {
		c.s.t.Error("a connection is used concurrently")
	}
	c.busy = true
	raise(&c.s.mostRuns, c.s.running.Add(1))
	return func() { c.busy = false; c.s.running.Add(-1) }
}

func (c *fakeConn) Prepare(query string) (driver.Stmt, error) {
	defer c.enter()()
	c.s.record("Prepare")
	return &fakeStmt{c, query}, nil
}

func (c *fakeConn) Begin() (driver.Tx, error) {
	defer c.enter()()
	c.s.record("Begin")
	return &fakeTx{c}, nil
}

func (c *fakeConn) Close() error {
	defer c.enter()()
	if c.closed {
		c.s.t.Error("a connection was closed twice")
	}
	c.closed = true
	if c.s.onClose != nil {
		c.s.onClose()
	}
	c.s.open.Add(-1)
	c.s.record("Close")
	return nil
}

type fakeStmt struct {
	c     *fakeConn
	query string
}

func (s *fakeStmt) Close() error {
	defer s.c.enter()()
	s.c.s.record("Stmt.Close")
	return nil
}
func (s *fakeStmt) NumInput() int { return -1 }
func (s *fakeStmt) Exec(args []driver.Value) (driver.Result, error) {
	defer s.c.enter()()
	s.c.s.record("Stmt.Exec %v", args)
	if s.c.s.onStmtExec != nil {
		s.c.s.onStmtExec()
	}
	return driver.RowsAffected(1), nil
}

func (s *fakeStmt) Query(args []driver.Value) (driver.Rows, error) {
	defer s.c.enter()()
	s.c.s.record("Stmt.Query %v", args)
	return &fakeRows{}, nil
}

type fakeTx struct{ c *fakeConn }

func (tx *fakeTx) Commit() error {
	defer tx.c.enter()()
	if tx.c.s.onCommit != nil {
		tx.c.s.onCommit()
	}
	tx.c.s.record("Commit")
	return nil
}
func (tx *fakeTx) Rollback() error { defer tx.c.enter()(); tx.c.s.record("Rollback"); return nil }

type fakeRows struct{ n int }

func (*fakeRows) Columns() []string { return []string{"n"} }
func (*fakeRows) Close() error      { return nil }
func (r *fakeRows) Next(dest []driver.Value) error {
	if r.n++; r.n > 1 {
		return io.EOF
	}
	dest[0] = int64(1)
	return nil
}

// fullConn has all optional interfaces.
type fullConn struct{ fakeConn }

func (c *fullConn) Ping(context.Context) error { defer c.enter()(); c.s.record("Ping"); return nil }

func (c *fullConn) ExecContext(ctx context.Context, query string,
	args []driver.NamedValue) (driver.Result, error) {
	defer c.enter()()
	c.s.record("ExecContext %v", args)
	if c.s.onExec != nil {
		if err := c.s.onExec(ctx, query); err != nil {
			return nil, err
		}
	}
	return driver.RowsAffected(1), nil
}

func (c *fullConn) QueryContext(_ context.Context, query string,
	args []driver.NamedValue) (driver.Rows, error) {
	defer c.enter()()
	c.s.record("QueryContext %v", args)
	if query == "skip" {
		return nil, driver.ErrSkip
	}
	return &fakeRows{}, nil
}

func (c *fullConn) PrepareContext(_ context.Context, query string) (driver.Stmt, error) {
	defer c.enter()()
	c.s.record("PrepareContext")
	return &fakeStmt{&c.fakeConn, query}, nil
}

func (c *fullConn) BeginTx(_ context.Context, opts driver.TxOptions) (driver.Tx, error) {
	defer c.enter()()
	c.s.record("BeginTx %v", opts)
	return &fakeTx{&c.fakeConn}, nil
}

func (c *fullConn) ResetSession(context.Context) error {
	defer c.enter()()
	c.s.record("ResetSession")
	if c.s.onReset != nil {
		return c.s.onReset(&c.fakeConn)
	}
	return nil
}

func (c *fullConn) IsValid() bool {
	defer c.enter()()
	c.s.record("IsValid")
	return !c.bad
}

func (c *fullConn) CheckNamedValue(v *driver.NamedValue) error {
	defer c.enter()()
	c.s.record("CheckNamedValue")
	switch v.Value {
	case "remove":
		return driver.ErrRemoveArgument
	case "refuse":
		return errors.New("refused")
	case "skip":
		return driver.ErrSkip
	}
	return nil
}

// legacyConn has the optional interfaces without contexts.
type legacyConn struct{ fakeConn }

func (c *legacyConn) Exec(_ string, args []driver.Value) (driver.Result, error) {
	defer c.enter()()
	c.s.record("Exec %v", args)
	return driver.RowsAffected(1), nil
}

func (c *legacyConn) Query(_ string, args []driver.Value) (driver.Rows, error) {
	defer c.enter()()
	c.s.record("Query %v", args)
	return &fakeRows{}, nil
}

// stmtOnlyConn accepts its own type of argument, but only in its statements.
type stmtOnlyConn struct{ fakeConn }

func (c *stmtOnlyConn) Prepare(query string) (driver.Stmt, error) {
	st, err := c.fakeConn.Prepare(query)
	return &pickyStmt{st.(*fakeStmt)}, err
}

type pickyStmt struct{ *fakeStmt }

type point struct{ x, y int }

func (s *pickyStmt) CheckNamedValue(v *driver.NamedValue) error {
	if p, ok := v.Value.(point); ok {
		v.Value = fmt.Sprintf("(%d,%d)", p.x, p.y)
	}
	return nil
}

// noValidator is like pgx's stdlib.Conn: it lacks one of the two interfaces that keepConnOnRollback
// needs.
type noValidator struct{ fakeConn }

func (c *noValidator) ResetSession(context.Context) error { return nil }

func (c *noValidator) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return &fakeTx{&c.fakeConn}, nil
}

type fakeConnector struct {
	s    *server
	make func(fakeConn) driver.Conn
}

func (c *fakeConnector) Driver() driver.Driver { return fakeDriver{c} }

func (c *fakeConnector) Connect(ctx context.Context) (driver.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.s.connectErr != nil {
		if err := c.s.connectErr(); err != nil {
			return nil, err
		}
	}
	n := c.s.dials.Add(1)
	raise(&c.s.peak, c.s.open.Add(1))
	return c.make(fakeConn{s: c.s, n: n}), nil
}

type fakeDriver struct{ c *fakeConnector }

func (d fakeDriver) Open(string) (driver.Conn, error) { return d.c.Connect(context.Background()) }

func plain(c fakeConn) driver.Conn    { return &c }
func full(c fakeConn) driver.Conn     { return &fullConn{c} }
func legacy(c fakeConn) driver.Conn   { return &legacyConn{c} }
func stmtOnly(c fakeConn) driver.Conn { return &stmtOnlyConn{c} }
func unvalid(c fakeConn) driver.Conn  { return &noValidator{c} }
