package engine

import (
	"context"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
)

// This file is for package passbuddytest, whose faults a session must have noticed before the test
// goes on.

// Renew sends a call of the heartbeat now, and returns once its reply is applied: what Redis no
// longer has is lost, and the pools have been told. It returns an error that matches core.ErrClosed
// if the session has ended.
func (s *Session) Renew(ctx context.Context) error {
	err := s.beat(ctx)
	// Another goroutine may be telling the pools what this call, or one before it, has found.
	for err == nil && s.isTelling() {
		select {
		case <-time.After(10 * time.Microsecond):
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	return err
}

func (s *Session) isTelling() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.delivering || len(s.events) > 0
}

// Closed reports whether Close has been called.
func (s *Session) Closed() bool { return read(s, (*core.Core).Closed) }
