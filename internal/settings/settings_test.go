package settings

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/lib/pq"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/semaphore"
)

const anyRedis = "PASSBUDDY_REDIS_URL=redis://r"

// full reads settings, and parses what is left as package env does.
func full(dsn string, environ ...string) (*Settings, *pgx.ConnConfig, error) {
	s, err := read(dsn, environ)
	if err != nil {
		return nil, nil, err
	}
	cfg, err := pgx.ParseConfig(s.DSN)
	if err != nil {
		return nil, nil, Explain(err)
	}
	return s, cfg, s.Finish(&cfg.Config)
}

func TestDefaults(t *testing.T) {
	s, err := read("postgres://h/d", []string{"REDIS_URL=redis://r:1"})
	if err != nil {
		t.Fatal(err)
	}
	want := Settings{
		RedisURL: "redis://r:1", DSN: "postgres://h/d",
		Semaphore: semaphore.Config{Prefix: "passbuddy", Name: "semaphore", Capacity: 10,
			TTL: 5 * time.Second, Weight: 1},
	}
	if s.RedisURL != want.RedisURL || s.DSN != want.DSN || s.Disabled ||
		s.Semaphore != want.Semaphore || s.Pool != want.Pool {
		t.Errorf("got %+v, want %+v", s, want)
	}
}

func TestEverySetting(t *testing.T) {
	values := map[string]string{
		"redis": "rediss://u:p@r:6380/1", "name": "orders", "prefix": "shop", "capacity": "20",
		"ttl": "1m30s", "weight": "3", "min": "2", "max": "7", "wait_replicas": "1",
		"owner": "web 7", "scope": "connection", "acquire_timeout": "250ms", "pool_name": "main",
		"fence": "on", "keep_on_loss": "no", "fallback_conns": "0", "disable": "false",
	}
	sem := semaphore.Config{Prefix: "shop", Name: "orders", Capacity: 20, TTL: 90 * time.Second,
		Weight: 3, Min: 2, Max: 7, WaitReplicas: 1, Owner: "web 7"}
	pool := passbuddy.Config{AcquireTimeout: 250 * time.Millisecond, PoolName: "main", Fence: true}
	var environ, query, pairs []string
	for _, set := range All {
		value, ok := values[set.name]
		if !ok {
			t.Fatalf("no value of %s to try", set.name)
		}
		environ = append(environ, set.Variable()+"="+value)
		escaped := strings.NewReplacer(" ", "%20", ":", "%3A", "/", "%2F", "@", "%40").Replace(value)
		query = append(query, set.Key()+"="+escaped)
		pairs = append(pairs, set.Key()+"='"+value+"'")
	}
	for name, try := range map[string]func() (*Settings, error){
		"environment": func() (*Settings, error) { return read("postgres://h", environ) },
		"URL": func() (*Settings, error) {
			return read("postgres://h/d?"+strings.Join(query, "&"), nil)
		},
		"pairs": func() (*Settings, error) { return read(strings.Join(pairs, " "), nil) },
		"service": func() (*Settings, error) {
			file := service(t, "[a]\nhost=h\n"+strings.ReplaceAll(strings.Join(pairs, "\n"), "'", ""))
			return read("service=a", []string{"PGSERVICEFILE=" + file})
		},
	} {
		s, err := try()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.RedisURL != values["redis"] || s.Semaphore != sem || s.Pool != pool {
			t.Errorf("%s: got %+v", name, s)
		}
	}
}

func service(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "services.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestWhatBeatsWhat(t *testing.T) {
	file := service(t, "[other]\npassbuddy_name=o\n[s]\npassbuddy_name=service\npassbuddy_ttl=2s\n"+
		"# passbuddy_ttl=9s\nhost=hs\n[last]\npassbuddy_name=l\n")
	environ := []string{anyRedis, "REDIS_URL=redis://other", "PASSBUDDY_NAME=environment",
		"PASSBUDDY_TTL=1s", "PASSBUDDY_PREFIX=environment", "PASSBUDDY_OWNER=",
		"PGSERVICEFILE=" + file}
	t.Setenv("PGSERVICEFILE", file)
	s, cfg, err := full("service=s passbuddy_name=dsn", environ...)
	if err != nil {
		t.Fatal(err)
	}
	got := s.Semaphore
	if s.RedisURL != "redis://r" || got.Name != "dsn" || got.TTL != 2*time.Second ||
		got.Prefix != "environment" || got.Owner != "" {
		t.Errorf("got %+v", s)
	}
	if cfg.Host != "hs" || len(cfg.RuntimeParams) > 0 {
		t.Errorf("pgx is left with the host %q and the parameters %q", cfg.Host, cfg.RuntimeParams)
	}
}

// lib/pq refuses a service file with a key that it does not know.
func TestServiceForPQ(t *testing.T) {
	file := service(t, "[s]\npassbuddy_name=n\nhost=hs\nport=77\nuser=us\npassword=it's \\ a\n"+
		"dbname=ds\nsslmode=disable\n")
	t.Setenv("PGSERVICEFILE", file)
	t.Setenv("PGSERVICE", "s")
	environ := []string{anyRedis, "PGSERVICEFILE=" + file, "PGSERVICE=s"}
	for dsn, want := range map[string]pq.Config{
		"":                              {Host: "hs", Port: 77, User: "us", Database: "ds", Password: `it's \ a`},
		"user=u":                        {Host: "hs", Port: 77, User: "u", Database: "ds", Password: `it's \ a`},
		"postgres://u:p%27w@h:5/d":      {Host: "h", Port: 5, User: "u", Database: "d", Password: "p'w"},
		"postgres:///?port=6&user=u%20": {Host: "hs", Port: 6, User: "u ", Database: "ds", Password: `it's \ a`},
	} {
		s, err := read(dsn, environ)
		if err != nil {
			t.Fatalf("%q: %v", dsn, err)
		}
		if _, err := pq.NewConfig(s.DSN); err == nil {
			t.Errorf("%q: lib/pq takes our keys in a service file now: ServiceWrittenOut is "+
				"not needed", dsn)
		}
		out, err := s.ServiceWrittenOut()
		if err != nil {
			t.Fatalf("%q: %v", dsn, err)
		}
		got, err := pq.NewConfig(out)
		if err != nil {
			t.Errorf("%q became %q: %v", dsn, out, err)
			continue
		}
		if got.Host != want.Host || got.Port != want.Port || got.User != want.User ||
			got.Database != want.Database || got.Password != want.Password ||
			got.SSLMode != "disable" || len(got.Runtime) > 0 {
			t.Errorf("%q became %q, which lib/pq reads as %+v", dsn, out, got)
		}
	}
}

func TestRefused(t *testing.T) {
	file := service(t, "[s]\npassbuddy_capcity=1\n[v]\npassbuddy_ttl=5\n[e]\npassbuddy_name=\n")
	atFile := "PGSERVICEFILE=" + file
	for _, c := range []struct {
		dsn     string
		environ string
		want    string
	}{
		{"", "", "no Redis is set"},
		{"", "PASSBUDDY_REDIS_URL=", "no Redis is set"},
		{"", "PASSBUDDY_REDIS_URL=localhost:6379", "PASSBUDDY_REDIS_URL: a Redis URL begins with redis://"},
		{"", "REDIS_URL=http://r", "PASSBUDDY_REDIS_URL: a Redis URL begins"},
		{"", "PASSBUDDY_REDIS_URL=redis://r:x", "PASSBUDDY_REDIS_URL: the Redis URL cannot be parsed"},
		{"", "PASSBUDDY_REDIS_URL=redis://r?nonsense=1", "options"},
		{"", "PASSBUDDY_REDIS_URL=redis://r:1,s:2", "PASSBUDDY_REDIS_URL: a host has no comma in it"},
		{"", "PASSBUDDY_REDIS_URL=redis://r/3?addr=s:2", "no database but 0"},
		{"", anyRedis + " PASSBUDDY_CAPACITY=0", `PASSBUDDY_CAPACITY is "0": it must be a whole number from 1 to 1000000`},
		{"", anyRedis + " PASSBUDDY_CAPACITY=20.5", "whole number"},
		{"", anyRedis + " PASSBUDDY_WEIGHT=0", "PASSBUDDY_WEIGHT"},
		{"", anyRedis + " PASSBUDDY_TTL=5", `PASSBUDDY_TTL is "5": it must be a duration with a unit`},
		{"", anyRedis + " PASSBUDDY_TTL=1ms", "must be from 100ms to 24h0m0s"},
		{"", anyRedis + " PASSBUDDY_ACQUIRE_TIMEOUT=0s", "must be more than 0"},
		{"", anyRedis + " PASSBUDDY_SCOPE=pool", "must be connection or checkout"},
		{"", anyRedis + " PASSBUDDY_FENCE=maybe", "must be 1, true, yes or on"},
		{"", anyRedis + " PASSBUDDY_DISABLE=2", "PASSBUDDY_DISABLE"},
		{"", "PASSBUDDY_DISABLE=1 PASSBUDDY_TTL=5", "PASSBUDDY_TTL"},
		{"", anyRedis + " PASSBUDDY_NAME=a{b}", "braces"},
		{"", anyRedis + " PASSBUDDY_NAME=" + strings.Repeat("x", 129), "128 bytes"},
		{"", anyRedis + " PASSBUDDY_MIN=11", "PASSBUDDY_MIN (passbuddy_min) is 11: it is more than the capacity, 10"},
		{"", anyRedis + " PASSBUDDY_MIN=3 PASSBUDDY_MAX=2", "less than"},
		{"", anyRedis + " PASSBUDDY_FENCE=1 PASSBUDDY_SCOPE=checkout", "PASSBUDDY_FENCE"},
		{"", anyRedis + " PASSBUDDY_FENCE=1 PASSBUDDY_KEEP_ON_LOSS=1", "Fence and Config.KeepOnLoss"},
		{"", anyRedis + " PASSBUDDY_CAPACTIY=3", "the variable PASSBUDDY_CAPACTIY is unknown: did you mean PASSBUDDY_CAPACITY?"},
		{"", anyRedis + " PASSBUDDY_NAMES=3", "did you mean PASSBUDDY_NAME?"},
		{"", "PASSBUDDY_REDIS=redis://r", "did you mean PASSBUDDY_REDIS_URL?"},
		{"passbuddy_capacity=x", anyRedis, `passbuddy_capacity in the DSN is "x"`},
		{"passbuddy_capacty=1", anyRedis, `"passbuddy_capacty" in the DSN is unknown: did you mean passbuddy_capacity?`},
		{"postgres://h/d?PASSBUDDY_NAME=a", anyRedis, "did you mean passbuddy_name?"},
		{"postgres://h/d?passbuddy_redisurl=a", anyRedis, "did you mean passbuddy_redis?"},
		{"postgres://h/d?passbuddy_name=a&passbuddy_name=a", anyRedis, "passbuddy_name in the DSN is given twice"},
		{"passbuddy_redis=redis://a passbuddy_redis_url=redis://a", "", "given twice"},
		{"passbuddy_name=''", anyRedis, "passbuddy_name in the DSN has no value"},
		{"service=s", anyRedis + " " + atFile, `in the service "s" is unknown: did you mean passbuddy_capacity?`},
		{"service=v", anyRedis + " " + atFile, `passbuddy_ttl in the service "v" is "5"`},
		{"service=e", anyRedis + " " + atFile, "has no value"},
	} {
		_, err := read(c.dsn, strings.Fields(c.environ))
		if err == nil || !strings.HasPrefix(err.Error(), "passbuddy: ") ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%q with %q: %v, want %q", c.dsn, c.environ, err, c.want)
		}
	}
}

func TestTaken(t *testing.T) {
	for _, environ := range []string{
		anyRedis + " PASSBUDDY_SCOPE=PerCheckout", anyRedis + " PASSBUDDY_SCOPE=per-checkout",
		anyRedis + " PASSBUDDY_DISABLE=0", "PASSBUDDY_DISABLE=1", "PASSBUDDY_DISABLE=TRUE",
		anyRedis + " PASSBUDDY_OWNER= PASSBUDDY_CAPACITY=",
		"PASSBUDDY_REDIS_URL=unix:///run/redis@1.sock",
		// Kubernetes sets these for services called passbuddy and passbuddy-redis. The last ones
		// are of this project's tool and tests, or could be anybody's.
		anyRedis + " PASSBUDDY_PORT=tcp://10.0.0.1:80 PASSBUDDY_SERVICE_HOST=10.0.0.1 " +
			"PASSBUDDY_PORT_80_TCP_ADDR=10.0.0.1 PASSBUDDY_REDIS_PORT=tcp://10.0.0.1:6379 " +
			"PASSBUDDY_REDIS_SERVICE_HOST=10.0.0.1 PASSBUDDY_SERVICE_PORT=80 " +
			"PASSBUDDY_POSTGRES_URL=x PASSBUDDY_TOKEN=x PASSBUDDY_REDIS_SERVER=x " +
			"PASSBUDDY_TEST_ORPHAN=1 PASSBUDDY_HOST=x PASSBUDDY_MODE=x PASSBUDDY_TLS=x",
	} {
		if _, err := read("", strings.Fields(environ)); err != nil {
			t.Errorf("%s: %v", environ, err)
		}
	}
	if s, err := read("", []string{anyRedis + "\n"}); err != nil || "PASSBUDDY_REDIS_URL="+s.RedisURL != anyRedis {
		t.Errorf("a newline at the end of a variable: %+v, %v", s, err)
	}
	s, err := read("passbuddy_disable=0", []string{"PASSBUDDY_DISABLE=1", anyRedis})
	if err != nil || s.Disabled {
		t.Errorf("passbuddy_disable=0 in the DSN: %+v, %v", s, err)
	}
}

// No piece of a password is in an error, whatever is wrong with a DSN or a Redis URL.
func TestNoPassword(t *testing.T) {
	// Each password below has one of these pieces left when a wrong parse has cut it up.
	piece := regexp.MustCompile(`(?i)s3c|cr3|r3t`)
	passwords := []string{
		"s3cr3t", "s3c/cr3", "s3c?cr3", "s3c#cr3", "s3c@cr3", "s3c%zzcr3", "s3c:cr3", "s3c&cr3=r3t",
		"s3c cr3", "s3c'cr3", "s3c=cr3", "12/s3c", "12#s3c", "12?s3c", "[s3c", "%73s3c%", "s3c,cr3",
		"s3c\ncr3", "s3c`: cr3", "s3c\x00cr3",
	}
	var dsns, environs []string
	for _, p := range passwords {
		for _, dsn := range []string{
			"postgres://u:P@h/d?passbuddy_name=a", "postgres://u:P@h:x/d", "postgres://u:P@h/d?sslmode=no",
			"postgres://u:P@h1,h2:1,2/d", "postgres://:P@h/d?passbuddy_nme=a", "postgres://h/d?password=P",
			"postgres://h/d?password=P&sslmode=no", "postgres://h/d?sslpassword=P&port=x",
			"postgres://u@h/d?passbuddy_redis=redis://:P@r:6379/0",
			"postgres://u@h/d?passbuddy_redis=redis://:P@r:x/0&sslmode=no",
			"postgres://u@h/d?passbuddy_redis=P", "postgres://u@h/d?passbuddy_redis=redis://P",
			"host=h password=P passbuddy_name=a", "host=h password='P", "password=P x",
			"password=P sslmode=no", "passbuddy_redis=redis://:P@r:x sslmode=no host=h",
			"passbuddy_redis='redis://:P@r/0' sslmode=no", "u:P@h/d", "mysql://u:P@h/d?a=b", "P", "P=",
		} {
			dsns = append(dsns, strings.ReplaceAll(dsn, "P", p))
		}
		for _, e := range []string{
			"redis://:P@r:6379/0", "redis://u:P@r:x/0", "redis://:P@r/x", "P@r:6379", "P", "redis:P",
			"redis://:P@r/0?x=1", "redis://:P@r/3?addr=s:1", "redis://:P@r?addr=s", "redis://r?addr=P",
			"redis://r?master_name=m&password=P&x=1",
			"unix://:P@/run/r.sock?db=x", "redis://P", "://P", "rediss://P:P",
		} {
			environs = append(environs, "PASSBUDDY_REDIS_URL="+strings.ReplaceAll(e, "P", p))
		}
	}
	refused := 0
	check := func(what string, err error) {
		for ; err != nil; err = errors.Unwrap(err) {
			refused++
			if piece.MatchString(err.Error()) {
				t.Errorf("%q: %v", what, err)
			}
		}
	}
	for _, dsn := range dsns {
		s, _, err := full(dsn, anyRedis)
		check(dsn, err)
		if s == nil {
			continue
		}
		_, err = pq.NewConfig(s.DSN)
		check(dsn+" (lib/pq)", Explain(err))
	}
	for _, e := range environs {
		s, err := read("", []string{e})
		check(e, err)
		if s != nil && s.RedisURL != "" {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			sem, err := semaphore.Open(ctx, s.RedisURL, s.Semaphore)
			if err == nil {
				_ = sem.Close()
			}
			check(e, err)
		}
	}
	if refused < len(passwords) {
		t.Errorf("only %d errors were looked at", refused)
	}
}

// The bounds here are those of package semaphore: what is within them, it takes, and what is
// beyond, it refuses too.
func TestBounds(t *testing.T) {
	refuses := func(change func(*semaphore.Config)) bool {
		cfg := semaphore.Config{Capacity: maxCapacity}
		change(&cfg)
		_, err := semaphore.Open(context.Background(), "no URL", cfg)
		return strings.Contains(err.Error(), "Config.")
	}
	for name, c := range map[string]struct{ within, beyond func(*semaphore.Config) }{
		"capacity": {func(c *semaphore.Config) { c.Capacity = maxCapacity },
			func(c *semaphore.Config) { c.Capacity = maxCapacity + 1 }},
		"max": {func(c *semaphore.Config) { c.Max = maxCapacity },
			func(c *semaphore.Config) { c.Max = maxCapacity + 1 }},
		"weight": {func(c *semaphore.Config) { c.Weight = maxWeight },
			func(c *semaphore.Config) { c.Weight = maxWeight + 1 }},
		"wait_replicas": {func(c *semaphore.Config) { c.WaitReplicas = maxReplicas },
			func(c *semaphore.Config) { c.WaitReplicas = maxReplicas + 1 }},
		"shortest ttl": {func(c *semaphore.Config) { c.TTL = minTTL },
			func(c *semaphore.Config) { c.TTL = minTTL - 1 }},
		"longest ttl": {func(c *semaphore.Config) { c.TTL = maxTTL },
			func(c *semaphore.Config) { c.TTL = maxTTL + 1 }},
		"name": {func(c *semaphore.Config) { c.Name = strings.Repeat("x", maxNameBytes) },
			func(c *semaphore.Config) { c.Name = strings.Repeat("x", maxNameBytes+1) }},
		"braces": {func(c *semaphore.Config) { c.Name = "a b:c" },
			func(c *semaphore.Config) { c.Name = "a}" }},
	} {
		if refuses(c.within) || !refuses(c.beyond) {
			t.Errorf("%s: package semaphore has other bounds", name)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"a", "", 1}, {"abc", "acb", 1}, {"capacity", "capcity", 1},
		{"capacity", "capactiy", 1}, {"name", "mane", 2}, {"ca", "abc", 3},
		{strings.Repeat("x", 1000), "", 64},
	} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%.10q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
