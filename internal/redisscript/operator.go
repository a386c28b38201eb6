package redisscript

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/message"
)

// This file has what an operator does to a fleet. expected is as for Leave. If it is 0, unknown, a
// script that sees no heartbeat for long asks who listens: see notice_step of sessions.lua.

// Counted is the answer of an operator's script.
type Counted struct {
	Held int64 // permits
	Now  int64 // Redis's clock, as the script went by it, ms
}

func counted(v any) (Counted, error) {
	r := newReply(v)
	c := Counted{Held: r.int(), Now: r.int()}
	return c, r.err
}

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

// PauseGrants pauses grants for a time, or until they are resumed if span is below zero, and counts
// the permits that are held.
func PauseGrants(
	ctx context.Context, c redis.Scripter, k Keys,
	expected int64, span time.Duration, drain bool, by, reason string,
) (Counted, error) {
	note, err := json.Marshal(message.PauseNote{By: by, Reason: reason})
	if err != nil {
		panic("bug: a text that JSON cannot hold: " + err.Error())
	}
	millis := max(span.Milliseconds(), 1)
	if span < 0 {
		millis = -1
	}
	return pause(ctx, c, k, expected, millis, oneIf(drain), string(note), by)
}

// CountHeld counts the permits that are held, after it has ended leases that are over.
func CountHeld(ctx context.Context, c redis.Scripter, k Keys, expected int64) (Counted, error) {
	return pause(ctx, c, k, expected, "", "0", "{}", "")
}

// Resume ends a pause, and counts the permits that are held.
func Resume(
	ctx context.Context, c redis.Scripter, k Keys, expected int64, by string,
) (Counted, error) {
	return pause(ctx, c, k, expected, 0, "0", "{}", by)
}

func pause(
	ctx context.Context, c redis.Scripter, k Keys, expected int64, millis any, args ...any,
) (Counted, error) {
	args = append([]any{expected, millis}, args...)
	v, err := pauseScript.Run(ctx, c, k.all, args...).Result()
	if err != nil {
		return Counted{}, fmt.Errorf("script pause: %w", explain(ctx, c, k, err))
	}
	return counted(v)
}

// Evict recalls what a session holds, or revokes it, and counts those permits.
func Evict(
	ctx context.Context, c redis.Scripter, k Keys,
	expected int64, session string, revoke bool, by, reason string,
) (Counted, error) {
	return evict(ctx, c, k, expected, session, oneIf(revoke), by, reason)
}

// EvictOn recalls what a session was granted since Evict recalled all that it held then.
func EvictOn(
	ctx context.Context, c redis.Scripter, k Keys, expected int64, session string,
) (Counted, error) {
	return evict(ctx, c, k, expected, session, "", "", "")
}

func evict(
	ctx context.Context, c redis.Scripter, k Keys, expected int64, session, how, by, reason string,
) (Counted, error) {
	v, err := evictScript.Run(ctx, c, k.all, expected, session, how, by, reason).Result()
	if err != nil {
		return Counted{}, fmt.Errorf("script evict: %w", explain(ctx, c, k, err))
	}
	return counted(v)
}

func oneIf(yes bool) string {
	if yes {
		return "1"
	}
	return "0"
}
