package examples

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

// All tests share one Postgres, one Redis, and one build of the programs. Each test has a database
// and a Redis database of its own.
var shared struct {
	once     sync.Once
	err      error
	postgres *throwaway.Postgres
	redis    *throwaway.Redis
	programs string   // a folder
	spaces   chan int // numbers of Redis databases nobody uses; also bounds how many tests run
}

// parallel is how many tests run at once. More would only make each slower.
const parallel = 4

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.postgres != nil {
		_ = shared.postgres.Stop()
	}
	if shared.redis != nil {
		_ = shared.redis.Stop()
	}
	if shared.programs != "" {
		_ = os.RemoveAll(shared.programs)
	}
	os.Exit(code)
}

func start() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	shared.postgres, err = throwaway.StartPostgres(ctx, throwaway.PostgresOptions{})
	if err != nil {
		return err
	}
	if shared.redis, err = throwaway.StartRedis(ctx, throwaway.RedisOptions{}); err != nil {
		return err
	}
	shared.spaces = make(chan int, parallel)
	for n := range parallel {
		shared.spaces <- n
	}
	if shared.programs, err = os.MkdirTemp("", "passbuddy-examples"); err != nil {
		return err
	}
	// -s leaves out the symbol table, which takes a third of the linker's time.
	args := append([]string{"build", "-ldflags=-s", "-o", shared.programs + "/"}, buildFlags()...)
	out, err := exec.Command("go", append(args, "./...")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// buildFlags are this test's tags. The programs are built without the race detector, as `go vet` has
// compiled their dependencies: to compile these with it takes minutes more.
func buildFlags() (flags []string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	for _, s := range info.Settings {
		if s.Key == "-tags" {
			flags = append(flags, s.Key+"="+s.Value)
		}
	}
	return flags
}

// space holds all that one test has for itself.
type space struct {
	database    string
	databaseURL string
	redisURL    string
	admin       *pgx.Conn // to another database, as the superuser
	rows        *pgx.Conn // to the database, as the superuser
	redisClient *redis.Client
}

// newSpace makes a database with the table of schema.sql, whose inserts take 20 ms: the work that
// the programs do. It skips the test where a server is not installed.
func newSpace(t *testing.T) *space {
	t.Helper()
	shared.once.Do(func() { shared.err = start() })
	if errors.Is(shared.err, throwaway.ErrNotFound) {
		t.Skipf("this test needs a real server: %v (make test installs it)", shared.err)
	}
	must(t, shared.err)
	number := <-shared.spaces
	t.Cleanup(func() { shared.spaces <- number })

	ctx := t.Context()
	s := &space{database: "example" + strconv.Itoa(int(time.Now().UnixNano()))}
	var err error
	s.admin, err = pgx.Connect(ctx, databaseURL(t, shared.postgres.AdminURL(), "postgres"))
	must(t, err)
	t.Cleanup(func() { _ = s.admin.Close(context.Background()) })
	s.makeDatabase(t, s.database)
	s.databaseURL = databaseURL(t, shared.postgres.URL(), s.database)
	s.rows, err = pgx.Connect(ctx, databaseURL(t, shared.postgres.AdminURL(), s.database))
	must(t, err)
	t.Cleanup(func() { _ = s.rows.Close(context.Background()) })

	s.redisURL = strings.TrimSuffix(shared.redis.URL(), "/0") + "/" + strconv.Itoa(number)
	options, err := redis.ParseURL(s.redisURL)
	must(t, err)
	s.redisClient = redis.NewClient(options)
	t.Cleanup(func() { _ = s.redisClient.Close() })
	must(t, s.redisClient.FlushDB(ctx).Err())
	return s
}

// makeDatabase makes one more database, with the table of schema.sql.
func (s *space) makeDatabase(t *testing.T, name string) {
	t.Helper()
	schema, err := os.ReadFile("schema.sql")
	must(t, err)
	_, err = s.admin.Exec(t.Context(), fmt.Sprintf("create database %s owner %s", name,
		throwaway.Role))
	must(t, err)
	conn, err := pgx.Connect(t.Context(), databaseURL(t, shared.postgres.AdminURL(), name))
	must(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "set role "+throwaway.Role+";"+string(schema)+`;
		create function work() returns trigger language plpgsql as
			$$ begin perform pg_sleep(0.02); return new; end $$;
		create trigger work before insert on orders for each row execute function work()`)
	must(t, err)
}

// useRole has the programs log in as a role of their own, which has no password yet.
func (s *space) useRole(t *testing.T) (role string) {
	t.Helper()
	role = "role_" + s.database
	_, err := s.rows.Exec(t.Context(),
		"create role "+role+" login; grant insert on orders to "+role)
	must(t, err)
	u, err := url.Parse(s.databaseURL)
	must(t, err)
	u.User = url.User(role)
	s.databaseURL = u.String()
	return role
}

func databaseURL(t *testing.T, of, database string) string {
	t.Helper()
	u, err := url.Parse(of)
	must(t, err)
	u.Path = "/" + database
	return u.String()
}

// inspector sees and steers the semaphore of that name.
func (s *space) inspector(t *testing.T, name string) *semaphore.Inspector {
	t.Helper()
	inspector, err := semaphore.NewInspector(s.redisClient, "", name)
	must(t, err)
	return inspector
}

// orders is how many orders there are.
func (s *space) orders(t *testing.T) (n int) {
	t.Helper()
	must(t, s.rows.QueryRow(t.Context(), "select count(*) from orders").Scan(&n))
	return n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
