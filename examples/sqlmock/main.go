// Command sqlmock runs code through PassBuddy without a database: go-sqlmock's driver is wrapped as
// any other. Most unit tests need only go-sqlmock's own *sql.DB, without PassBuddy.
// It reads REDIS_URL alone.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/DATA-DOG/go-sqlmock"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/semaphore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"),
		semaphore.Config{Name: "orders-db", Capacity: 5})
	if err != nil {
		return err
	}
	defer sem.Close()

	mockDB, mock, err := sqlmock.NewWithDSN("orders")
	if err != nil {
		return err
	}
	defer mockDB.Close()
	passbuddy.Register("sqlmock-passbuddy", mockDB.Driver(), sem, passbuddy.Config{})
	db, err := sql.Open("sqlmock-passbuddy", "orders")
	if err != nil {
		return err
	}
	defer db.Close()

	mock.ExpectBegin()
	mock.ExpectExec("insert into orders").WithArgs("atlas").
		WillReturnResult(sqlmock.NewResult(1, 1))
	mock.ExpectCommit()
	if err := placeOrder(ctx, db, "atlas"); err != nil {
		return err
	}
	fmt.Println("permits held:", sem.Stats().Held)
	return mock.ExpectationsWereMet()
}

// placeOrder is the code under test.
func placeOrder(ctx context.Context, db *sql.DB, item string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "insert into orders (item) values ($1)", item); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}
