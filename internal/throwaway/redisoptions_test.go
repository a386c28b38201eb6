package throwaway

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func clientOf(t *testing.T, r *Redis) *redis.Client {
	t.Helper()
	client := redis.NewClient(r.Options())
	t.Cleanup(func() { client.Close() })
	return client
}

func set(t *testing.T, client redis.UniversalClient, key, value string) {
	t.Helper()
	if err := client.Set(testContext(t), key, value, 0).Err(); err != nil {
		t.Fatal(err)
	}
}

func expectKey(t *testing.T, client redis.UniversalClient, key, want string) {
	t.Helper()
	got, err := client.Get(testContext(t), key).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("%s is %q, want %q", key, got, want)
	}
}

func TestRedisPersist(t *testing.T) {
	ctx := testContext(t)
	r := startRedis(t, RedisOptions{Persist: true})
	client := clientOf(t, r)
	addr := r.Addr()
	for _, value := range []string{"before a crash", "before a restart"} {
		set(t, client, "key", value)
		if value == "before a crash" {
			r.Kill()
		}
		if err := r.Restart(ctx); err != nil {
			t.Fatal(err)
		}
		expectKey(t, client, "key", value)
	}
	if err := r.RestartEmpty(ctx); err != nil {
		t.Fatal(err)
	}
	expectKey(t, client, "key", "")
	if r.Addr() != addr {
		t.Error("the address changed")
	}
}

func TestRedisConfigIsOverriddenByArgs(t *testing.T) {
	ctx := testContext(t)
	r := startRedis(t, RedisOptions{
		Config: []string{"maxmemory-policy allkeys-lru", "maxclients 50",
			"rename-command DEBUG \"\""},
		Args: []string{"--maxclients", "60"},
	})
	for name, want := range map[string]string{"maxmemory-policy": "allkeys-lru", "maxclients": "60",
		"save": ""} {
		got, err := clientOf(t, r).ConfigGet(ctx, name).Result()
		if err != nil || got[name] != want {
			t.Errorf("%s is %q, %v; want %q", name, got[name], err, want)
		}
	}
}

func TestRedisThatCannotStartSaysWhy(t *testing.T) {
	if _, err := FindRedis(); errors.Is(err, ErrNotFound) {
		t.Skip("this test starts the real server (make test installs it): ", err)
	}
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	_, err := StartRedis(testContext(t), RedisOptions{Config: []string{"nonsense 7"}})
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("error %v does not name the line", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestRedisACL(t *testing.T) {
	ctx := testContext(t)
	r := startRedis(t, RedisOptions{
		Password: `a "quoted" pass\word`,
		ACL:      []string{"user app on >secret ~app:* &* +@all -@dangerous"},
	})
	set(t, clientOf(t, r), "other", "mine")

	opts := r.Options()
	opts.Username, opts.Password = "app", "secret"
	app := redis.NewClient(opts)
	defer app.Close()
	set(t, app, "app:key", "value")
	for name, err := range map[string]error{
		"key":     app.Get(ctx, "other").Err(),
		"command": app.FlushAll(ctx).Err(),
	} {
		if err == nil || !strings.Contains(err.Error(), "NOPERM") {
			t.Errorf("a %s that is not allowed: %v", name, err)
		}
	}
	opts.Username, opts.Password = "", ""
	stranger := redis.NewClient(opts)
	defer stranger.Close()
	if err := stranger.Get(ctx, "other").Err(); err == nil ||
		!strings.Contains(err.Error(), "NOAUTH") {
		t.Errorf("without a password: %v", err)
	}
}

func newAuthority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestRedisTLS(t *testing.T) {
	ctx := testContext(t)
	authority := newAuthority(t)
	r := startRedis(t, RedisOptions{TLS: authority, Password: "secret",
		Config: []string{"tls-auth-clients yes"}})
	set(t, clientOf(t, r), "key", "value")

	opts, err := redis.ParseURL(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	opts.TLSConfig = r.TLSConfig()
	byURL := redis.NewClient(opts)
	defer byURL.Close()
	expectKey(t, byURL, "key", "value")

	for name, change := range map[string]func(*redis.Options){
		"of another authority": func(o *redis.Options) {
			o.TLSConfig = newAuthority(t).ClientConfig()
		},
		"without certificate": func(o *redis.Options) { o.TLSConfig.Certificates = nil },
		"without TLS":         func(o *redis.Options) { o.TLSConfig = nil },
	} {
		opts := r.Options()
		opts.MaxRetries = -1
		change(opts)
		client := redis.NewClient(opts)
		if err := client.Ping(ctx).Err(); err == nil {
			t.Errorf("a client %s was served", name)
		}
		client.Close()
	}
}

func TestRedisPauseAndContinue(t *testing.T) {
	ctx := testContext(t)
	r := startRedis(t, RedisOptions{})
	conn := dial(t, r.Addr())
	say(t, conn, "PING\r\n")
	expect(t, conn, "+PONG\r\n")
	for range 2 {
		if err := r.Pause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	say(t, conn, "PING\r\n")
	expectSilence(t, conn)
	for range 2 {
		if err := r.Continue(); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, conn, "+PONG\r\n")

	for name, end := range map[string]func(){"Restart": func() {}, "Kill": r.Kill} {
		if err := r.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		end()
		if err := r.Restart(ctx); err != nil {
			t.Fatalf("%s of a paused server: %v", name, err)
		}
		if took := time.Since(start); took >= stopGrace {
			t.Errorf("%s of a paused server took %v: it was killed for not answering", name, took)
		}
		if err := clientOf(t, r).Ping(ctx).Err(); err != nil {
			t.Errorf("%s of a paused server: %v", name, err)
		}
	}
	r.Kill()
	if err := r.Pause(ctx); err == nil {
		t.Error("Pause of a server that was killed succeeded")
	}
}

func TestPostgresPauseAndContinue(t *testing.T) {
	ctx := testContext(t)
	p := startPostgres(t, PostgresOptions{})
	if children, err := p.server.children(); err != nil || len(children) == 0 {
		t.Skipf("this test needs to find the server's processes: %d, %v", len(children), err)
	}
	conn := connect(t, p.URL())
	if err := p.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() { answered <- conn.Ping(ctx) }()
	select {
	case err := <-answered:
		t.Fatalf("a paused backend answered: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := p.Continue(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("after Continue: %v", err)
	}

	for name, end := range map[string]func(){"Restart": func() {}, "Kill": p.Kill} {
		// A machine that stalls can take as long once. A process that does not notice takes as long
		// each time.
		took := treeGrace
		for try := 0; try < 3 && took >= treeGrace; try++ {
			if err := p.Pause(ctx); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			end()
			if err := p.Restart(ctx); err != nil {
				t.Fatalf("%s of a paused server: %v", name, err)
			}
			took = time.Since(start)
		}
		if took >= treeGrace {
			t.Errorf("%s of a paused server took %v: a process did not notice", name, took)
		}
		connect(t, p.URL())
	}
	if err := p.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("Stop of a paused server: %v", err)
	}
}

func TestRedisStepClock(t *testing.T) {
	ctx := testContext(t)
	r := startRedis(t, RedisOptions{Clock: true})
	client := clientOf(t, r)
	// off returns how far the server's clock is from ours, in TIME and in scripts.
	expectOff := func(want time.Duration) {
		t.Helper()
		now, err := client.Time(ctx).Result()
		if err != nil {
			t.Fatal(err)
		}
		inScript, err := client.Eval(ctx, "return redis.call('TIME')[1]", nil).Int64()
		if err != nil {
			t.Fatal(err)
		}
		for how, at := range map[string]time.Time{"TIME": now, "a script": time.Unix(inScript, 0)} {
			if diff := at.Sub(time.Now().Add(want)).Abs(); diff > time.Minute {
				t.Errorf("by %s the clock is %v off the expected time", how, diff)
			}
		}
	}
	expectOff(0)
	if err := client.Set(ctx, "key", "value", 30*time.Minute).Err(); err != nil {
		t.Fatal(err)
	}
	if err := r.StepClock(-time.Hour); err != nil {
		t.Fatal(err)
	}
	expectOff(-time.Hour)
	expectKey(t, client, "key", "value")
	if err := r.StepClock(2 * time.Hour); err != nil {
		t.Fatal(err)
	}
	expectOff(time.Hour)
	expectKey(t, client, "key", "") // expired
	if err := r.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	expectOff(time.Hour)

	if err := startRedis(t, RedisOptions{}).StepClock(time.Hour); err == nil {
		t.Error("StepClock without the option succeeded")
	}
}

func TestMissingCompilerIsNamed(t *testing.T) {
	if _, err := FindRedis(); errors.Is(err, ErrNotFound) {
		t.Skip("this test starts the real server (make test installs it): ", err)
	}
	defer func(names []string, binary []byte) {
		compilers, clockCode.binary = names, binary
	}(compilers, clockCode.binary)
	compilers, clockCode.binary = nil, nil
	t.Setenv("CC", "")
	if _, err := StartRedis(testContext(t), RedisOptions{Clock: true}); !errors.Is(err,
		ErrNotFound) ||
		!strings.Contains(err.Error(), "compiler") {
		t.Errorf("without a C compiler: %v", err)
	}
}

// The environment chooses the server. A missing server is an error, not a reason to skip tests.
func TestRedisOfTheEnvironment(t *testing.T) {
	installed, err := FindRedis()
	if errors.Is(err, ErrNotFound) {
		t.Skip("this test needs a server to name: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other-server")
	if err := os.Symlink(installed, other); err != nil {
		t.Fatal(err)
	}
	t.Setenv(RedisEnv, other)
	if got, err := FindRedis(); err != nil || got != other {
		t.Errorf("%q, %v, want %q", got, err, other)
	}
	set(t, clientOf(t, startRedis(t, RedisOptions{})), "key", "value")
	t.Setenv(RedisEnv, other+"-missing")
	if got, err := FindRedis(); err == nil || errors.Is(err, ErrNotFound) ||
		!strings.Contains(err.Error(), RedisEnv) {
		t.Errorf("a server that is not there: %q, %v", got, err)
	}
}
