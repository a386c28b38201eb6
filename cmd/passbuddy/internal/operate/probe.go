package operate

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/status"
)

// pings is how often doctor asks: the slowest counts.
const pings = 10

func ping(ctx context.Context, client *redis.Client) (slowest float64, err error) {
	if err := client.Ping(ctx).Err(); err != nil { // it dials
		return 0, err
	}
	for range pings {
		began := time.Now()
		if err := client.Ping(ctx).Err(); err != nil {
			return slowest, err
		}
		slowest = max(slowest, time.Since(began).Seconds())
	}
	return slowest, nil
}

// reason is an error without what go-redis sets before it.
func reason(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return strings.TrimSuffix(err.Error(), ".")
}

// advice says what to do about an error of Redis's.
func advice(err error) string {
	text := err.Error()
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return "The name of the host cannot be resolved: check --redis, and from where you look."
	case strings.Contains(text, "refused"):
		return "Nothing listens there: check the port, and that Redis runs."
	case strings.Contains(text, "WRONGPASS"), strings.Contains(text, "NOAUTH"):
		return "The server was reached: check user and password."
	case strings.Contains(text, "NOPERM"):
		return "The server was reached: this user lacks a permission, see docs/SECURITY.md."
	case strings.Contains(text, "tls"), strings.Contains(text, "certificate"),
		strings.Contains(text, "EOF"):
		return "TLS? Use rediss:// for a server that speaks TLS, and redis:// for one that does not."
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return "A firewall drops it, or Redis hangs: look at its host (CPU, swap, disk), and at " +
			"redis-cli --latency from there."
	}
	return "Check --redis."
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func shortestLease(d status.Document) (ttl float64) {
	for _, p := range d.Processes {
		if p.TTL > 0 && (ttl == 0 || p.TTL < ttl) {
			ttl = p.TTL
		}
	}
	return ttl
}

// parseInfo reads the reply to INFO: lines of field:value.
func parseInfo(text string) map[string]string {
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields
}

func version(text string) (major, minor int) {
	parts := strings.SplitN(text, ".", 3)
	if len(parts) < 2 {
		return 0, 0
	}
	major, _ = strconv.Atoi(parts[0])
	minor, _ = strconv.Atoi(parts[1])
	return major, minor
}

// pubsub tries to subscribe as a session does, by a channel of the semaphore that nobody uses.
func (r *report) pubsub(ctx context.Context, client *redis.Client, base string) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout/2)
	defer cancel()
	channel := "{" + base + "}:push:doctor"
	try := func(subscription *redis.PubSub) error {
		defer subscription.Close()
		_, err := subscription.Receive(ctx)
		return err
	}
	err := try(client.SSubscribe(ctx, channel))
	if err != nil && !strings.Contains(err.Error(), "NOPERM") {
		err = try(client.Subscribe(ctx, channel)) // before Redis 7
	}
	switch {
	case err == nil:
		r.well("Redis's pub/sub works")
	case strings.Contains(err.Error(), "NOPERM"):
		r.found(status.Info, "acl", "This user may not subscribe to the semaphore's channels. To look, "+
			"that is as it should be; a process of the fleet needs it.", "", "See docs/SECURITY.md.")
	default:
		r.found(status.Warning, "pubsub", "Redis's pub/sub does not work: "+reason(err)+". Grants then "+
			"arrive with the next heartbeat, not at once.", "", "A proxy before Redis may not support it.")
	}
}
