package redisscript

import (
	"context"
	_ "embed"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// What kind each key is, in the order of Keys.
var kinds = strings.Fields("zset zset hash zset hash zset zset hash hash zset hash hash hash hash zset")

//go:embed types.lua
var typesText string

var typesScript = redis.NewScript(typesText)

// explain adds to an error of a script which of the keys somebody has put something else in the
// place of. Redis says only that there is one.
func explain(ctx context.Context, c redis.Scripter, k Keys, err error) error {
	// by its code, but Redis 6 puts where it happened in front
	if !strings.Contains(err.Error(), "WRONGTYPE") {
		return err
	}
	types, asked := typesScript.Run(ctx, c, k.all).StringSlice()
	if asked != nil || len(types) != len(kinds) {
		return err
	}
	for i, is := range types {
		if is != kinds[i] && is != "none" {
			return fmt.Errorf("the key %q holds a %s where a %s of ours belongs: delete it, or choose another Config.Name: %w", k.all[i], is, kinds[i], err)
		}
	}
	return err
}
