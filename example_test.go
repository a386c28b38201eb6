package passbuddy_test

import (
	"context"
	"database/sql"
	"log"
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	redisURL = "redis://localhost:6379/0"
	dsn      = "postgres://app:secret@localhost:5432/app"
)

// A whole program: all processes that open "postgres-capped" with the same Redis share 80
// connections.
func ExampleRegister() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL, semaphore.Config{Capacity: 80})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	passbuddy.Register("postgres-capped", stdlib.GetDefaultDriver(), sem, passbuddy.Config{})

	db, err := sql.Open("postgres-capped", dsn)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	// PassBuddy gives idle ones back when another process needs them
	db.SetMaxIdleConns(sem.Engine(engine.Seam{}).Capacity())

	var now time.Time
	if err := db.QueryRowContext(ctx, "select now()").Scan(&now); err != nil {
		log.Fatal(err)
	}
	log.Print(now)
}

// With a connector the driver needs no name.
func ExampleOpenDB() {
	sem, err := semaphore.Open(context.Background(), redisURL, semaphore.Config{Capacity: 80})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		log.Fatal(err)
	}
	db := passbuddy.OpenDB(stdlib.GetConnector(*cfg), sem,
		passbuddy.Config{AcquireTimeout: 5 * time.Second})
	defer db.Close()
}

// Other libraries' wrappers go around PassBuddy's.
func ExampleWrapConnector() {
	sem, err := semaphore.Open(context.Background(), redisURL, semaphore.Config{Capacity: 80})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	inner, err := pq.NewConnector(dsn)
	if err != nil {
		log.Fatal(err)
	}
	inner.Dialer(&passbuddy.Dialer{}) // permits follow the sockets
	connector := passbuddy.WrapConnector(inner, sem, passbuddy.Config{})
	db := sql.OpenDB(connector) // or sql.OpenDB(otherWrapper(connector))
	defer db.Close()
	db.SetMaxIdleConns(sem.Engine(engine.Seam{}).Capacity())
}

// The caller can register the capped driver itself, or wrap it again.
func ExampleWrapDriver() {
	sem, err := semaphore.Open(context.Background(), redisURL, semaphore.Config{Capacity: 80})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()
	sql.Register("pq-capped",
		passbuddy.WrapDriver(&pq.Driver{}, sem, passbuddy.Config{Scope: passbuddy.PerCheckout}))
}

// sql.Conn.Raw passes PassBuddy's wrapper. The wrapper's Raw returns the driver's own connection.
func ExampleRawConn() {
	var db *sql.DB // opened as above
	ctx := context.Background()

	conn, err := db.Conn(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	err = conn.Raw(func(driverConn any) error {
		pgxConn := driverConn.(passbuddy.RawConn).Raw().(*stdlib.Conn).Conn()
		_, err := pgxConn.CopyFrom(ctx, pgx.Identifier{"numbers"}, []string{"n"},
			pgx.CopyFromRows([][]any{{1}, {2}}))
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
}

// For a driver that takes a dial function and passes it the context of Connect.
func ExampleDialer() {
	inner, err := pq.NewConnector(dsn)
	if err != nil {
		log.Fatal(err)
	}
	inner.Dialer(&passbuddy.Dialer{})
}

// An operator asks this first when callers time out.
func ExampleStats() {
	sem, err := semaphore.Open(context.Background(), redisURL, semaphore.Config{Capacity: 80})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		log.Fatal(err)
	}
	db := passbuddy.OpenDB(stdlib.GetConnector(*cfg), sem, passbuddy.Config{PoolName: "orders"})
	defer db.Close()

	if s, ok := passbuddy.Stats(db); ok {
		log.Printf("%s: %d in use, %d idle, %d callers wait, the first for %v; %d timed out",
			s.Name, s.InUse, s.Idle, s.Waiting, s.OldestWait, s.Timeouts)
	}
}
