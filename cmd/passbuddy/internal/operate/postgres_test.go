package operate

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/internal/status"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Another stack takes the slots of a real Postgres. Status names it and the capacity that is left;
// capacity --from-postgres proposes that; nobody's password is shown. Then a holder gets stuck.
func TestIncidentsOnPostgres(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	pg, err := throwaway.StartPostgres(ctx, throwaway.PostgresOptions{MaxConnections: 20})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pg.Stop() })
	d := newDesk(t)
	d.env[PostgresEnv] = pg.AdminURL() // it can look even if Postgres is full
	sem := d.join(semaphore.Config{Owner: "web-1", Capacity: 10})
	pool, err := passpool.New(ctx, pg.URL()+"&pool_max_conns=4", sem, passbuddy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	for range 4 {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(conn.Release)
	}
	for range 9 {
		config, err := pgx.ParseConfig(pg.URL())
		if err != nil {
			t.Fatal(err)
		}
		config.RuntimeParams["application_name"] = "rails"
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(ctx)) })
	}
	var document status.Document
	if err := json.Unmarshal([]byte(d.expect(exit.OK, nil, "status", "--json")), &document); err != nil {
		t.Fatal(err)
	}
	v := document.Postgres
	if v == nil || v.MaxConnections != 20 || v.Ours != 4 || v.Others != 9 {
		t.Fatalf("%+v, %s", v, document.PostgresError)
	}
	usable := v.Usable()
	d.expect(exit.OK, []string{"9 rails (", "others leave room for", "rails (", "passbuddy capacity"}, "status")
	d.expect(exit.OK, []string{"max_connections 20", "others' backends 9", "from 10 to"}, "capacity",
		"--from-postgres", "--over", "50ms", "--yes")
	if s := d.snapshot(); s.Capacity != usable-9 {
		t.Errorf("the capacity is %d, of %d less 9", s.Capacity, usable)
	}
	out, complaint, _ := d.run("doctor")
	if !strings.Contains(out, "Postgres") || !strings.Contains(out, "client_connection_check_interval") {
		t.Errorf("%s%s", out, complaint)
	}
}
