package pgview

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Timeout bounds a look, whatever ctx allows.
const Timeout = 5 * time.Second

// ErrFull says that Postgres has no connection left for the role that looks, which is an answer,
// too.
var ErrFull = errors.New("too many clients: Postgres has no connection left for this role. Look with " +
	"a superuser, or on PostgreSQL 16 and later with a member of pg_use_reserved_connections")

// Check returns an error for a URL, or a connection string of key=value, that cannot be read. The
// error shows nothing of it: it may hold a password in any of its parts.
func Check(text string) error {
	_, err := parse(text)
	return err
}

func parse(text string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(text)
	if err != nil {
		return nil, errors.New("this is not a URL such as postgres://user:password@host:5432/db, " +
			"nor a string such as \"host=... user=...\": is the port a number, are user and " +
			"password percent-encoded, and are all parameters known?")
	}
	config.RuntimeParams["application_name"] = Application
	// No statement is prepared, so that a look passes through any pooler.
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	config.ConnectTimeout = Timeout
	return config, nil
}

// Read looks at the server of a URL, or of a connection string, over one connection that it closes.
// It reads only. It takes at most Timeout. No backend is marked as ours yet. Errors show no
// password.
func Read(ctx context.Context, text string) (_ *View, err error) {
	config, err := parse(text)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	defer func() { err = redact(err, text, config.Password) }()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		var refused *pgconn.PgError
		if errors.As(err, &refused) && refused.Code == tooManyConnections {
			return nil, fmt.Errorf("%w (%s)", ErrFull, refused.Message)
		}
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ending)
	}()
	v := &View{}
	if err := v.readSettings(ctx, conn); err != nil {
		return nil, fmt.Errorf("read Postgres's settings: %w", err)
	}
	if err := v.readBackends(ctx, conn); err != nil {
		return nil, fmt.Errorf("read pg_stat_activity: %w", err)
	}
	if err := v.readLimits(ctx, conn); err != nil {
		return nil, fmt.Errorf("read the connection limits of roles and databases: %w", err)
	}
	return v, nil
}

const tooManyConnections = "53300"

// redact takes care that no error shows the password, in any form that it has in the URL.
func redact(err error, text, password string) error {
	if err == nil {
		return nil
	}
	secrets := []string{password, url.QueryEscape(password), url.PathEscape(password)}
	if u, bad := url.Parse(text); bad == nil && u.User != nil {
		_, encoded, _ := strings.Cut(u.User.String(), ":")
		secrets = append(secrets, encoded)
	}
	message := err.Error()
	for _, secret := range secrets {
		if secret != "" {
			message = strings.ReplaceAll(message, secret, "xxxxx")
		}
	}
	if message == err.Error() {
		return err
	}
	return redacted{message, err}
}

// redacted is an error whose text had to be changed.
type redacted struct {
	text string
	err  error
}

func (r redacted) Error() string        { return r.text }
func (r redacted) Is(target error) bool { return errors.Is(r.err, target) }

const settingsQuery = `select now(), current_setting('server_version'),
	current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int,
	coalesce(current_setting('reserved_connections', true), '0')::int,
	coalesce((select setting::float8 / 1000 from pg_settings
		where name = 'client_connection_check_interval'), -1)`

func (v *View) readSettings(ctx context.Context, conn *pgx.Conn) error {
	err := conn.QueryRow(ctx, settingsQuery).Scan(&v.At, &v.Version, &v.MaxConnections,
		&v.SuperuserReserved, &v.RoleReserved, &v.CheckInterval)
	v.At = v.At.UTC()
	v.Version, _, _ = strings.Cut(clean(v.Version), " ")
	v.Reserved = v.SuperuserReserved + v.RoleReserved
	return err
}

// Backends whose details are hidden have no backend_type, but a user. Neither walsenders nor
// parallel workers count against max_connections.
const backendsQuery = `select coalesce(application_name, ''), coalesce(usename, ''),
	coalesce(datname, ''), case when client_addr is not null then host(client_addr)
		when client_port = -1 then 'local' else '' end,
	coalesce(state, ''), count(*)::int,
	coalesce(greatest(extract(epoch from max(clock_timestamp() - state_change)), 0), 0)::float8,
	coalesce(greatest(extract(epoch from max(clock_timestamp() - xact_start)), 0), 0)::float8
from pg_stat_activity
where pid <> pg_backend_pid() and (backend_type = 'client backend'
	or backend_type is null and usename is not null and datname is not null)
group by 1, 2, 3, 4, 5 order by 6 desc, 1, 2, 3, 4, 5`

func (v *View) readBackends(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, backendsQuery)
	if err != nil {
		return err
	}
	v.Backends, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (g Group, err error) {
		err = row.Scan(&g.Application, &g.User, &g.Database, &g.Address, &g.State, &g.Backends,
			&g.OldestState, &g.OldestTransaction)
		for _, text := range []*string{&g.Application, &g.User, &g.Database} {
			*text = clean(*text)
		}
		return g, err
	})
	for _, g := range v.Backends {
		v.Others += g.Backends
		if g.State == "" && g.Address == "" {
			v.Hidden += g.Backends
		}
	}
	return err
}

const limitsQuery = `select 'role', r.rolname::text, r.rolconnlimit,
	(select count(*) from pg_stat_activity a where a.usesysid = r.oid
		and a.pid <> pg_backend_pid() and a.datname is not null)::int
from pg_roles r where r.rolconnlimit >= 0 and r.rolcanlogin and not r.rolsuper
union all select 'database', d.datname::text, d.datconnlimit,
	(select count(*) from pg_stat_activity a where a.datid = d.oid
		and a.pid <> pg_backend_pid() and a.usesysid is not null)::int
from pg_database d where d.datconnlimit >= 0 and d.datallowconn
order by 1, 2`

func (v *View) readLimits(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, limitsQuery)
	if err != nil {
		return err
	}
	v.Limits, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (l Limit, err error) {
		err = row.Scan(&l.Kind, &l.Name, &l.Limit, &l.Backends)
		l.Name = clean(l.Name)
		return l, err
	})
	return err
}

// clean removes what must not reach a terminal: roles and databases can have any name.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, s)
}
