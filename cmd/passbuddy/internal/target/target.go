// Package target is which semaphore a command is about: the flags --redis, --prefix and --name,
// which the root command has for all commands, and the environment behind them.
package target

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"

	"github.com/passbuddy/passbuddy/semaphore"
)

// The variables that stand for flags which are not given.
const (
	RedisEnv      = "PASSBUDDY_REDIS_URL"
	OtherRedisEnv = "REDIS_URL" // if RedisEnv is empty
	PrefixEnv     = "PASSBUDDY_PREFIX"
	NameEnv       = "PASSBUDDY_NAME"
)

// A Target names a semaphore and its Redis. Its zero value, resolved, is the semaphore of the
// default prefix and name at the Redis of the environment.
type Target struct {
	// RedisURL has a password, perhaps: it is never shown.
	RedisURL     string
	Prefix, Name string

	flags *pflag.FlagSet // that AddFlags has added to, or nil
}

// AddFlags adds the flags.
func (t *Target) AddFlags(flags *pflag.FlagSet) {
	t.flags = flags
	flags.StringVar(&t.RedisURL, "redis", "",
		"`URL` of Redis (default $"+RedisEnv+", or $"+OtherRedisEnv+")")
	flags.StringVar(&t.Prefix, "prefix", "",
		"`prefix` of the semaphore's keys (default $"+PrefixEnv+", or "+
			semaphore.DefaultPrefix+")")
	flags.StringVar(&t.Name, "name", "",
		"`name` of the semaphore (default $"+NameEnv+", or "+semaphore.DefaultName+")")
}

// Given refuses a flag that is given and empty. A script that forgot to set its variable means
// another fleet than that of the default.
func Given(flags *pflag.FlagSet, names ...string) error {
	if flags == nil {
		return nil
	}
	for _, name := range names {
		if f := flags.Lookup(name); f != nil && f.Changed && f.Value.String() == "" {
			return fmt.Errorf("--%s is empty: give it a value, or leave it out for its default", name)
		}
	}
	return nil
}

// Resolve fills in from the environment what no flag gave, and checks all of it. Its errors say
// where the URL came from, and show nothing of it.
func (t *Target) Resolve(getenv func(string) string) error {
	if err := Given(t.flags, "redis", "prefix", "name"); err != nil {
		return err
	}
	t.Prefix = cmp.Or(t.Prefix, getenv(PrefixEnv), semaphore.DefaultPrefix)
	t.Name = cmp.Or(t.Name, getenv(NameEnv), semaphore.DefaultName)
	source := "--redis"
	if t.RedisURL == "" {
		source, t.RedisURL = RedisEnv, getenv(RedisEnv)
	}
	if t.RedisURL == "" {
		source, t.RedisURL = OtherRedisEnv, getenv(OtherRedisEnv)
	}
	if t.RedisURL == "" {
		return fmt.Errorf("which Redis? Give --redis, or set %s or %s", RedisEnv, OtherRedisEnv)
	}
	client, err := t.Client()
	if err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	defer client.Close()
	if _, err := semaphore.NewInspector(client, t.Prefix, ""); err != nil {
		return fmt.Errorf("--prefix, or %s: %w", PrefixEnv, err)
	}
	if _, err := semaphore.NewInspector(client, "", t.Name); err != nil {
		return fmt.Errorf("--name, or %s: %w", NameEnv, err)
	}
	return nil
}

// Client returns a client for the Redis of a resolved target. It dials nothing yet.
func (t *Target) Client() (*redis.Client, error) {
	opts, err := parse(t.RedisURL)
	if err != nil {
		return nil, err
	}
	return redis.NewClient(opts), nil
}

// String is the semaphore's key in Redis, as errors and logs of the library name it.
func (t *Target) String() string { return t.Prefix + "-" + t.Name }

// parse is redis.ParseURL. Errors of that quote what they refuse. In a password that is not
// percent-encoded, a slash or a question mark ends the host. So what they quote can be a piece of
// the password, and is left out where that is possible.
func parse(rawURL string) (*redis.Options, error) {
	opts, err := redis.ParseURL(rawURL)
	if err == nil {
		return opts, nil
	}
	u, notURL := url.Parse(rawURL)
	if notURL != nil || strings.Contains(u.Path+u.RawQuery+u.Fragment+u.Opaque, "@") {
		return nil, errors.New("this is not a URL such as redis://user:password@host:6379/0: " +
			"is the port a number, and are user and password percent-encoded?")
	}
	return nil, fmt.Errorf("this is not a URL such as redis://user:password@host:6379/0: %w", err)
}
