package pgview

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

func TestRead(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	pg, err := throwaway.StartPostgres(ctx, throwaway.PostgresOptions{MaxConnections: 12,
		Settings: map[string]string{"client_connection_check_interval": "1500ms"}})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pg.Stop() })
	dial := func(application string) *pgx.Conn {
		config, err := pgx.ParseConfig(pg.URL())
		if err != nil {
			t.Fatal(err)
		}
		config.RuntimeParams["application_name"] = application
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(ctx)) })
		return conn
	}
	idle := dial("idle\x01 one")
	open := dial("open")
	if _, err := open.Exec(ctx, "begin"); err != nil {
		t.Fatal(err)
	}
	v, err := Read(ctx, pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	if v.MaxConnections != 12 || v.SuperuserReserved != 3 || v.Usable() != 12-v.Reserved ||
		v.CheckInterval != 1.5 || v.Version == "" || v.Others != 2 || v.Hidden != 0 {
		t.Errorf("%+v", v)
	}
	found := false
	for _, g := range v.Backends {
		switch {
		case g.Application == Application:
			t.Errorf("our own connection is counted: %+v", g)
		case g.Application == "open":
			found = g.State == IdleInTransaction && g.Backends == 1 && g.OldestTransaction > 0 &&
				g.User != "" && g.Database != "" && g.Address != ""
		case strings.ContainsRune(g.Application, 1):
			t.Errorf("%q", g.Application)
		}
	}
	if !found {
		t.Errorf("%+v", v.Backends)
	}
	_ = idle

	// Postgres is full: that is an answer of its own, without the password.
	for range 20 {
		config, _ := pgx.ParseConfig(pg.URL())
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			break
		}
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(ctx)) })
	}
	if _, err := Read(ctx, pg.URL()); !errors.Is(err, ErrFull) {
		t.Errorf("of a full server: %v", err)
	}
}

func TestErrorsShowNoPassword(t *testing.T) {
	for _, url := range []string{
		"postgres://user:secret/piece@host:5432/db",
		"postgres://user:secret%zzpiece@host/db",
		"postgres://user:secret@host:port/db",
		"postgres://user:secret@127.0.0.1:1/db?connect_timeout=1",
		"host=127.0.0.1 port=1 user=u password=secret connect_timeout=1",
		"host=127.0.0.1 port=none user=u password=secret",
		"postgres://user:secret@127.0.0.1:1/db?sslmode=secretmode",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		_, err := Read(ctx, url)
		cancel()
		if err == nil || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "piece") {
			t.Errorf("%q: %v", url, err)
		}
	}
	err := redact(errors.New("failed: s%20t and s t"), "postgres://u:s%20t@h/d", "s t")
	if err.Error() != "failed: xxxxx and xxxxx" {
		t.Error(err)
	}
}
