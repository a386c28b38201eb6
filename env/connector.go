package env

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/internal/sessions"
	"github.com/passbuddy/passbuddy/internal/settings"
)

// connector is that of one DB. At the first Connect it becomes a user of the shared semaphore, and
// makes passbuddy's own connector, which does everything from then on.
//
// Its states: fresh, in use (inner is set), closed (closing is closed). mu guards the steps between
// them, and is not held while the semaphore is opened. So of several first Connects each can come
// back with a use. The first one sets inner, and the others release theirs. A Close in between
// wins: the uses that come back after it are released.
type connector struct {
	driver   *envDriver
	settings *settings.Settings
	opened   opened
	table    *sessions.Table
	closing  chan struct{} // closed by Close, with mu held

	inner atomic.Pointer[inUse]
	mu    sync.Mutex
}

// inUse is passbuddy's connector, and the use that it lives by.
type inUse struct {
	passbuddyConnector
	use *sessions.Use
}

// passbuddyConnector has the methods of the connector that passbuddy.WrapConnector returns.
type passbuddyConnector interface {
	driver.Connector
	io.Closer
	Left(engine.Seam) <-chan struct{} // closed when nothing of a closed DB needs the semaphore
}

var (
	_ driver.Connector = (*connector)(nil)
	_ io.Closer        = (*connector)(nil)
)

// Connect is called directly by database/sql, and calls passbuddy's Connect directly: see
// calledByOpener there.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	in := c.inner.Load()
	if in == nil {
		var err error
		if in, err = c.begin(ctx); err != nil {
			return nil, err
		}
	}
	return in.Connect(ctx)
}

// Driver asks passbuddy's connector too: passbuddy.Stats finds that by this call.
func (c *connector) Driver() driver.Driver {
	if in := c.inner.Load(); in != nil {
		in.Driver()
	}
	return c.driver
}

// begin becomes a user of the semaphore. The caller's context bounds the wait, and the DB's Close
// ends it.
func (c *connector) begin(ctx context.Context) (*inUse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-c.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	use, err := c.table.Acquire(ctx, c.settings.RedisURL, c.settings.Semaphore)
	if err != nil {
		if c.isClosed() {
			return nil, errClosed()
		}
		return nil, neverBadConn(err)
	}
	counted, ok := c.opened.counted(use.Semaphore(), c.settings.Pool).(passbuddyConnector)
	if !ok { // it has the reason
		_, err := c.opened.counted(use.Semaphore(), c.settings.Pool).Connect(ctx)
		return nil, errors.Join(err, use.Release())
	}
	in := &inUse{counted, use}
	c.mu.Lock()
	before, closed := c.inner.Load(), c.isClosed()
	if before == nil && !closed {
		c.inner.Store(in)
	}
	c.mu.Unlock()
	switch {
	case closed:
		_ = use.Release() // before the caller hears of the end
		return nil, errClosed()
	case before != nil:
		_ = use.Release() // never the last one: before has one too
		return before, nil
	}
	return in, nil
}

func (c *connector) isClosed() bool {
	select {
	case <-c.closing:
		return true
	default:
		return false
	}
}

// Close is called by DB.Close. It ends the use of the semaphore, and the last one closes it.
// Connections that are still checked out live on, as without PassBuddy, and the use with them: it
// then ends in the background.
func (c *connector) Close() error {
	c.mu.Lock()
	if c.isClosed() {
		c.mu.Unlock()
		return nil
	}
	close(c.closing)
	in := c.inner.Load()
	c.mu.Unlock()
	if in == nil {
		return nil
	}
	err := in.Close()
	left := in.Left(engine.Seam{})
	select {
	case <-left:
		return errors.Join(err, in.use.Release())
	default:
	}
	go func() {
		<-left
		if err := in.use.Release(); err != nil {
			slog.Warn("passbuddy: the semaphore of a closed DB was not left in good order",
				"error", err)
		}
	}()
	return err
}

// neverBadConn keeps driver.ErrBadConn out of Connect's errors: database/sql would try again.
func neverBadConn(err error) error {
	if errors.Is(err, driver.ErrBadConn) {
		return fmt.Errorf("passbuddy: connect: %v", err)
	}
	return err
}

// errClosed is database/sql's own error for calls on a closed DB, which it does not export.
var errClosed = sync.OnceValue(func() error {
	db := sql.OpenDB(&connector{closing: make(chan struct{})})
	_ = db.Close()
	return db.Ping()
})
