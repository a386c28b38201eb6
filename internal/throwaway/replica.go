package throwaway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// nobody is the user as which a replica with a cut link tries to log in.
const nobody = "nobody-replication-is-cut"

// StartReplica starts a replica of r and returns when it has all of r's data. Password, ACL and TLS
// are r's, unless opts has its own. The replica is a server of its own, with its own Stop.
func (r *Redis) StartReplica(ctx context.Context, opts RedisOptions) (*Redis, error) {
	replica, err := r.launchReplica(ctx, opts)
	if err != nil {
		return nil, err
	}
	if err := replica.AwaitSync(ctx, r); err != nil {
		return nil, errors.Join(err, replica.Stop())
	}
	return replica, nil
}

// launchReplica starts a replica without waiting for its data.
func (r *Redis) launchReplica(ctx context.Context, opts RedisOptions) (*Redis, error) {
	if opts.Password == "" {
		opts.Password = r.opts.Password
	}
	if opts.ACL == nil {
		opts.ACL = r.opts.ACL
	}
	if opts.TLS == nil {
		opts.TLS = r.opts.TLS
	}
	host, port, err := net.SplitHostPort(r.Addr())
	if err != nil {
		return nil, fmt.Errorf("throwaway: %w", err)
	}
	opts.Config = append([]string{"replicaof " + host + " " + port}, opts.Config...)
	return launchRedis(ctx, opts, plainRedis)
}

// Follow makes r a replica of the server at addr, a host:port that may be a [Proxy]'s. With "" it
// makes r a primary that keeps its data. Follow returns before the data has arrived: see AwaitSync.
// A restart keeps the setting.
func (r *Redis) Follow(ctx context.Context, addr string) error {
	host, port := "NO", "ONE"
	if addr != "" {
		var err error
		if host, port, err = net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("throwaway: %w", err)
		}
	}
	if _, err := r.do(ctx, "REPLICAOF", host, port); err != nil {
		return err
	}
	_, err := r.do(ctx, "CONFIG", "REWRITE")
	return err
}

// AwaitSync waits until the replica has all writes that reached primary before the call.
func (r *Redis) AwaitSync(ctx context.Context, primary *Redis) error {
	source, target := primary.admin(), r.admin()
	defer source.Close()
	defer target.Close()
	written := int64(-1)
	return await(ctx, "replication from "+primary.Addr()+" to "+r.Addr(),
		func(ctx context.Context) string {
			if written < 0 {
				info, err := replication(ctx, source)
				if err != nil {
					return err.Error()
				}
				if info["role"] != "master" {
					return primary.Addr() + " is no primary"
				}
				written = offset(info, "master_repl_offset")
			}
			info, err := replication(ctx, target)
			switch {
			case err != nil:
				return err.Error()
			case info["role"] != "slave":
				return r.Addr() + " is no replica"
			case info["master_link_status"] != "up":
				return "the link is " + info["master_link_status"]
			case info["master_sync_in_progress"] != "0":
				return "the first copy is on its way"
			case offset(info, "slave_repl_offset") < written:
				return fmt.Sprintf("at %s of %d", info["slave_repl_offset"], written)
			}
			return ""
		})
}

// CutReplication breaks the link of a replica, of any kind, to its primary, until HealReplication
// or a promotion. The writes from now on are lost if the replica is promoted. Sentinels and the
// other nodes of a cluster still reach it. CutReplication returns when the link is down.
func (r *Redis) CutReplication(ctx context.Context) error {
	client := r.patient()
	defer client.Close()
	// A node of a cluster accepts no command for this. So the next login is made to fail, and then
	// one is forced. Without a password a replica does not log in at all, whatever its user.
	if err := replicateAs(ctx, client, nobody, orDefault(r.opts.Password, nobody)); err != nil {
		return err
	}
	return await(ctx, "cut of the replication to "+r.Addr(), func(ctx context.Context) string {
		if err := client.Do(ctx, "CLIENT", "KILL", "TYPE", "master").Err(); err != nil {
			return err.Error()
		}
		info, err := replication(ctx, client)
		switch {
		case err != nil:
			return err.Error()
		case info["role"] != "slave":
			return r.Addr() + " is no replica"
		case info["master_link_status"] == "up":
			return "the link is up"
		}
		return ""
	})
}

// HealReplication lets the replica reconnect after CutReplication; AwaitSync tells when it has
// caught up.
func (r *Redis) HealReplication(ctx context.Context) error {
	client := r.patient()
	defer client.Close()
	return replicateAs(ctx, client, "", r.opts.Password)
}

// replicateAs sets the user as which a replica logs in. The setting outlives a restart, because a
// sentinel may have the server write its configuration.
func replicateAs(ctx context.Context, client *redis.Client, user, password string) error {
	for _, err := range []error{
		client.ConfigSet(ctx, "masteruser", user).Err(),
		client.ConfigSet(ctx, "masterauth", password).Err(),
		client.ConfigRewrite(ctx).Err(),
	} {
		if err != nil {
			return fmt.Errorf("throwaway: %w", err)
		}
	}
	return nil
}

// IsPrimary reports whether the server, which must run, considers itself a primary.
func (r *Redis) IsPrimary(ctx context.Context) (bool, error) {
	client := r.admin()
	defer client.Close()
	info, err := replication(ctx, client)
	return info["role"] == "master", err
}

// replication returns the server's own report on its replication, by field.
func replication(ctx context.Context, client *redis.Client) (map[string]string, error) {
	text, err := client.Info(ctx, "replication").Result()
	if err != nil {
		return nil, fmt.Errorf("throwaway: %w", err)
	}
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), ":"); found {
			fields[name] = value
		}
	}
	return fields, nil
}

func offset(info map[string]string, field string) int64 {
	n, err := strconv.ParseInt(info[field], 10, 64)
	if err != nil {
		return -1
	}
	return n
}
