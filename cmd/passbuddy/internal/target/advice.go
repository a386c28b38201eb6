package target

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
)

// Advice says what to do about an error of Redis's.
func (t *Target) Advice(err error) string {
	text := err.Error()
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return "The name of the host cannot be resolved: check --redis, and from where you look."
	case strings.Contains(text, "refused"):
		return "Nothing listens there: check the port, and that Redis runs."
	case strings.Contains(text, "WRONGPASS"), strings.Contains(text, "NOAUTH"):
		return "The server was reached: check user and password."
	case strings.Contains(text, "WRONGTYPE"):
		return "Another program uses that key: delete or rename it, or use another --prefix."
	case strings.Contains(text, "READONLY"):
		return "This Redis is a replica: point --redis at the primary."
	case strings.Contains(text, "MOVED"):
		return "This is a node of a Redis Cluster, and another one has the semaphore: point --redis " +
			"at that one."
	case strings.Contains(text, "OOM"):
		return "Redis is full: free memory, or raise its maxmemory."
	case strings.Contains(text, "MISCONF"):
		return "Redis cannot write its snapshot, and refuses all writes: look for a full disk."
	case strings.Contains(text, "LOADING"):
		return "Redis still loads its data: wait."
	case strings.Contains(text, "NOPERM"):
		return "The server was reached: this user lacks a permission, see docs/SECURITY.md."
	case strings.Contains(text, "tls"), strings.Contains(text, "certificate"),
		strings.Contains(text, "EOF"):
		return "TLS? Use rediss:// for a server that speaks TLS, and redis:// for one that does not."
	case (errors.Is(err, context.DeadlineExceeded) || isTimeout(err)) && t.isTLS():
		return "Does this server speak TLS? A plain one never answers rediss://. Else a firewall " +
			"drops it, or Redis hangs."
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return "A firewall drops it, or Redis hangs: look at its host (CPU, swap, disk), and at " +
			"redis-cli --latency from there."
	}
	return "Check --redis."
}

// Explain adds to an error of Redis's what to do next.
func (t *Target) Explain(err error) error {
	stop := ". "
	if strings.HasSuffix(err.Error(), ".") {
		stop = " "
	}
	return fmt.Errorf("%w%s%s `passbuddy doctor` tries each step to Redis, and says which one fails",
		err, stop, t.Advice(err))
}

func (t *Target) isTLS() bool { return strings.HasPrefix(strings.ToLower(t.RedisURL), "rediss:") }

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}
