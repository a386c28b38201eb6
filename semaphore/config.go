package semaphore

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The defaults of a Config.
const (
	DefaultPrefix        = "passbuddy"
	DefaultName          = "semaphore"
	DefaultCapacity      = 10
	DefaultTTL           = 5 * time.Second
	DefaultMaxAttempts   = 5
	DefaultRetryInterval = 500 * time.Millisecond
)

const (
	// minTTL leaves a renewal every TTL/3, and its retries, time to make a round trip.
	minTTL           = 100 * time.Millisecond
	maxTTL           = 24 * time.Hour
	minRetryInterval = time.Millisecond
	maxNameBytes     = 128
	maxOwnerBytes    = 200
	maxWeight        = 100
	maxCapacity      = 1_000_000
	maxTogether      = 1000 // permits of one AcquireN: they travel in one request
	maxReplicas      = 100
	maxRetryInterval = time.Hour
	maxAttempts      = 1_000_000
)

// Config describes a semaphore. The zero value of every field means its documented default.
type Config struct {
	// Prefix and Name together name the semaphore: its keys in Redis are "<Prefix>-<Name>" and
	// "{<Prefix>-<Name>}:...". Everyone who gives the same two shares one capacity. At most 128
	// bytes each, without control characters and braces. Defaults "passbuddy" and "semaphore".
	Prefix string
	Name   string

	// Capacity is how many permits the whole fleet may hold together. The effective one is the
	// smallest that a live session declares, unless an operator has set one with SetCapacity. From
	// 1 to 1,000,000, default 10.
	Capacity int

	// Min is how many permits the fleet keeps for this session while it lives: no other session is
	// granted them. So the session waits for up to Min permits no longer than it takes to recall
	// them. The fleet never recalls them from this session. The sum of the fleet's minima cannot
	// exceed the capacity: New returns an error that matches ErrCapacity if it would. Default 0.
	Min int

	// Max is how many permits this session may hold, whatever is free. A request that would exceed
	// it waits in this session. At least Min. Default 0: any number.
	Max int

	// Weight is the session's part when connection pools share the capacity under load: each of its
	// pools gets Weight times what a pool of weight 1 gets. From 1 to 100, default 1.
	Weight int

	// MaxWaiters bounds the queue: an Acquire that finds so many requests waiting in the fleet
	// fails at once with an error that matches ErrCapacity. A connection pool has one request in
	// the queue at a time, whatever its callers, and is always let in. Default 0: any number.
	MaxWaiters int

	// WaitReplicas is how many replicas of Redis must have acknowledged a grant or a renewal before
	// the session relies on it (Redis's WAIT). A failover to one of them then forgets none. It
	// costs a round trip from Redis to its replicas. With too few replicas nothing is granted, and
	// leases end. Default 0: an asynchronous failover can forget the last grants.
	WaitReplicas int

	// TTL is the length of a lease. A process that dies gives its permits back within it; a process
	// that cannot reach Redis keeps them for a tenth less. The session renews a lease after a third
	// of it, or earlier. From 100ms to 24h, default 5s.
	TTL time.Duration

	// MaxAttempts x RetryInterval bounds a wait whose ctx has no earlier deadline. Default 5; below
	// zero, ctx alone bounds it.
	MaxAttempts int

	// RetryInterval is also how often a waiter asks again by itself, should the push that
	// grants it be lost. From 1ms to 1h, default 500ms.
	RetryInterval time.Duration

	// Owner is shown to operators. Control characters are removed, and it is cut at 200 bytes.
	// Default "<host>/<program>/<pid>".
	Owner string

	// Logger receives what an operator should know: lost leases, a capacity mismatch, an
	// evicting Redis. Default slog.Default().
	Logger *slog.Logger

	// Observer is told what happens, as it happens: see there. Default nil: nobody is.
	Observer Observer
}

// withDefaults returns the Config with its defaults filled in, or the first field that is refused.
func (c Config) withDefaults() (Config, error) {
	c.Prefix = cmp.Or(c.Prefix, DefaultPrefix)
	c.Name = cmp.Or(c.Name, DefaultName)
	c.Capacity = cmp.Or(c.Capacity, DefaultCapacity)
	c.Weight = cmp.Or(c.Weight, 1)
	c.TTL = cmp.Or(c.TTL, DefaultTTL)
	c.MaxAttempts = cmp.Or(c.MaxAttempts, DefaultMaxAttempts)
	c.RetryInterval = cmp.Or(c.RetryInterval, DefaultRetryInterval)
	c.Logger = cmp.Or(c.Logger, slog.Default())
	if c.Owner == "" {
		host, _ := os.Hostname()
		c.Owner = fmt.Sprintf("%s/%s/%d", host, filepath.Base(os.Args[0]), os.Getpid())
	}
	c.Owner = clean(c.Owner)

	return c, cmp.Or(
		checkName("Prefix", c.Prefix),
		checkName("Name", c.Name),
		checkCount("Capacity", c.Capacity, maxCapacity),
		refuseIf(c.Min > c.Capacity, "Min", c.Min, "is more than Config.Capacity, %d", c.Capacity),
		checkCount("Min", c.Min, maxCapacity),
		refuseIf(c.Max > 0 && c.Max < c.Min, "Max", c.Max, "is less than Config.Min, %d", c.Min),
		checkCount("Max", c.Max, maxCapacity),
		refuseIf(c.Weight < 0 || c.Weight > maxWeight, "Weight", c.Weight, "must be from 1 to %d",
			maxWeight),
		checkCount("MaxWaiters", c.MaxWaiters, maxCapacity),
		checkCount("WaitReplicas", c.WaitReplicas, maxReplicas),
		checkLength("TTL", c.TTL, minTTL, maxTTL),
		refuseIf(c.MaxAttempts > maxAttempts, "MaxAttempts", c.MaxAttempts,
			"is too large, the most is %d; below zero it is any number", maxAttempts),
		checkLength("RetryInterval", c.RetryInterval, minRetryInterval, maxRetryInterval),
	)
}

func checkCount(field string, n, most int) error {
	return cmp.Or(
		refuseIf(n < 0, field, n, "must not be negative"),
		refuseIf(n > most, field, n, "is too large, the most is %d", most),
	)
}

func checkLength(field string, d, least, most time.Duration) error {
	return cmp.Or(
		refuseIf(d < 0, field, d, "must not be negative"),
		refuseIf(d < least, field, d, "is too short, the least is %v", least),
		refuseIf(d > most, field, d, "is too long, the most is %v", most),
	)
}

// base is "<prefix>-<name>".
func (c Config) base() string { return c.Prefix + "-" + c.Name }

// forEngine is c, with its defaults filled in, as the engine takes it.
func (c Config) forEngine() engine.Config {
	patience := time.Duration(0)
	if c.MaxAttempts > 0 {
		patience = time.Duration(c.MaxAttempts) * c.RetryInterval
	}
	cfg := engine.Config{
		Base: c.base(), Info: c.info(), Capacity: c.Capacity,
		Min: c.Min, Max: c.Max, Weight: c.Weight, MaxWaiters: c.MaxWaiters,
		WaitReplicas: c.WaitReplicas, TTL: c.TTL, RetryInterval: c.RetryInterval,
		Patience: patience, Logger: c.Logger,
	}
	if o := c.Observer; o != nil {
		cfg.Observe = func(m message.Observation) {
			o.Observe(Observation{ObservationKind(m.Kind), m.Pool, m.Duration, m.Err})
		}
	}
	return cfg
}

// info has what operators see of a session, as far as it does not change.
func (c Config) info() message.SessionInfo {
	host, _ := os.Hostname()
	return message.SessionInfo{
		Owner: c.Owner, Min: c.Min, Max: c.Max, Weight: c.Weight,
		Host: clean(host), PID: os.Getpid(), Program: clean(filepath.Base(os.Args[0])),
		Version: version(), Started: time.Now().Unix(), TTL: c.TTL.Milliseconds(),
		WaitReplicas: c.WaitReplicas,
	}
}

// version is that of this library in the program that runs, or "".
func version() string {
	const path = "github.com/passbuddy/passbuddy"
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range append(build.Deps, &build.Main) {
		if m.Path == path {
			return m.Version
		}
	}
	return ""
}

func refuse(field string, value any, why string) error {
	return fmt.Errorf("semaphore: Config.%s is %v: it %s", field, value, why)
}

func refuseIf(yes bool, field string, value any, why string, args ...any) error {
	if !yes {
		return nil
	}
	return refuse(field, value, fmt.Sprintf(why, args...))
}

func checkName(field, s string) error {
	if len(s) > maxNameBytes {
		return refuse(field, fmt.Sprintf("%q... (%d bytes)", s[:16], len(s)),
			fmt.Sprintf("is too long, the most is %d bytes", maxNameBytes))
	}
	quoted := strconv.Quote(s)
	return cmp.Or(
		refuseIf(!utf8.ValidString(s), field, quoted, "is not valid UTF-8"),
		refuseIf(strings.ContainsFunc(s, unicode.IsControl), field, quoted,
			"must not hold control characters"),
		refuseIf(strings.ContainsAny(s, "{}"), field, quoted,
			"must not hold braces, they would move its keys to other Cluster slots"),
	)
}

func clean(owner string) string {
	owner = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, owner)
	for len(owner) > maxOwnerBytes {
		_, size := utf8.DecodeLastRuneInString(owner)
		owner = owner[:len(owner)-size]
	}
	return owner
}
