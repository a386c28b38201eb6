package semaphore

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
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

	// RetryInterval is also how often a waiter looks again by itself, should the push that
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
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if c.Name == "" {
		c.Name = DefaultName
	}
	if c.Capacity == 0 {
		c.Capacity = DefaultCapacity
	}
	if c.Weight == 0 {
		c.Weight = 1
	}
	if c.TTL == 0 {
		c.TTL = DefaultTTL
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = DefaultMaxAttempts
	}
	if c.RetryInterval == 0 {
		c.RetryInterval = DefaultRetryInterval
	}
	if c.Owner == "" {
		host, _ := os.Hostname()
		c.Owner = fmt.Sprintf("%s/%s/%d", host, filepath.Base(os.Args[0]), os.Getpid())
	}
	c.Owner = clean(c.Owner)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}

	if err := checkName("Prefix", c.Prefix); err != nil {
		return c, err
	}
	if err := checkName("Name", c.Name); err != nil {
		return c, err
	}
	switch {
	case c.Capacity < 0:
		return c, refuse("Capacity", c.Capacity, "must not be negative")
	case c.Capacity > maxCapacity:
		return c, refuse("Capacity", c.Capacity,
			fmt.Sprintf("is too large, the most is %d", maxCapacity))
	case c.Min < 0:
		return c, refuse("Min", c.Min, "must not be negative")
	case c.Min > c.Capacity:
		return c, refuse("Min", c.Min, fmt.Sprintf("is more than Config.Capacity, %d", c.Capacity))
	case c.Max < 0:
		return c, refuse("Max", c.Max, "must not be negative")
	case c.Max > 0 && c.Max < c.Min:
		return c, refuse("Max", c.Max, fmt.Sprintf("is less than Config.Min, %d", c.Min))
	case c.Max > maxCapacity:
		return c, refuse("Max", c.Max, fmt.Sprintf("is too large, the most is %d", maxCapacity))
	case c.Weight < 0 || c.Weight > maxWeight:
		return c, refuse("Weight", c.Weight, fmt.Sprintf("must be from 1 to %d", maxWeight))
	case c.MaxWaiters < 0:
		return c, refuse("MaxWaiters", c.MaxWaiters, "must not be negative")
	case c.MaxWaiters > maxCapacity:
		return c, refuse("MaxWaiters", c.MaxWaiters,
			fmt.Sprintf("is too large, the most is %d", maxCapacity))
	case c.WaitReplicas < 0:
		return c, refuse("WaitReplicas", c.WaitReplicas, "must not be negative")
	case c.WaitReplicas > maxReplicas:
		return c, refuse("WaitReplicas", c.WaitReplicas,
			fmt.Sprintf("is too large, the most is %d", maxReplicas))
	case c.TTL < 0:
		return c, refuse("TTL", c.TTL, "must not be negative")
	case c.TTL < minTTL:
		return c, refuse("TTL", c.TTL, "is too short to renew, the least is "+minTTL.String())
	case c.TTL > maxTTL:
		return c, refuse("TTL", c.TTL, "is too long, the most is "+maxTTL.String())
	case c.MaxAttempts > maxAttempts:
		return c, refuse("MaxAttempts", c.MaxAttempts,
			fmt.Sprintf("is too large, the most is %d; below zero it is any number", maxAttempts))
	case c.RetryInterval < 0:
		return c, refuse("RetryInterval", c.RetryInterval, "must not be negative")
	case c.RetryInterval < minRetryInterval:
		return c, refuse("RetryInterval", c.RetryInterval,
			"is too short, the least is "+minRetryInterval.String())
	case c.RetryInterval > maxRetryInterval:
		return c, refuse("RetryInterval", c.RetryInterval,
			"is too long, the most is "+maxRetryInterval.String())
	}
	return c, nil
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

// info is what operators see of a session that does not change.
func (c Config) info() message.SessionInfo {
	host, _ := os.Hostname()
	return message.SessionInfo{
		Owner: c.Owner, Min: c.Min, Max: c.Max, Weight: c.Weight,
		Host: clean(host), PID: os.Getpid(), Program: clean(filepath.Base(os.Args[0])),
		Version: version(), Started: time.Now().Unix(), TTL: c.TTL.Milliseconds(),
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
	return fmt.Errorf("semaphore: Config.%s is %v: it %s",
		field, value, strings.TrimPrefix(why, "it "))
}

func checkName(field, s string) error {
	switch {
	case len(s) > maxNameBytes:
		return refuse(field, fmt.Sprintf("%q... (%d bytes)", s[:16], len(s)),
			fmt.Sprintf("is too long, the most is %d bytes", maxNameBytes))
	case !utf8.ValidString(s):
		return refuse(field, fmt.Sprintf("%q", s), "is not valid UTF-8")
	case strings.ContainsFunc(s, unicode.IsControl):
		return refuse(field, fmt.Sprintf("%q", s), "must not hold control characters")
	case strings.ContainsAny(s, "{}"):
		return refuse(field, fmt.Sprintf("%q", s),
			"must not hold braces, they would move its keys to other Cluster slots")
	}
	return nil
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
