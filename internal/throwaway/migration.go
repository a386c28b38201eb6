package throwaway

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/redis/go-redis/v9"
)

// MigrateSlot moves a slot with its keys to another primary while clients go on. It returns when
// all nodes know the new owner.
func (c *RedisCluster) MigrateSlot(ctx context.Context, slot int, to *Redis) error {
	m, err := c.BeginMigration(ctx, slot, to)
	if err != nil {
		return err
	}
	if _, err := m.MoveKeys(ctx, -1); err != nil {
		return err
	}
	return m.Finish(ctx)
}

// Migration is a slot that is being moved. Meanwhile the source answers ASK for a key that it
// lacks. It answers TRYAGAIN to a command or script of which it has only some of the keys.
type Migration struct {
	cluster  *RedisCluster
	slot     int
	from, to *Redis
	toID     string
}

// BeginMigration opens the slot for moving to another primary. No key moves yet.
func (c *RedisCluster) BeginMigration(
	ctx context.Context, slot int, to *Redis,
) (*Migration, error) {
	from, err := c.Owner(ctx, slot)
	if err != nil {
		return nil, err
	}
	if from == to {
		return nil, fmt.Errorf("throwaway: slot %d is at %s already", slot, to.Addr())
	}
	m := &Migration{cluster: c, slot: slot, from: from, to: to}
	source, target := from.patient(), to.patient()
	defer source.Close()
	defer target.Close()
	fromID, err := source.Do(ctx, "CLUSTER", "MYID").Text()
	if err != nil {
		return nil, fmt.Errorf("throwaway: %w", err)
	}
	if m.toID, err = target.Do(ctx, "CLUSTER", "MYID").Text(); err != nil {
		return nil, fmt.Errorf("throwaway: %w", err)
	}
	// In this order: the source redirects clients to the target, which must be ready for them.
	if err := target.Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID).Err(); err != nil {
		return nil, fmt.Errorf("throwaway: %w", err)
	}
	if err := source.Do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", m.toID).Err(); err != nil {
		return nil, fmt.Errorf("throwaway: %w", err)
	}
	return m, nil
}

// MoveKeys moves up to n keys that are still at the source, all of them if n is negative. It
// returns how many it moved.
func (m *Migration) MoveKeys(ctx context.Context, n int) (moved int, err error) {
	client := m.from.patient()
	defer client.Close()
	for n < 0 || moved < n {
		batch := 100
		if n >= 0 {
			batch = min(batch, n-moved)
		}
		keys, err := client.ClusterGetKeysInSlot(ctx, m.slot, batch).Result()
		if err != nil {
			return moved, fmt.Errorf("throwaway: %w", err)
		}
		if len(keys) == 0 {
			return moved, nil
		}
		if err := m.migrate(ctx, client, keys); err != nil {
			return moved, err
		}
		moved += len(keys)
	}
	return moved, nil
}

func (m *Migration) migrate(ctx context.Context, client *redis.Client, keys []string) error {
	host, port, err := net.SplitHostPort(m.to.Addr())
	if err != nil {
		return fmt.Errorf("throwaway: %w", err)
	}
	args := []any{"MIGRATE", host, port, "", 0, startTimeout.Milliseconds()}
	if password := m.to.opts.Password; password != "" {
		args = append(args, "AUTH", password)
	}
	args = append(args, "KEYS")
	for _, key := range keys {
		args = append(args, key)
	}
	if err := client.Do(ctx, args...).Err(); err != nil {
		return fmt.Errorf("throwaway: MIGRATE: %w", err)
	}
	return nil
}

// Finish makes the target the owner, and returns when all nodes know. All keys must have been
// moved.
func (m *Migration) Finish(ctx context.Context) error {
	// The target comes first. If the source came first and the rest failed, no node would own the
	// slot.
	for _, node := range []*Redis{m.to, m.from} {
		if _, err := node.do(ctx, "CLUSTER", "SETSLOT", m.slot, "NODE", m.toID); err != nil {
			return err
		}
	}
	owner, err := m.cluster.AwaitFailover(ctx, m.slot, m.from)
	if err == nil && owner != m.to {
		err = errors.New("throwaway: slot went to " + owner.Addr())
	}
	return err
}
