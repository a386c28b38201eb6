package operate

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/screen"
	"github.com/passbuddy/passbuddy/internal/status"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A report is what doctor prints with --json.
type report struct {
	Version  int              `json:"version"`
	Checks   []string         `json:"checks"` // what was looked at, and is well
	Findings []status.Finding `json:"findings"`
}

func (r *report) well(format string, args ...any) {
	r.Checks = append(r.Checks, fmt.Sprintf(format, args...))
}

func (r *report) found(severity, code, text, command, effect string) {
	r.Findings = append(r.Findings, status.Finding{Severity: severity, Code: code, Text: text,
		Command: command, Effect: effect})
}

func (t *Tool) doctorCommand() *cobra.Command {
	return Command(cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong, or will be: Redis, Postgres, the fleet",
		Long: `Check Redis (version, eviction, persistence, replicas against WaitReplicas, latency
against the leases, permissions, pub/sub), with --postgres the server (room, limits, settings), and the fleet
(capacity, leases, versions, holders that never give back). Each finding names the change
to make. It writes nothing.

Exit codes: 0 nothing is wrong; 3 something is; 69 Redis cannot be asked.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		i, end, err := t.Inspect()
		if err != nil {
			return err
		}
		defer end()
		r, err := t.examine(cmd.Context(), i)
		if failed := t.showReport(cmd.OutOrStdout(), r); failed != nil {
			return failed
		}
		if err != nil {
			return exit.With(exit.Unavailable, nil) // the report has said so
		}
		for _, f := range r.Findings {
			if f.Severity != status.Info {
				return exit.With(exit.Trouble, nil)
			}
		}
		return nil
	})
}

// examine looks at everything. Its error says that Redis cannot be asked.
func (t *Tool) examine(ctx context.Context, i *semaphore.Inspector) (*report, error) {
	r := &report{Version: status.Version, Checks: []string{}, Findings: []status.Finding{}}
	client, err := t.client()
	if err != nil {
		return r, err
	}
	defer client.Close()
	d, err := t.Build(ctx, i, nil)
	reached := r.redis(ctx, client, t.Target.String(), d)
	if v := d.Postgres; v != nil {
		r.well("Postgres %s answers: max_connections %d, %d reserved, %d backends", v.Version,
			v.MaxConnections, v.Reserved, v.Total())
	}
	if err == nil {
		r.well("%s of %q read in %s: %s held, %s waiting", status.Count(len(d.Processes), "session"),
			d.Semaphore, status.Span(d.Read), status.Count(d.Held, "permit"),
			status.Count(d.Waiting, "request"))
	}
	if !reached {
		// It has said which step to Redis fails, which is more than the document's finding says.
		for _, f := range d.Findings {
			if f.Code != "redis" {
				r.Findings = append(r.Findings, f)
			}
		}
		return r, semaphore.ErrUnavailable
	}
	r.Findings = append(d.Findings, r.Findings...)
	return r, err
}

func (t *Tool) showReport(out io.Writer, r *report) error {
	if t.JSON {
		return printJSON(out, r)
	}
	width, _ := t.sizeOf(out)
	var lines []screen.Line
	for _, text := range r.Checks {
		lines = append(lines, screen.Line{Text: "✓ " + screen.Clean(text), Style: screen.Good})
	}
	for _, severity := range []string{status.Critical, status.Warning, status.Info} {
		for _, f := range r.Findings {
			if f.Severity == severity {
				lines = append(lines, screen.Finding(f, width, 0)...)
			}
		}
	}
	_, err := io.WriteString(out, screen.String(lines, t.colours(out)))
	return err
}

// redis looks at the server, step by step. It returns whether it could be reached.
func (r *report) redis(
	ctx context.Context, client *redis.Client, base string, d status.Document,
) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*readTimeout)
	defer cancel()
	addr := client.Options().Addr
	slowest, err := ping(ctx, client)
	if err != nil {
		r.found(status.Critical, "redis", fmt.Sprintf("Redis at %s does not answer a PING: %s.", addr,
			reason(err)), "", advice(err))
		return false
	}
	text := fmt.Sprintf("Redis at %s answers in %s, the slowest of %d", addr,
		status.Span(slowest), pings)
	if ttl := shortestLease(d); ttl > 0 && slowest > ttl/5 {
		r.found(status.Warning, "slow-redis", fmt.Sprintf("%s: %.0f %% of the shortest lease, %s.", text,
			100*slowest/ttl, status.Span(ttl)), "redis-cli --latency-history",
			"Shows when. Look for slow commands (SLOWLOG GET), swapping, and forks for persistence.")
	} else {
		r.well("%s", text)
	}
	info, err := client.Info(ctx).Result()
	if err != nil {
		r.found(status.Info, "redis-info", "Version, memory and persistence of Redis are unknown: "+
			reason(err)+".", "", "Allow this user +info.")
	} else {
		r.server(parseInfo(info))
		r.replicas(parseInfo(info), d.Processes)
	}
	r.pubsub(ctx, client, base)
	return true
}

// server looks at what INFO says.
func (r *report) server(info map[string]string) {
	major, minor := version(info["redis_version"])
	switch {
	case major == 0:
	case major < 6 || major == 6 && minor < 2:
		r.found(status.Warning, "redis-version", fmt.Sprintf("Redis is %s: PassBuddy is tested with 6.2 "+
			"and later.", info["redis_version"]), "", "Upgrade Redis.")
	default:
		r.well("Redis is version %s, %s", info["redis_version"], info["redis_mode"])
	}
	limit, policy := info["maxmemory"], info["maxmemory_policy"]
	switch {
	case policy == "":
	case policy == "noeviction":
		r.well("Redis evicts no keys")
	case limit == "" || limit == "0":
		r.well("Redis has no limit of memory, so its policy %s evicts nothing", policy)
	case strings.HasPrefix(policy, "volatile-"):
		r.well("Redis's policy %s evicts only keys that expire, which PassBuddy's do not", policy)
	default:
		r.found(status.Warning, "eviction", fmt.Sprintf("Redis may evict PassBuddy's keys when its "+
			"memory is full: maxmemory-policy is %s.", policy),
			"redis-cli config set maxmemory-policy noeviction",
			"Writes fail instead when the memory is full. Better: a Redis of its own.")
	}
	if info["loading"] == "1" {
		r.found(status.Critical, "redis-loading", "Redis is still loading its data.", "", "")
	}
	if info["role"] == "slave" {
		r.found(status.Critical, "replica", "This Redis is a replica: nothing can be granted through it.",
			"", "Point --redis, and the fleet, at the primary.")
	}
	if info["rdb_last_bgsave_status"] == "err" {
		r.found(status.Warning, "bgsave", "Redis's last snapshot to disk failed. By default it then "+
			"refuses all writes.", "redis-cli config get stop-writes-on-bgsave-error",
			"Shows whether it does. Look for a full disk in Redis's log.")
	}
	switch {
	case info["aof_enabled"] == "1":
		r.well("Redis persists each change (append-only file)")
	case info["aof_enabled"] == "0":
		r.found(status.Info, "persistence", "Redis keeps no append-only file: a restart loses the "+
			"state. Then nothing new is granted for a lease, while sessions tell it what they hold.",
			"redis-cli config set appendonly yes", "Keeps the state over a restart.")
	}
}
