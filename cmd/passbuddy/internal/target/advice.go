package target

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
)

// advices say what to do about an error that has one of those words in it. The first one counts.
var advices = []struct {
	words  []string
	advice string
}{
	{[]string{"refused"}, "Nothing listens there: check the port, and that Redis runs."},
	{[]string{"WRONGPASS", "NOAUTH"}, "The server was reached: check user and password."},
	{[]string{"WRONGTYPE"},
		"Another program uses that key: delete or rename it, or use another --prefix."},
	{[]string{"READONLY"}, "This Redis is a replica: point --redis at the primary."},
	{[]string{"MOVED"}, "This is a node of a Redis Cluster, and another one has the semaphore: " +
		"point --redis at that one."},
	{[]string{"OOM"}, "Redis is full: free memory, or raise its maxmemory."},
	{[]string{"MISCONF"},
		"Redis cannot write its snapshot, and refuses all writes: look for a full disk."},
	{[]string{"LOADING"}, "Redis still loads its data: wait."},
	{[]string{"NOPERM"},
		"The server was reached: this user lacks a permission, see docs/SECURITY.md."},
	{[]string{"tls", "certificate", "EOF"},
		"TLS? Use rediss:// for a server that speaks TLS, and redis:// for one that does not."},
}

// Advice says what to do about an error of Redis's.
func (t *Target) Advice(err error) string {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return "The name of the host cannot be resolved: check --redis, and from where you look."
	}
	for _, a := range advices {
		if slices.ContainsFunc(a.words, func(w string) bool { return strings.Contains(err.Error(), w) }) {
			return a.advice
		}
	}
	switch late := errors.Is(err, context.DeadlineExceeded) || isTimeout(err); {
	case late && t.isTLS():
		return "Does this server speak TLS? A plain one never answers rediss://. Else a firewall " +
			"drops it, or Redis hangs."
	case late:
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
