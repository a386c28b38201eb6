package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	adminSecret = "admin-secret-4711"
	userSecret  = "user-secret-0815"
)

// TLS with a certificate that the client checks: Open against the system's authorities, New against
// those of the client.
func TestTLS(t *testing.T) {
	t.Parallel() // it mostly waits
	authority, err := throwaway.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	r, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{Password: adminSecret,
		TLS: authority})
	if err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = r.Stop() })
	cfg := semaphore.Config{Name: t.Name(), Capacity: 2, RetryInterval: 10 * time.Second,
		MaxAttempts: -1}
	if _, err := semaphore.Open(t.Context(), r.URL(), cfg); err == nil ||
		!strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of an unknown authority: %v, want it refused", err)
	}
	opened, err := semaphore.Open(t.Context(), r.URL()+"?skip_verify=true", cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = opened.Close() })
	c := redis.NewClient(r.Options())
	t.Cleanup(func() { _ = c.Close() })
	made, err := semaphore.New(context.Background(), c, cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() { _ = made.Close() })
	handsOver(t, opened, made, 2)
	handsOver(t, made, opened, 2)
}

// Whichever server refuses, no password appears in an error, a log line, or Redis.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel() // it mostly waits
	const secret = "hunter2-s3cr3t"
	var log bytes.Buffer
	var mu sync.Mutex
	logger := slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return log.Write(p)
	}), &slog.HandlerOptions{Level: slog.LevelDebug}))
	s := startServers(t, 50)
	r, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{Password: secret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Stop() })
	closed, err := throwaway.StartProxy(r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	silent := func(what, text string) {
		t.Helper()
		if strings.Contains(text, secret) || strings.Contains(text, url.QueryEscape(secret)) {
			t.Errorf("%s shows the secret: %s", what, text)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cfg := semaphore.Config{Name: t.Name(), Logger: logger, TTL: time.Second, Capacity: 2}
	for name, address := range map[string]string{
		"wrong password":     "redis://:" + secret + "-wrong@" + r.Addr(),
		"wrong user":         "redis://nobody:" + secret + "@" + r.Addr(),
		"refused connection": "redis://:" + secret + "@" + closed.Addr(),
		"bad port":           "redis://:" + secret + "@127.0.0.1:port",
		"bad escape":         "redis://:" + secret + "%zz@127.0.0.1:1",
		"bad scheme":         "http://:" + secret + "@127.0.0.1:1",
		"bad path":           "redis://:" + secret + "@127.0.0.1:1/x/y",
		"no scheme":          ":" + secret + "@127.0.0.1:1",
		"bad option":         "redis://:" + secret + "@127.0.0.1:1?read_timeout=never",
		"slash in password":  "redis://:" + secret + "/x@127.0.0.1:1",
	} {
		sem, err := semaphore.Open(ctx, address, cfg)
		if err == nil {
			_ = sem.Close()
			t.Errorf("%s: no error", name)
			continue
		}
		silent(name, err.Error()+fmt.Sprintf("%+v %#v", err, err))
	}

	sem, err := semaphore.Open(ctx, r.URL(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sem.Close() })
	wrong, err := url.Parse(s.postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	wrong.User = url.UserPassword("passbuddy", secret)
	refused := *wrong
	refused.Host = closed.Addr()
	for name, dsn := range map[string]string{"wrong password": wrong.String(),
		"refused connection": refused.String(), "bad DSN": "postgres://u:" + secret +
			"@h:port/db"} {
		pool, err := passpool.New(ctx, dsn, sem, passbuddy.Config{})
		if err == nil {
			_, err = pool.Exec(ctx, "select 1")
			pool.Close()
		}
		if err == nil {
			t.Errorf("pgxpool, %s: no error", name)
			continue
		}
		silent("pgxpool, "+name, err.Error())
		db := openDB(t, dsn, sem, passbuddy.Config{})
		_, err = db.ExecContext(ctx, "select 1")
		_ = db.Close()
		if err == nil {
			t.Errorf("database/sql, %s: no error", name)
			continue
		}
		silent("database/sql, "+name, err.Error())
	}

	// A permit is held, so that Redis has keys. Then Redis goes away, so that the session has
	// errors to log.
	if _, err := sem.Acquire(ctx); err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(r.Options())
	defer c.Close()
	keys, err := c.Keys(ctx, "*").Result()
	if err != nil || len(keys) == 0 {
		t.Fatalf("no keys: %v", err)
	}
	for _, key := range keys {
		silent("a key", key)
		for _, content := range []fmt.Stringer{c.HGetAll(ctx, key), c.ZRangeWithScores(ctx, key, 0,
			-1)} {
			silent("the content of "+key, content.String())
		}
	}
	r.Kill()
	if _, err := sem.TryAcquire(ctx); !errors.Is(err, semaphore.ErrUnavailable) {
		t.Errorf("without Redis: %v", err)
	} else {
		silent("without Redis", err.Error())
	}
	logged := func() string {
		mu.Lock()
		defer mu.Unlock()
		return log.String()
	}
	eventually(t, time.Minute, func() (bool, string) {
		return strings.Contains(logged(), "lease lost") &&
				strings.Contains(logged(), "heartbeat failed"),
			"the session logs no error while Redis is away"
	})
	silent("a log line", logged())
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
