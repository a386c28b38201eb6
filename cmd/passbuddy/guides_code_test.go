package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// This file has the code of the guides, and runs it. TestGuidesQuoteThisFile holds it to that.

// docs/CAPACITY.md
func divided() []semaphore.Config {
	web := semaphore.Config{Name: "orders-db", Capacity: 20, Weight: 3, Min: 2}
	batch := semaphore.Config{Name: "orders-db", Capacity: 20, Max: 5}
	return []semaphore.Config{web, batch}
}

// docs/DEPLOYS.md

// serveUntil ends when ctx does: signal.NotifyContext ends it at SIGTERM.
func serveUntil(
	ctx context.Context, server *http.Server, sem *semaphore.Semaphore, pool *pgxpool.Pool,
) error {
	defer sem.Close()  // last: what is still held is given back
	defer pool.Close() // waits for connections that are in use
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	return server.Shutdown(finish) // requests under way go on to their end
}

// docs/SERVERLESS.md
func instance(ctx context.Context, invoke func(*pgxpool.Pool) error) error {
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"), semaphore.Config{
		Name: "orders-db", Capacity: 20,
		TTL: 2 * time.Second, // for how long a frozen instance keeps its permit
	})
	if err != nil {
		return err
	}
	defer sem.Close()
	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	config.MaxConns = 1 // an instance serves one request at a time
	pool, err := passpool.NewWithConfig(ctx, config, sem, passbuddy.Config{Fence: true})
	if err != nil {
		return err
	}
	defer pool.Close()
	return invoke(pool)
}

// docs/REDIS.md
func oneRedis(ctx context.Context) error {
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"),
		semaphore.Config{Name: "orders-db", Capacity: 20})
	return use(ctx, sem, err)
}

func bySentinels(ctx context.Context, master string, sentinels []string) error {
	client := redis.NewFailoverClient(&redis.FailoverOptions{
		MasterName: master, SentinelAddrs: sentinels,
	})
	defer client.Close()
	sem, err := semaphore.New(ctx, client,
		semaphore.Config{Name: "orders-db", Capacity: 20, WaitReplicas: 1})
	return use(ctx, sem, err)
}

func inCluster(ctx context.Context, nodes []string) error {
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: nodes})
	defer client.Close()
	sem, err := semaphore.New(ctx, client,
		semaphore.Config{Name: "orders-db", Capacity: 20, WaitReplicas: 1})
	return use(ctx, sem, err)
}

// docs/MIGRATING.md
func shared(ctx context.Context) error {
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"), semaphore.Config{
		Prefix: "passbuddy", Name: "orders-db", // the sorted set passbuddy-orders-db
		Capacity: 20,
	})
	return use(ctx, sem, err)
}

func asBefore(
	sem *semaphore.Semaphore, next http.Handler, rowsOf func(context.Context, string) (int, error),
) (http.Handler, func(context.Context, string) (int, error)) {
	p := sem.NewPermit()
	handler := p.Handler(next, semaphore.HandlerOptions{AcquireOnStart: true})
	report := semaphore.Bind(p, func(ctx context.Context, day string) (int, error) {
		return rowsOf(ctx, day)
	}, semaphore.BindOptions{})
	return handler, report
}

// use acquires and releases a permit, and closes the semaphore.
func use(ctx context.Context, sem *semaphore.Semaphore, err error) error {
	if err != nil {
		return err
	}
	defer sem.Close()
	return sem.NewPermit().Do(ctx, func(context.Context) error { return nil })
}

// Every Go snippet of a guide is a run of lines of this file.
func TestGuidesQuoteThisFile(t *testing.T) {
	source := strings.Split(read(t, "guides_code_test.go"), "\n")
	found := 0
	for _, guide := range guides {
		for _, snippet := range blocks(read(t, docs+guide), "go") {
			found++
			if !quotes(source, strings.Split(strings.TrimSuffix(snippet, "\n"), "\n")) {
				t.Errorf("%s has a snippet that is not in this file:\n%s", guide, snippet)
			}
		}
	}
	if found < 8 {
		t.Errorf("%d snippets: the test sees too few", found)
	}
}

// quotes reports whether the snippet is a run of lines of the source, but for the tabs that all of
// its lines lack.
func quotes(source, snippet []string) bool {
	for i := range len(source) - len(snippet) + 1 {
		indent, ok := strings.CutSuffix(source[i], snippet[0])
		if !ok || strings.Trim(indent, "\t") != "" {
			continue
		}
		same := true
		for k, line := range snippet {
			same = same && (line == "" && source[i+k] == "" || source[i+k] == indent+line)
		}
		if same {
			return true
		}
	}
	return false
}

// code runs what is above with the fleet's servers.
func (f guideFleet) code(t *testing.T) {
	for _, cfg := range divided() {
		sem, err := semaphore.Open(t.Context(), os.Getenv("REDIS_URL"), cfg)
		must(t, use(t.Context(), sem, err))
	}
	must(t, oneRedis(t.Context()))
	must(t, instance(t.Context(), func(pool *pgxpool.Pool) error { return pool.Ping(t.Context()) }))
	f.deploy(t)

	// A permit of a Node client is counted.
	client := redis.NewClient(&redis.Options{Addr: f.redis.Addr()})
	defer client.Close()
	lease := float64(time.Now().Add(time.Hour).UnixMilli())
	must(t, client.ZAdd(t.Context(), "passbuddy-orders-db",
		redis.Z{Score: lease, Member: "7b1c0f0e-2d3a-4c5b-8a69-0123456789ab"}).Err())
	must(t, shared(t.Context()))
	if out, code := runTool(t, []string{"status", "--name", "orders-db"}); code != 0 || !strings.Contains(
		strings.Join(strings.Fields(out), " "), "1 permit is held by clients that are no sessions") {
		t.Errorf("status: exit code %d, and nothing of the Node client's permit:\n%s", code, out)
	}

	held := func() bool {
		s, err := f.sem.Snapshot(t.Context())
		must(t, err)
		return s.Held > 1 // beside the pool's
	}
	handler, report := asBefore(f.sem, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if !held() {
			t.Error("a request is served without a permit")
		}
	}), func(context.Context, string) (int, error) {
		if !held() {
			t.Error("the function runs without a permit")
		}
		return 7, nil
	})
	handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	if n, err := report(t.Context(), "today"); n != 7 || err != nil {
		t.Errorf("the bound function: %d, %v", n, err)
	}
}

// deploy ends a server under a request. The request is answered, and no permit is held afterwards.
func (f guideFleet) deploy(t *testing.T) {
	cfg := semaphore.Config{Name: "deployed", Capacity: 2}
	sem, err := semaphore.Open(t.Context(), os.Getenv("REDIS_URL"), cfg)
	must(t, err)
	pool, err := passpool.New(t.Context(), f.pg.URL(), sem, passbuddy.Config{})
	must(t, err)
	address := freeAddress(t)
	under, goOn := make(chan struct{}), make(chan struct{})
	server := &http.Server{Addr: address, Handler: http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			err := pool.AcquireFunc(r.Context(), func(c *pgxpool.Conn) error {
				close(under)
				<-goOn
				return c.Ping(r.Context())
			})
			_, _ = fmt.Fprint(w, err)
		})}
	ctx, sigterm := context.WithCancel(t.Context())
	defer sigterm()
	ended := make(chan error, 1)
	go func() { ended <- serveUntil(ctx, server, sem, pool) }()
	answers := make(chan string, 1)
	go func() { answers <- ask("http://" + address) }()
	select {
	case <-under:
	case err := <-ended:
		t.Fatal(err)
	}
	sigterm()
	for {
		if c, err := net.Dial("tcp", address); err != nil {
			break // it takes no new requests
		} else {
			_ = c.Close()
		}
	}
	close(goOn)
	if got := <-answers; got != "<nil>" {
		t.Errorf("the request under way was answered %q", got)
	}
	must(t, <-ended)
	inspector, err := semaphore.NewInspector(f.sem.Client(), "", cfg.Name)
	must(t, err)
	s, err := inspector.Snapshot(t.Context())
	must(t, err)
	if s.Held != 0 || len(s.Sessions) != 0 {
		t.Errorf("after the end: %d permits are held, by %d sessions", s.Held, len(s.Sessions))
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

// ask returns the answer to a GET, which it repeats until the server listens.
func ask(url string) string {
	for {
		r, err := http.Get(url)
		if err != nil {
			continue
		}
		defer r.Body.Close()
		text, _ := io.ReadAll(r.Body)
		return string(text)
	}
}

// The clients of docs/REDIS.md find their servers, and replicas acknowledge each grant.
func TestGuideRedis(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this starts a Sentinel, a Cluster and replicas")
	}
	t.Run("sentinel", func(t *testing.T) {
		t.Parallel()
		s, err := throwaway.StartSentinel(t.Context(), throwaway.SentinelOptions{Replicas: 1})
		if errors.Is(err, throwaway.ErrNotFound) {
			t.Skip("Redis is not installed: ", err)
		}
		must(t, err)
		defer s.Stop()
		must(t, bySentinels(t.Context(), throwaway.MasterName, s.Addrs()))
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		c, err := throwaway.StartRedisCluster(t.Context(), throwaway.RedisClusterOptions{})
		if errors.Is(err, throwaway.ErrNotFound) {
			t.Skip("Redis is not installed: ", err)
		}
		must(t, err)
		defer c.Stop()
		must(t, inCluster(t.Context(), c.Addrs()))
	})
}

// programs builds and runs the complete programs of the README.
func (f guideFleet) programs(t *testing.T) {
	found := 0
	for _, text := range blocks(read(t, "../../README.md"), "go") {
		if !strings.HasPrefix(text, "package main") {
			continue
		}
		found++
		folder := t.TempDir()
		file, program := filepath.Join(folder, "main.go"), filepath.Join(folder, "program")
		must(t, os.WriteFile(file, []byte(text), 0o600))
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program,
			file).CombinedOutput(); err != nil {
			t.Errorf("program %d: %v: %s", found, err, out)
			continue
		}
		if out, err := exec.CommandContext(t.Context(), program).CombinedOutput(); err != nil ||
			string(out) != "42\n" {
			t.Errorf("program %d: %v: %s", found, err, out)
		}
	}
	if found != 2 {
		t.Errorf("the README has %d programs, want 2", found)
	}
}

// pooler tries pools behind PgBouncer, as in docs/POOLERS.md: they work, and Fence is refused.
func (f guideFleet) pooler(t *testing.T) {
	b, err := throwaway.StartPgBouncer(t.Context(), throwaway.PgBouncerOptions{Postgres: f.pg,
		PoolMode: "transaction"})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("PgBouncer is not installed: ", err)
	}
	must(t, err)
	defer b.Stop()
	sem, err := semaphore.Open(t.Context(), os.Getenv("REDIS_URL"),
		semaphore.Config{Name: "behind", Capacity: 2})
	must(t, err)
	defer sem.Close()
	for _, fence := range []bool{false, true} {
		config, err := pgxpool.ParseConfig(b.URL())
		must(t, err)
		config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
		pool, err := passpool.NewWithConfig(t.Context(), config, sem, passbuddy.Config{Fence: fence})
		must(t, err)
		var n int
		err = pool.QueryRow(t.Context(), "select 42").Scan(&n)
		if s := sem.Stats(); !fence && (err != nil || n != 42 || s.Held != 1) {
			t.Errorf("%d, %v, with %d permits, want 42 with one", n, err, s.Held)
		}
		if fence && (err == nil || !strings.Contains(err.Error(), "goes through a pooler")) {
			t.Errorf("with Fence: %v", err)
		}
		pool.Close()
	}
}
