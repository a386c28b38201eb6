package engine

import (
	"context"

	"github.com/passbuddy/passbuddy/internal/core"
)

// This file is for package passbuddytest, whose faults a session must have noticed before the test
// goes on.

// Renew sends a call of the heartbeat now, and returns once its reply is applied: what Redis no
// longer has is lost. It returns an error that matches core.ErrClosed if the session has ended.
func (s *Session) Renew(ctx context.Context) error { return s.beat(ctx) }

// Closed reports whether Close has been called.
func (s *Session) Closed() bool { return read(s, (*core.Core).Closed) }
