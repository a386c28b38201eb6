package env_test

import (
	"database/sql"
	"log"
	"os"

	"github.com/lib/pq"

	"github.com/passbuddy/passbuddy/env"
)

// Only the driver's name in the program changes. It is started with, for example,
//
//	PASSBUDDY_REDIS_URL=redis://localhost:6379
//	PASSBUDDY_NAME=orders-db
//	PASSBUDDY_CAPACITY=20
//
// A program that calls nothing of the package imports it as _.
func Example() {
	db, err := sql.Open("passbuddy", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err) // a setting is refused, or there is no Redis: the error names it
	}
	defer db.Close()

	var n int
	if err := db.QueryRow("select 42").Scan(&n); err != nil {
		log.Print(err)
	}
}

// A program on lib/pq hands its NewConnector over, so that permits follow the sockets.
func ExampleUsePQ() {
	env.UsePQ(pq.NewConnector)

	db, err := sql.Open("passbuddy-pq", "postgres://localhost/orders?passbuddy_name=orders-db")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
}
