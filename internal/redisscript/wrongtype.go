package redisscript

import (
	"context"
	_ "embed"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// kinds are the types of the keys, in the order of Keys.
var kinds = strings.Fields(
	"zset zset hash zset hash zset zset hash hash zset hash hash hash hash zset stream")

//go:embed types.lua
var typesText string

var typesScript = redis.NewScript(typesText)

// explain turns Redis's bare WRONGTYPE into an error that names the offending key and its type. It
// returns any other error as it is.
func explain(ctx context.Context, c redis.Scripter, k Keys, err error) error {
	// Not HasPrefix: Redis 6 puts the place of the error before its code.
	if !strings.Contains(err.Error(), "WRONGTYPE") {
		return err
	}
	types, failed := typesScript.Run(ctx, c, k.all).StringSlice()
	if failed != nil || len(types) != len(kinds) {
		return err
	}
	for i, is := range types {
		if is != kinds[i] && is != "none" {
			return fmt.Errorf("the key %q holds a %s where a %s of ours belongs: "+
				"delete it, or choose another Config.Name: %w", k.all[i], is, kinds[i], err)
		}
	}
	return err
}
