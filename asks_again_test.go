package passbuddy

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// A permit is lost while its caller connects. No work was done under it, so the caller asks for
// another.
func TestAPermitLostWhileConnecting(t *testing.T) {
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			bubble(t, 2, full, Config{Scope: scope, AcquireTimeout: 10 * time.Second},
				func(t *testing.T, b *bench) {
					n := 0
					b.server.connectErr = func() error {
						time.Sleep(time.Second)
						if n++; n <= 2 {
							b.fleet.lose(t)
						}
						return nil
					}
					began := time.Now()
					if err := b.db.Ping(); err != nil {
						t.Errorf("Ping fails although a permit is free: %v", err)
					}
					if took := time.Since(began); took > 4*time.Second {
						t.Errorf("Ping took %v, want at most 4s", took)
					}
				})
		})
	}
}

// The caller asks again for as long as it may wait, and no longer.
func TestAPermitLostAgainAndAgain(t *testing.T) {
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			bubble(t, 2, full, Config{Scope: scope, AcquireTimeout: 10 * time.Second},
				func(t *testing.T, b *bench) {
					b.db.SetMaxIdleConns(-1)
					b.server.connectErr = func() error {
						time.Sleep(time.Second)
						b.fleet.lose(t)
						return nil
					}
					began := time.Now()
					err := b.db.Ping()
					if took := time.Since(began); !errors.Is(err, semaphore.ErrLost) &&
						!errors.Is(err, semaphore.ErrCapacity) || took > 12*time.Second {
						// PerCheckout finds the connections that earlier tries made.
						if scope != PerCheckout || err != nil {
							t.Errorf("Ping ended with %v after %v, want ErrLost or ErrCapacity "+
								"within 12s", err, took)
						}
					}
					ctx, cancel := context.WithTimeout(context.Background(), 2500*time.Millisecond)
					defer cancel()
					began = time.Now()
					err = b.db.PingContext(ctx)
					if took := time.Since(began); err == nil && scope != PerCheckout ||
						took > 4*time.Second {
						t.Errorf("Ping with a deadline ended with %v after %v", err, took)
					}
				})
		})
	}
}
