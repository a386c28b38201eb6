// Package quiet keeps tests that cut connections from burying what they say of their failures.
package quiet

import (
	"context"

	"github.com/redis/go-redis/v9"
)

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// Redis silences go-redis's own log in this process, which has a line for each dial that fails. What
// matters of an outage, a session logs to its Config.Logger. Call it before any client is made.
func Redis() { redis.SetLogger(silent{}) }
