package redisscript

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Reads of a miniredis that is called without a connection.

func (p *inProcess) read(command ...any) ([]any, error) {
	v, err := p.dispatch(command...)
	list, _ := v.([]any)
	return list, err
}

func (p *inProcess) Time(ctx context.Context) *redis.TimeCmd {
	cmd := redis.NewTimeCmd(ctx)
	got, err := p.read("TIME")
	if err != nil {
		cmd.SetErr(err)
		return cmd
	}
	seconds, _ := strconv.ParseInt(fmt.Sprint(got[0]), 10, 64)
	micros, _ := strconv.ParseInt(fmt.Sprint(got[1]), 10, 64)
	cmd.SetVal(time.Unix(seconds, micros*1000))
	return cmd
}

func (p *inProcess) HMGet(ctx context.Context, key string, fields ...string) *redis.SliceCmd {
	command := []any{"HMGET", key}
	for _, f := range fields {
		command = append(command, f)
	}
	cmd := redis.NewSliceCmd(ctx)
	got, err := p.read(command...)
	cmd.SetVal(got)
	cmd.SetErr(err)
	return cmd
}

func (p *inProcess) ZScan(
	ctx context.Context, key string, cursor uint64, _ string, count int64,
) *redis.ScanCmd {
	return p.scan(ctx, "ZSCAN", key, cursor, count)
}

func (p *inProcess) HScan(
	ctx context.Context, key string, cursor uint64, _ string, count int64,
) *redis.ScanCmd {
	return p.scan(ctx, "HSCAN", key, cursor, count)
}

func (p *inProcess) scan(
	ctx context.Context, command, key string, cursor uint64, count int64,
) *redis.ScanCmd {
	cmd := redis.NewScanCmd(ctx, nil)
	got, err := p.read(command, key, cursor, "COUNT", count)
	if err != nil {
		cmd.SetErr(err)
		return cmd
	}
	next, _ := strconv.ParseUint(fmt.Sprint(got[0]), 10, 64)
	var texts []string
	for _, v := range got[1].([]any) {
		texts = append(texts, fmt.Sprint(v))
	}
	cmd.SetVal(texts, next)
	return cmd
}

// Values that anybody writes into Redis are read as numbers that arithmetic survives, or not at
// all.
func TestASnapshotOfHostileValues(t *testing.T) {
	k := NewKeys("p-n")
	p := newInProcess(t, k).(*inProcess)
	p.setTime(modelStart)
	mini, keys := p.mini, k.All()
	for _, field := range []string{"cap", "limit", "gate", "skew", "limitat", "pause"} {
		mini.HSet(keys[2], field, "1e999")
	}
	for _, key := range []string{keys[0], keys[1], keys[3], keys[5]} {
		for i, score := range []float64{1e300, -1e300, 0.5} {
			if _, err := mini.ZAdd(key, score, fmt.Sprintf("member %d", i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	mini.HSet(keys[4], "session", "{")
	mini.HSet(keys[7], "pool", "many")
	s, err := Load(t.Context(), p, k)
	if err != nil {
		t.Fatal(err)
	}
	for _, ids := range s.Queue {
		if len(ids) == 0 {
			t.Error("a request of nothing in the queue")
		}
	}
	for _, numbers := range []map[string]int64{s.Permits, s.Sessions, s.Declared, s.Held} {
		for name, n := range numbers {
			if n > 1<<53 || n < -1<<53 {
				t.Errorf("%q: %d, which no arithmetic survives", name, n)
			}
		}
	}
	if s.Capacity > 1<<53 || s.PausedUntil > 1<<53 || s.Held["pool"] != 0 {
		t.Errorf("capacity %d, paused until %d, held %d", s.Capacity, s.PausedUntil, s.Held["pool"])
	}
}
