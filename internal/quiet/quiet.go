// Package quiet silences the logs that would bury the failures of tests that cut connections.
package quiet

import (
	"context"

	"github.com/redis/go-redis/v9"
)

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// Redis silences go-redis's own log in this process, which has a line for each failed dial. A
// session logs an outage to its Config.Logger anyway. Call Redis before the first client is made.
func Redis() { redis.SetLogger(silent{}) }
