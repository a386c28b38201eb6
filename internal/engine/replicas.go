package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// replicated runs scripts for Config.WaitReplicas, each followed by WAIT on the same connection. A
// failover to a replica that acknowledged then forgets nothing on which the session relies. If too
// few replicas acknowledge, the answer becomes an error: the session does not rely on it, and asks
// again. The primary has executed the script all the same, which errs on the safe side.
//
// WAIT speaks of what its own connection wrote. So a grant that another session's call made is of
// no use before this session has asked for it.
type replicated struct {
	redis.UniversalClient
	key      string // any of the semaphore's, for the node of a Cluster
	replicas int
	patience time.Duration
}

func (r replicated) EvalSha(
	ctx context.Context, sha1 string, keys []string, args ...any,
) *redis.Cmd {
	return r.eval(ctx, func(p redis.Pipeliner) *redis.Cmd {
		return p.EvalSha(ctx, sha1, keys, args...)
	})
}

func (r replicated) Eval(
	ctx context.Context, script string, keys []string, args ...any,
) *redis.Cmd {
	return r.eval(ctx, func(p redis.Pipeliner) *redis.Cmd {
		return p.Eval(ctx, script, keys, args...)
	})
}

func (r replicated) eval(ctx context.Context, script func(redis.Pipeliner) *redis.Cmd) *redis.Cmd {
	cmd, count, err := r.once(ctx, script)
	if err != nil && redis.HasErrorPrefix(err, "MOVED") {
		// A pipeline to one node of a Cluster does not follow: go-redis has to look where the slot
		// went.
		if c, ok := r.UniversalClient.(*redis.ClusterClient); ok {
			c.ReloadState(ctx)
			cmd, count, err = r.once(ctx, script)
		}
	}
	switch {
	case err != nil:
		cmd.SetErr(err)
	case count < int64(r.replicas):
		cmd.SetErr(unacknowledged(fmt.Sprintf("%d of %d replicas acknowledged within %v",
			count, r.replicas, r.patience)))
	}
	return cmd
}

// unacknowledged is the error of an answer that too few replicas have acknowledged.
type unacknowledged string

func (e unacknowledged) Error() string { return string(e) }

func (r replicated) once(
	ctx context.Context, script func(redis.Pipeliner) *redis.Cmd,
) (*redis.Cmd, int64, error) {
	node := r.UniversalClient
	if c, ok := node.(*redis.ClusterClient); ok {
		master, err := c.MasterForKey(ctx, r.key)
		if err != nil {
			return redis.NewCmd(ctx), 0, err
		}
		node = master
	}
	p := node.Pipeline()
	cmd := script(p)
	count := p.Do(ctx, "wait", r.replicas, r.patience.Milliseconds())
	_, _ = p.Exec(ctx) // each command has its own error
	if err := cmd.Err(); err != nil {
		return cmd, 0, err
	}
	n, err := count.Int64()
	return cmd, n, err
}

// scripter is how scripts that grant or renew are run over c.
func (s *Session) scripter(c redis.UniversalClient) redis.Scripter {
	if s.cfg.WaitReplicas == 0 {
		return c
	}
	return replicated{c, s.cfg.Base, s.cfg.WaitReplicas, max(s.cfg.TTL/10, 10*time.Millisecond)}
}
