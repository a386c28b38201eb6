package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

const (
	originalTTL   = 5 * time.Second
	originalRetry = 500 * time.Millisecond
)

// original is the algorithm of PassBuddy 1.0.2 for Node: a sorted set of permits, one plain script,
// and a retry every 500 ms while no permit is free. It differs in the original's favour. It loads
// the script once instead of sending it with each call, its leases end when they should, and it
// retries until ctx ends instead of five times.
type original struct {
	client   *redis.Client
	key      string
	capacity int
}

// KEYS[1] the sorted set; ARGV capacity, the client's clock in ms, the lease's expiry in ms, the
// permit's id; returns 1 if the permit is now held.
var originalAcquire = redis.NewScript(`
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[2])
if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[1]) then
	redis.call('ZADD', KEYS[1], ARGV[3], ARGV[4])
	return 1
end
return 0`)

func newOriginal(ctx context.Context, cfg Config) (*original, error) {
	opts, err := redis.ParseURL(cfg.RedisURL)
	if err != nil {
		return nil, err
	}
	o := &original{client: redis.NewClient(opts), key: cfg.Semaphore, capacity: cfg.Capacity}
	if err := originalAcquire.Load(ctx, o.client).Err(); err != nil {
		_ = o.client.Close()
		return nil, fmt.Errorf("original: %w", err)
	}
	return o, nil
}

// acquire waits for a permit and returns its id.
func (o *original) acquire(ctx context.Context) (string, error) {
	id := uuid.NewString()
	for {
		now := time.Now()
		held, err := originalAcquire.Run(ctx, o.client, []string{o.key},
			o.capacity, now.UnixMilli(), now.Add(originalTTL).UnixMilli(), id).Bool()
		if err != nil || held {
			return id, err
		}
		select {
		case <-time.After(originalRetry):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func (o *original) release(id string) {
	// its lease ends by itself if Redis is unreachable
	_ = o.client.ZRem(context.Background(), o.key, id).Err()
}

func (o *original) Close() error { return o.client.Close() }

// guardedPool is a pool with a permit around each checkout.
type guardedPool struct {
	pool
	permits *original
}

func (p guardedPool) checkout(ctx context.Context) (connection, error) {
	id, err := p.permits.acquire(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := p.pool.checkout(ctx)
	if err != nil {
		p.permits.release(id)
		return nil, err
	}
	return guardedConn{conn, p.permits, id}, nil
}

func (p guardedPool) close() {
	p.pool.close()
	_ = p.permits.Close()
}

type guardedConn struct {
	connection
	permits *original
	id      string
}

func (c guardedConn) giveBack() {
	c.connection.giveBack()
	c.permits.release(c.id)
}
