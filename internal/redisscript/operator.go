package redisscript

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/message"
)

// This file has what an operator does to a fleet. expected is as for Leave; 0 if it is unknown.

// SetCapacity sets the operator's capacity, or withdraws it with 0, and returns the one in force.
func SetCapacity(
	ctx context.Context, c redis.Scripter, k Keys, expected int64, n int, by string,
) (int64, error) {
	capacity, err := capacityScript.Run(ctx, c, k.all, expected, n, by).Int64()
	if err != nil {
		return 0, fmt.Errorf("script capacity: %w", explain(ctx, c, k, err))
	}
	return capacity, nil
}

// PauseGrants pauses grants for a time, or until they are resumed if span is below zero, and returns
// how many permits are held.
func PauseGrants(
	ctx context.Context, c redis.Scripter, k Keys, span time.Duration, drain bool, by, reason string,
) (held int64, err error) {
	note, err := json.Marshal(message.PauseNote{By: by, Reason: reason})
	if err != nil {
		panic("bug: a text that JSON cannot hold: " + err.Error())
	}
	millis := max(span.Milliseconds(), 1)
	if span < 0 {
		millis = -1
	}
	held, err = pauseScript.Run(ctx, c, k.all, 0, millis, oneIf(drain), string(note), by).Int64()
	if err != nil {
		return 0, fmt.Errorf("script pause: %w", explain(ctx, c, k, err))
	}
	return held, nil
}

// CountHeld returns how many permits are held, after it has ended leases that are over.
func CountHeld(ctx context.Context, c redis.Scripter, k Keys) (held int64, err error) {
	held, err = pauseScript.Run(ctx, c, k.all, 0, "", "0", "{}", "").Int64()
	if err != nil {
		return 0, fmt.Errorf("script pause: %w", explain(ctx, c, k, err))
	}
	return held, nil
}

// Resume ends a pause.
func Resume(ctx context.Context, c redis.Scripter, k Keys, by string) error {
	if err := pauseScript.Run(ctx, c, k.all, 0, 0, "0", "{}", by).Err(); err != nil {
		return fmt.Errorf("script pause: %w", explain(ctx, c, k, err))
	}
	return nil
}

// Evict recalls what a session holds, or revokes it, and returns how many permits those are.
func Evict(
	ctx context.Context, c redis.Scripter, k Keys, session string, revoke bool, by, reason string,
) (held int64, err error) {
	held, err = evictScript.Run(ctx, c, k.all, 0, session, oneIf(revoke), by, reason).Int64()
	if err != nil {
		return 0, fmt.Errorf("script evict: %w", explain(ctx, c, k, err))
	}
	return held, nil
}

// EvictOn recalls what a session was granted since Evict recalled all that it held then.
func EvictOn(ctx context.Context, c redis.Scripter, k Keys, session string) error {
	if err := evictScript.Run(ctx, c, k.all, 0, session, "", "", "").Err(); err != nil {
		return fmt.Errorf("script evict: %w", explain(ctx, c, k, err))
	}
	return nil
}

func oneIf(yes bool) string {
	if yes {
		return "1"
	}
	return "0"
}
