// Package settings reads from a DSN, its service file and the environment how a program's
// connections are counted. Package env and pgxpool.Open share it.
//
// The DSN beats the service file, which beats the environment, which beats the default. The DSN and
// the service file name a setting "passbuddy_<key>", the environment "PASSBUDDY_<KEY>". What the
// driver gets has none of our keys left: Postgres would refuse a connection that has.
//
// No error of this package has a password in it, nor a piece of one. So an error never quotes a
// DSN, a Redis URL, or what could not be parsed of either.
package settings

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Settings are those of one DSN.
type Settings struct {
	// Disabled: connections are not to be counted. Nothing else but DSN is of use then.
	Disabled bool
	RedisURL string
	// Semaphore has its defaults filled in, so that two can be compared.
	Semaphore semaphore.Config
	Pool      passbuddy.Config

	// DSN is the driver's: without our keys.
	DSN     string
	service section
}

// Read reads the settings of dsn.
func Read(dsn string) (*Settings, error) { return read(dsn, os.Environ()) }

// A layer is one place that settings come from.
type layer struct {
	where  string // in an error: "" or " in the DSN"
	values map[string]string
	name   func(Setting) string // what the layer calls a setting
}

func read(dsn string, environ []string) (*Settings, error) {
	split, err := cut(dsn)
	if err != nil {
		return nil, err
	}
	variables := parseEnviron(environ)
	s := &Settings{DSN: split.rest, service: readService(split, variables)}
	s.Semaphore = semaphore.Config{
		Prefix: semaphore.DefaultPrefix, Name: semaphore.DefaultName,
		Capacity: semaphore.DefaultCapacity, TTL: semaphore.DefaultTTL, Weight: 1,
	}

	inDSN, err := known(split.ours, " in the DSN")
	if err != nil {
		return nil, err
	}
	ofService := fmt.Sprintf(" in the service %q", s.service.name)
	inService, err := known(s.service.ours, ofService)
	if err != nil {
		return nil, err
	}
	inEnvironment, err := knownVariables(variables)
	if err != nil {
		return nil, err
	}
	key := func(t Setting) string { return t.Key() }
	layers := []layer{
		{" in the DSN", inDSN, key},
		{ofService, inService, key},
		{"", inEnvironment, Setting.Variable},
	}
	for _, t := range All {
		for _, l := range layers {
			value, ok := l.values[t.name]
			if !ok {
				continue
			}
			if why := t.set(s, value); why != nil {
				return nil, t.refuse(l.name(t)+l.where, value, why)
			}
			break
		}
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("passbuddy: %w", err)
	}
	return s, nil
}

// check looks at settings together.
func (s *Settings) check() error {
	c := s.Semaphore
	switch {
	case c.Min > c.Capacity:
		return fmt.Errorf("%s is %d: it is more than the capacity, %d",
			about("min"), c.Min, c.Capacity)
	case c.Max > 0 && c.Max < c.Min:
		return fmt.Errorf("%s is %d: it is less than %s, %d",
			about("max"), c.Max, about("min"), c.Min)
	case s.Pool.Fence && s.Pool.Scope == passbuddy.PerCheckout:
		return fmt.Errorf("%s with the scope %q: only permits of %q cover a backend",
			about("fence"), checkout, connection)
	}
	// Options refuses what does not go together, by the fields of passbuddy.Config.
	_, err := allotment.Options{
		AcquireTimeout: s.Pool.AcquireTimeout, KeepOnLoss: s.Pool.KeepOnLoss,
		FallbackConns: s.Pool.FallbackConns, Fence: s.Pool.Fence,
	}.Resolve()
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "passbuddy: "))
	}
	if s.RedisURL == "" && !s.Disabled {
		return errors.New("no Redis is set, by which connections are counted: set " +
			"PASSBUDDY_REDIS_URL, or REDIS_URL, or passbuddy_redis in the DSN " +
			"(PASSBUDDY_DISABLE=1 opens connections that are not counted)")
	}
	return nil
}

var warned sync.Once

// WarnDisabled logs once that connections of this process are not counted.
func WarnDisabled() {
	warned.Do(func() {
		slog.Warn("passbuddy: disabled by its settings: connections are not counted",
			"by", about("disable"))
	})
}

// Finish removes our keys from what pgx has parsed of DSN: those that came from the service file. A
// key that Read has not seen is an error, because its value was not heeded.
func (s *Settings) Finish(cfg *pgconn.Config) error {
	for key := range cfg.RuntimeParams {
		if !isOurs(key) {
			continue
		}
		if !s.service.has(key) {
			return fmt.Errorf("passbuddy: pgx found the key %s where PassBuddy did not: "+
				"write the DSN as a URL", clip(key))
		}
		delete(cfg.RuntimeParams, key)
	}
	// An @ that is not encoded in a password: pgx looks for a host by the rest of the password, and
	// would name that in its error.
	hosts := []string{cfg.Host}
	for _, f := range cfg.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	if slices.ContainsFunc(hosts, func(h string) bool { return strings.Contains(h, "@") }) {
		return errURL
	}
	return nil
}

// NamesConfiguration reports whether DSN is no connection string, but may be the name of a
// configuration that was registered with pgx's stdlib.
func (s *Settings) NamesConfiguration() bool {
	return strings.TrimSpace(s.DSN) != "" && !strings.Contains(s.DSN, "=") &&
		!strings.Contains(s.DSN, "://")
}
