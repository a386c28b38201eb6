package heldconns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	clients = 4  // processes, each with a River client
	jobs    = 50 // of each fleet
)

// patience is how long a test waits for what has to come. A slow machine takes its time.
const patience = 2 * time.Minute

// JobArgs is a job.
type JobArgs struct{}

// Kind is its name in the database.
func (JobArgs) Kind() string { return "job" }

type worker struct {
	river.WorkerDefaults[JobArgs]
	done *atomic.Int64
}

func (w *worker) Work(context.Context, *river.Job[JobArgs]) error {
	w.done.Add(1)
	return nil
}

// A fleet is some processes with a River client each, on a database and a semaphore of its own.
type fleet struct {
	t          *testing.T
	name       string
	redis, url string
	done       atomic.Int64
	timeout    time.Duration // AcquireTimeout; 0: the default

	logs []*logged
}

// logged holds the log of a session.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// lines returns the lines that have that text.
func (l *logged) lines(text string) (list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, text) {
			list = append(list, line)
		}
	}
	return list
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newFleet makes a database with River's tables.
func newFleet(t *testing.T, name string, rd *throwaway.Redis, pg *throwaway.Postgres) *fleet {
	t.Helper()
	ctx := t.Context()
	admin, err := pgx.Connect(ctx, pg.AdminURL())
	must(t, err)
	defer admin.Close(ctx)
	_, err = admin.Exec(ctx, fmt.Sprintf("create database %s owner %s", name, throwaway.Role))
	must(t, err)
	u, err := url.Parse(pg.URL())
	must(t, err)
	u.Path = "/" + name
	f := &fleet{t: t, name: name, redis: rd.URL(), url: u.String()}
	bare := f.bare()
	migrator, err := rivermigrate.New(riverpgxv5.New(bare), nil)
	must(t, err)
	_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	must(t, err)
	return f
}

// bare is a pool that takes no part in the cap, for the test itself.
func (f *fleet) bare() *pgxpool.Pool {
	f.t.Helper()
	pool, err := pgxpool.New(context.Background(), f.url)
	must(f.t, err)
	f.t.Cleanup(pool.Close)
	return pool
}

// pool is a process's: a session and a pool.
func (f *fleet) pool(cfg semaphore.Config, name string) *pgxpool.Pool {
	f.t.Helper()
	log := new(logged)
	f.logs = append(f.logs, log)
	cfg.TTL = cmp.Or(cfg.TTL, time.Minute) // no lease is lost on a slow machine
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	if cfg.Name == "" {
		cfg.Name = f.name
	}
	sem, err := semaphore.Open(context.Background(), f.redis, cfg)
	must(f.t, err)
	f.t.Cleanup(func() { _ = sem.Close() })
	config, err := pgxpool.ParseConfig(f.url)
	must(f.t, err)
	config.ConnConfig.RuntimeParams["application_name"] = name
	pool, err := passpool.NewWithConfig(context.Background(), config, sem,
		passbuddy.Config{PoolName: name, AcquireTimeout: f.timeout})
	must(f.t, err)
	f.t.Cleanup(pool.Close)
	return pool
}

// client is a River client of one process.
func (f *fleet) client(
	driver riverdriver.Driver[pgx.Tx], pollOnly bool,
) *river.Client[pgx.Tx] {
	f.t.Helper()
	workers := river.NewWorkers()
	river.AddWorker(workers, &worker{done: &f.done})
	client, err := river.NewClient(driver, &river.Config{
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 2}},
		FetchPollInterval: 100 * time.Millisecond, FetchCooldown: 50 * time.Millisecond,
		Workers: workers, PollOnly: pollOnly, Logger: slog.New(slog.DiscardHandler),
	})
	must(f.t, err)
	return client
}

// start starts a client until the end of the test.
func (f *fleet) start(driver riverdriver.Driver[pgx.Tx], pollOnly bool) {
	f.t.Helper()
	client := f.client(driver, pollOnly)
	must(f.t, client.Start(context.Background()))
	f.t.Cleanup(func() { _ = client.StopAndCancel(context.Background()) })
}

// supervise starts a client, and another one as often as that fails: River gives up after seconds,
// and closes the connection that it listens on. It tells of each error.
func (f *fleet) supervise(pool *pgxpool.Pool, failed func(error)) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	f.t.Cleanup(wg.Wait)
	f.t.Cleanup(cancel)
	wg.Go(func() {
		for ctx.Err() == nil {
			client := f.client(riverpgxv5.New(pool), false)
			if err := client.Start(ctx); err != nil {
				failed(err)
				continue
			}
			<-ctx.Done()
			_ = client.StopAndCancel(context.Background())
		}
	})
}

// work inserts jobs, and waits until all are done.
func (f *fleet) work() {
	f.t.Helper()
	inserter, err := river.NewClient(riverpgxv5.New(f.bare()), &river.Config{})
	must(f.t, err)
	_, err = inserter.InsertMany(f.t.Context(), params(jobs))
	must(f.t, err)
	f.until("all jobs are worked", func() bool { return f.done.Load() >= jobs })
}

func params(n int) (list []river.InsertManyParams) {
	for range n {
		list = append(list, river.InsertManyParams{Args: JobArgs{}})
	}
	return list
}

func (f *fleet) until(what string, yes func() bool) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	for tick := time.NewTicker(50 * time.Millisecond); !yes(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			f.t.Fatalf("not within %v: %s; %d of %d jobs are worked", patience, what, f.done.Load(), jobs)
		}
	}
}

// listening counts the backends of the pools named listener. River pings over its connection, so
// pg_stat_activity.query does not tell.
func (f *fleet) listening(pool *pgxpool.Pool) (n int) {
	f.t.Helper()
	must(f.t, pool.QueryRow(f.t.Context(), "select count(*) from pg_stat_activity "+
		"where datname = current_database() and application_name = 'listener'").Scan(&n))
	return n
}

// More River clients than permits: each holds a permit for ever, and none can work a job. The error
// of a caller and the log say so. The cures of docs/HELD-CONNECTIONS.md set the fleet going.
func TestMoreRiverClientsThanPermits(t *testing.T) {
	ctx := t.Context()
	pg, err := throwaway.StartPostgres(ctx, throwaway.PostgresOptions{})
	must(t, err)
	t.Cleanup(func() { _ = pg.Stop() })
	rd, err := throwaway.StartRedis(ctx, throwaway.RedisOptions{})
	must(t, err)
	t.Cleanup(func() { _ = rd.Stop() })

	drawn := subset.Of(t, 2, []string{"starving", "poll only", "a minimum of two",
		"a pool of its own with Min"})
	t.Run("fleets", func(t *testing.T) { // the servers end after them
		t.Run("starving", func(t *testing.T) {
			if !slices.Contains(drawn, "starving") {
				t.Skip("not drawn: -full runs all")
			}
			t.Parallel()
			f := newFleet(t, "starving", rd, pg)
			f.timeout = 4 * time.Second
			// Sessions tell each other often.
			starving := semaphore.Config{Capacity: clients - 1, TTL: 5 * time.Second}
			const want = " permits are held by hijacked connections, the oldest for "
			names := func(err error) bool {
				return errors.Is(err, semaphore.ErrCapacity) && strings.Contains(err.Error(), want) &&
					strings.Contains(err.Error(), "docs/HELD-CONNECTIONS.md")
			}
			told := make([]atomic.Bool, clients)
			for i := range clients {
				pool := f.pool(starving, "jobs")
				f.supervise(pool, func(err error) {
					if names(err) {
						told[i].Store(true)
					}
				})
			}
			for i := range clients {
				f.until(fmt.Sprintf("client %d is told of hijacked connections", i), told[i].Load)
				f.until(fmt.Sprintf("process %d has logged it", i), func() bool {
					said := f.logs[i].lines("stay out of their pool")
					return len(said) == 1 && strings.Contains(said[0], "pool=jobs hijacked=1")
				})
			}
		})
		t.Run("poll only", func(t *testing.T) {
			if !slices.Contains(drawn, "poll only") {
				t.Skip("not drawn: -full runs all")
			}
			t.Parallel()
			f := newFleet(t, "polling", rd, pg)
			for range clients {
				pool := f.pool(semaphore.Config{Capacity: clients - 1}, "jobs")
				f.start(riverpgxv5.New(pool), true)
			}
			f.work()
		})
		t.Run("a minimum of two", func(t *testing.T) {
			if !slices.Contains(drawn, "a minimum of two") {
				t.Skip("not drawn: -full runs all")
			}
			t.Parallel()
			f := newFleet(t, "roomy", rd, pg)
			for range clients {
				pool := f.pool(semaphore.Config{Capacity: 2 * clients, Min: 2}, "jobs")
				f.start(riverpgxv5.New(pool), false)
			}
			f.work()
		})
		t.Run("a pool of its own with Min", func(t *testing.T) {
			if !slices.Contains(drawn, "a pool of its own with Min") {
				t.Skip("not drawn: -full runs all")
			}
			t.Parallel()
			const capacity = clients + 3
			f := newFleet(t, "reserved", rd, pg)
			for range clients {
				pool := f.pool(semaphore.Config{Capacity: capacity}, "jobs")
				listen := f.pool(semaphore.Config{Capacity: capacity, Min: 1, Max: 1}, "listener")
				f.start(NewListenDriver(pool, listen), false)
			}
			f.work()
			witness := f.bare()
			f.until("each client listens", func() bool { return f.listening(witness) == clients })
			for _, log := range f.logs {
				if said := log.lines("stay out of their pool"); len(said) > 0 {
					t.Errorf("logged of a connection that has a permit to itself: %q", said)
				}
			}
		})
	})
}
