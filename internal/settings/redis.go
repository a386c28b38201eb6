package settings

import (
	"errors"
	"net/url"
	"strings"

	"github.com/passbuddy/passbuddy/internal/redisurl"
)

// checkRedisURL refuses a URL that package semaphore would refuse, and says no more about it than
// its scheme's name. Where a URL cannot be parsed, a part of the password can be in any other part.
func checkRedisURL(raw string) error {
	scheme, _, ok := strings.Cut(raw, "://")
	switch {
	case !ok || scheme != "redis" && scheme != "rediss" && scheme != "unix":
		return errors.New("a Redis URL begins with redis://, rediss:// or unix://")
	}
	u, err := url.Parse(raw)
	if err == nil && scheme != "unix" && u.Fragment+u.RawFragment != "" {
		// go-redis ignores it, and it may be the rest of a password with a # in it.
		err = errors.New("fragment")
	}
	if err == nil {
		_, err = redisurl.Parse(raw)
	}
	var refused redisurl.Refused
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused) && refused != redisurl.ErrUnreadable:
		return refused
	}
	return errors.New("the Redis URL cannot be parsed: is the port a number, are the options " +
		"after the ? ones that go-redis knows, and are user and password percent-encoded?")
}
