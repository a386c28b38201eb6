package settings

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	prefix         = "passbuddy_"
	variablePrefix = "PASSBUDDY_"
)

// A Setting is one row of docs/CONFIGURATION.md.
type Setting struct {
	name     string // of the key, without its prefix
	variable string // of the environment, without its prefix, where it is not the name
	fallback string // another variable, of others
	alias    string // another key, without its prefix
	Default  string
	Values   string
	secret   bool // its value is in no error
	set      func(s *Settings, value string) error
}

// Key is its name in a DSN, and in a service file.
func (t Setting) Key() string { return prefix + t.name }

// Variable is its name in the environment.
func (t Setting) Variable() string {
	if t.variable != "" {
		return variablePrefix + t.variable
	}
	return variablePrefix + strings.ToUpper(t.name)
}

// Fallback is a variable of others that counts where Variable is not set, or "".
func (t Setting) Fallback() string { return t.fallback }

// The scopes.
const (
	connection = "connection"
	checkout   = "checkout"
)

// The bounds are those of semaphore.Config: TestBounds holds them to it.
const (
	maxCapacity   = 1_000_000
	maxWeight     = 100
	maxReplicas   = 100
	minTTL        = 100 * time.Millisecond
	maxTTL        = 24 * time.Hour
	maxNameBytes  = 128
	maxFallback   = 1_000_000
	valuesOfFlags = "1, true, yes, on; 0, false, no, off"
)

// All are the settings, in the order of the document.
var All = []Setting{
	{
		name: "redis", alias: "redis_url", variable: "REDIS_URL", fallback: "REDIS_URL",
		Default: "none: an error", Values: "redis://, rediss:// or unix:// URL", secret: true,
		set: func(s *Settings, v string) error {
			s.RedisURL = v
			return checkRedisURL(v)
		},
	},
	{
		name: "name", Default: semaphore.DefaultName, Values: "text, at most 128 bytes",
		set: func(s *Settings, v string) error {
			s.Semaphore.Name = v
			return checkName(v)
		},
	},
	{
		name: "prefix", Default: semaphore.DefaultPrefix, Values: "text, at most 128 bytes",
		set: func(s *Settings, v string) error {
			s.Semaphore.Prefix = v
			return checkName(v)
		},
	},
	{
		name: "capacity", Default: strconv.Itoa(semaphore.DefaultCapacity),
		Values: "permits, 1 to 1000000",
		set: func(s *Settings, v string) (err error) {
			s.Semaphore.Capacity, err = number(v, 1, maxCapacity)
			return err
		},
	},
	{
		name: "ttl", Default: semaphore.DefaultTTL.String(), Values: "duration, 100ms to 24h",
		set: func(s *Settings, v string) (err error) {
			s.Semaphore.TTL, err = duration(v, minTTL, maxTTL)
			return err
		},
	},
	{
		name: "weight", Default: "1", Values: "1 to 100",
		set: func(s *Settings, v string) (err error) {
			s.Semaphore.Weight, err = number(v, 1, maxWeight)
			return err
		},
	},
	{
		name: "min", Default: "0", Values: "permits, 0 to the capacity",
		set: func(s *Settings, v string) (err error) {
			s.Semaphore.Min, err = number(v, 0, maxCapacity)
			return err
		},
	},
	{
		name: "max", Default: "0: any number", Values: "permits, at least min",
		set: func(s *Settings, v string) (err error) {
			s.Semaphore.Max, err = number(v, 0, maxCapacity)
			return err
		},
	},
	{
		name: "wait_replicas", Default: "0", Values: "replicas, 0 to 100",
		set: func(s *Settings, v string) (err error) {
			s.Semaphore.WaitReplicas, err = number(v, 0, maxReplicas)
			return err
		},
	},
	{
		name: "owner", Default: "host/program/pid", Values: "text",
		set: func(s *Settings, v string) error { s.Semaphore.Owner = v; return nil },
	},
	{
		name: "scope", Default: connection, Values: connection + " or " + checkout,
		set: func(s *Settings, v string) (err error) {
			s.Pool.Scope, err = scope(v)
			return err
		},
	},
	{
		name: "acquire_timeout", Default: allotment.DefaultAcquireTimeout.String(),
		Values: "duration, more than 0",
		set: func(s *Settings, v string) (err error) {
			s.Pool.AcquireTimeout, err = duration(v, 1, 0)
			return err
		},
	},
	{
		name: "pool_name", Default: "server:port/database", Values: "text",
		set: func(s *Settings, v string) error { s.Pool.PoolName = v; return nil },
	},
	{
		name: "fence", Default: "false", Values: valuesOfFlags,
		set: func(s *Settings, v string) (err error) {
			s.Pool.Fence, err = flag(v)
			return err
		},
	},
	{
		name: "keep_on_loss", Default: "false", Values: valuesOfFlags,
		set: func(s *Settings, v string) (err error) {
			s.Pool.KeepOnLoss, err = flag(v)
			return err
		},
	},
	{
		name: "fallback_conns", Default: "0", Values: "connections, 0 or more",
		set: func(s *Settings, v string) (err error) {
			s.Pool.FallbackConns, err = number(v, 0, maxFallback)
			return err
		},
	},
	{
		name: "disable", Default: "false", Values: valuesOfFlags,
		set: func(s *Settings, v string) (err error) {
			s.Disabled, err = flag(v)
			return err
		},
	},
}

// about names a setting in an error that is not about one of its places.
func about(name string) string {
	i := slices.IndexFunc(All, func(t Setting) bool { return t.name == name })
	return All[i].Variable() + " (" + All[i].Key() + ")"
}

// refuse is the error for a value, whose setting goes by that name where it is set.
func (t Setting) refuse(name, value string, why error) error {
	if t.secret {
		return fmt.Errorf("passbuddy: %s: %w", name, why)
	}
	return fmt.Errorf("passbuddy: %s is %q: it %w", name, value, why)
}

func number(v string, least, most int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("must be a whole number from %d to %d", least, most)
	}
	return n, nil
}

// duration parses v. A most of 0 is no bound.
func duration(v string, least, most time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	switch {
	case err != nil:
		return 0, errors.New("must be a duration with a unit, such as 500ms, 5s or 1m30s")
	case d < least && most == 0:
		return 0, errors.New("must be more than 0")
	case d < least || most > 0 && d > most:
		return 0, fmt.Errorf("must be from %v to %v", least, most)
	}
	return d, nil
}

func flag(v string) (bool, error) {
	switch strings.ToLower(v) {
	case "1", "true", "yes", "on":
		return true, nil
	case "0", "false", "no", "off":
		return false, nil
	}
	return false, errors.New("must be 1, true, yes or on, or 0, false, no or off")
}

// scope takes the names of the constants too.
func scope(v string) (passbuddy.Scope, error) {
	plain := strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(v))
	switch strings.TrimPrefix(plain, "per") {
	case connection:
		return passbuddy.PerConnection, nil
	case checkout:
		return passbuddy.PerCheckout, nil
	}
	return 0, fmt.Errorf("must be %s or %s", connection, checkout)
}

func checkName(v string) error {
	switch {
	case len(v) > maxNameBytes:
		return fmt.Errorf("is too long, the most is %d bytes", maxNameBytes)
	case !utf8.ValidString(v):
		return errors.New("is not valid UTF-8")
	case strings.ContainsFunc(v, unicode.IsControl) || strings.ContainsAny(v, "{}"):
		return errors.New("must not hold control characters or braces")
	}
	return nil
}
