package passbuddy

import (
	"database/sql/driver"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// AcquireTimeout is one for a whole checkout: a caller whose turn comes late, with a connection that proves dead, does not wait for as long
// again for the end of that.
func TestAcquireTimeoutIsOneForACheckout(t *testing.T) {
	const most = 10 * time.Second
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			bubble(t, 1, full, Config{Scope: scope, AcquireTimeout: most}, func(t *testing.T, b *bench) {
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
						t.Errorf("%v, want at capacity: the dead connection's backend lives for a minute", err)
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
