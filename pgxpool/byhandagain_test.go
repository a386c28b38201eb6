package pgxpool_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
)

// A listener that was opened by hand connects again with its own configuration.
func TestOpenedByHandAgain(t *testing.T) {
	f := newFleet(t, 5)
	pool := f.process(passbuddy.Config{}, func(cfg *pgxpool.Config) { cfg.MaxConns = 3 })
	listen, err := pgx.ConnectConfig(ctxb, pool.Config().ConnConfig)
	ok(t, err)
	cfg := listen.Config()
	ok(t, listen.Close(ctxb))
	again, err := pgx.ConnectConfig(ctxb, cfg) // reconnect, as a listener does
	if err != nil {
		t.Fatalf("reconnect by conn.Config(): %v", err)
	}
	ok(t, again.Close(ctxb))
}
