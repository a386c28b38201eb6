package bench

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

// counters holds the counts of the servers and the kernel, each with the time of its reading.
type counters struct {
	cpu        cpuSeconds
	cpuAt      time.Time
	redis      redisCounters
	redisAt    time.Time
	sessions   int64 // that Postgres has established; -1 before version 14, the first to count them
	sessionsAt time.Time
}

func (s *servers) readCounters(ctx context.Context, admin *pgx.Conn,
	parts cpuParts) (c counters, err error) {
	c.cpuAt = time.Now()
	if c.cpu, err = readCPU(parts); err != nil {
		return c, err
	}
	c.redisAt = time.Now()
	if c.redis, err = readRedis(ctx, s.redisClient); err != nil {
		return c, err
	}
	c.sessionsAt = time.Now()
	c.sessions, err = readSessions(ctx, admin)
	return c, err
}

// readSessions asks how many sessions were established in the database. A backend reports its own
// start at once.
func readSessions(ctx context.Context, admin *pgx.Conn) (n int64, err error) {
	const query = "select case when current_setting('server_version_num')::int < 140000 then -1" +
		" else (to_jsonb(d) ->> 'sessions')::bigint end from pg_stat_database d where datname = " +
		"current_database()"
	if err := admin.QueryRow(ctx, query).Scan(&n); err != nil {
		return 0, fmt.Errorf("count sessions: %w", err)
	}
	return n, nil
}

// redisCounters are Redis's own counts.
type redisCounters struct {
	commands int64 // including those that scripts call
	scripts  int64
	reads    int64 // from sockets: one read can return several commands
}

// redisOwnCommands is how many commands one readRedis adds to the count of the next.
const redisOwnCommands = 1

func readRedis(ctx context.Context, client *redis.Client) (redisCounters, error) {
	info, err := redisInfo(ctx, client, "all")
	if err != nil {
		return redisCounters{}, err
	}
	c := redisCounters{
		commands: number(info["total_commands_processed"]),
		reads:    number(info["total_reads_processed"]),
	}
	for _, name := range []string{"eval", "evalsha", "eval_ro", "evalsha_ro", "fcall"} {
		_, calls, _ := strings.Cut(info["cmdstat_"+name], "calls=")
		calls, _, _ = strings.Cut(calls, ",")
		c.scripts += number(calls)
	}
	return c, nil
}

func redisInfo(ctx context.Context, client *redis.Client,
	section string) (map[string]string, error) {
	text, err := client.Info(ctx, section).Result()
	if err != nil {
		return nil, fmt.Errorf("ask Redis for its counts: %w", err)
	}
	info := make(map[string]string)
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok {
			info[name] = value
		}
	}
	return info, nil
}

// number returns 0 for a missing count: an older server does not count everything.
func number(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}
