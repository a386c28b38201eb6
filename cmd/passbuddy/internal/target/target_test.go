package target

import (
	"strings"
	"testing"
)

func env(pairs ...string) func(string) string {
	values := make(map[string]string)
	for i := 0; i < len(pairs); i += 2 {
		values[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return values[name] }
}

func TestFlagThenOwnVariableThenCommonOne(t *testing.T) {
	const flag, own, common = "redis://flag:1/0", "redis://own:1/0", "redis://common:1/0"
	for _, c := range []struct {
		given  string
		getenv func(string) string
		want   string
	}{
		{flag, env(RedisEnv, own, OtherRedisEnv, common), flag},
		{"", env(RedisEnv, own, OtherRedisEnv, common), own},
		{"", env(OtherRedisEnv, common), common},
	} {
		target := Target{RedisURL: c.given}
		if err := target.Resolve(c.getenv); err != nil {
			t.Fatal(err)
		}
		if target.RedisURL != c.want {
			t.Errorf("%q, want %q", target.RedisURL, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	plain := Target{RedisURL: "redis://x:1"}
	if err := plain.Resolve(env()); err != nil || plain.String() != "passbuddy-semaphore" {
		t.Errorf("%v, %v", &plain, err)
	}
	both := Target{RedisURL: "redis://x:1", Name: "orders"}
	if err := both.Resolve(env(PrefixEnv, "shop", NameEnv, "bills")); err != nil ||
		both.String() != "shop-orders" {
		t.Errorf("%v, %v", &both, err)
	}
}

func TestNoRedisSaysWhatToGive(t *testing.T) {
	err := new(Target).Resolve(env())
	if err == nil || !strings.Contains(err.Error(), "--redis") ||
		!strings.Contains(err.Error(), RedisEnv) {
		t.Error(err)
	}
}

// A password with characters that are not percent-encoded puts pieces of itself into every other
// part of the URL.
func TestErrorsShowNoPassword(t *testing.T) {
	for _, url := range []string{
		"redis://user:secret/piece@host:6379/0",
		"redis://user:secret?piece@host:6379/0",
		"redis://user:secret#piece@host:6379/0",
		"redis://user:secret%zzpiece@host:6379/0",
		"redis://user:secret piece@host:6379/0\n",
		"redis://user:secret@host:port/0",
		"redis://user:secret@host:6379/none",
		"postgres://user:secret@host/0",
		"user:secret@host",
	} {
		err := (&Target{RedisURL: url}).Resolve(env())
		switch {
		case err == nil:
			t.Errorf("%q was taken", url)
		case strings.Contains(err.Error(), "secret"), strings.Contains(err.Error(), "piece"):
			t.Errorf("%q: %v", url, err)
		case !strings.HasPrefix(err.Error(), "--redis: "):
			t.Errorf("%q: no source: %v", url, err)
		}
	}
}
