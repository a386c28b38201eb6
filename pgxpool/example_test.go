package pgxpool_test

import (
	"context"
	"log"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

func Example() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, "redis://localhost:6379",
		semaphore.Config{Name: "orders-db", Capacity: 20})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	pool, err := passpool.New(ctx, "postgres://localhost/orders?pool_max_conns=40", sem,
		passbuddy.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	var n int
	if err := pool.QueryRow(ctx, "select count(*) from orders").Scan(&n); err != nil {
		// errors.Is(err, semaphore.ErrCapacity) if the fleet was at capacity for too long
		log.Print(err)
	}
}

// The DSN or the environment names the semaphore: PASSBUDDY_REDIS_URL, PASSBUDDY_NAME,
// PASSBUDDY_CAPACITY and others.
func ExampleOpen() {
	ctx := context.Background()
	pool, err := passpool.Open(ctx, "postgres://localhost/orders?pool_max_conns=40"+
		"&passbuddy_name=orders-db&passbuddy_capacity=20")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close() // and of the semaphore, if no other pool of the program uses it
}

func ExampleConfigure() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, "redis://localhost:6379", semaphore.Config{Capacity: 20})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	cfg, err := pgxpool.ParseConfig("postgres://localhost/orders")
	if err != nil {
		log.Fatal(err)
	}
	// Set your own hooks and tracers here, before Configure.
	if err := passpool.Configure(cfg, sem, passbuddy.Config{}); err != nil {
		log.Fatal(err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
}

func ExampleNewHooks() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, "redis://localhost:6379", semaphore.Config{Capacity: 20})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	cfg, err := pgxpool.ParseConfig("postgres://localhost/orders")
	if err != nil {
		log.Fatal(err)
	}
	hooks := passpool.NewHooks(sem, passbuddy.Config{})
	cfg.PrepareConn = hooks.PrepareConn
	cfg.AfterRelease = hooks.AfterRelease
	cfg.BeforeClose = hooks.BeforeClose
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
}

func ExampleStats() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, "redis://localhost:6379", semaphore.Config{Capacity: 20})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	pool, err := passpool.New(ctx, "postgres://localhost/orders", sem, passbuddy.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	if s, ok := passpool.Stats(pool); ok { // s.Name is "localhost:5432/orders"
		log.Printf("%s: %d in use, %d idle, %d callers wait, the first for %v; %d timed out",
			s.Name, s.InUse, s.Idle, s.Waiting, s.OldestWait, s.Timeouts)
	}
}
