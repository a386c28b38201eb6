package throwaway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	superuser = "postgres"
	// Role is the ordinary login role that every server has, and the name of the database it owns.
	Role = "passbuddy"

	postgresReady = "database system is ready to accept connections"
)

// PostgresOptions are the settings of a server. The zero value is the documented default.
type PostgresOptions struct {
	// MaxConnections is the server's max_connections, by default 100. The server keeps
	// superuser_reserved_connections of them, 3 unless Settings says otherwise, for the superuser.
	MaxConnections int
	// Settings are further server settings, as in postgresql.conf. They override those made here.
	Settings map[string]string
	// TLS, if set, lets clients encrypt: the server has a certificate of this authority. Clients
	// need none, and may connect without TLS, as URL does.
	TLS *Authority
	// Apart runs the server in a terminal session of its own. Linux shares the processors between
	// sessions. So the server then competes with its clients as it would if it were not their
	// child.
	Apart bool
}

// Postgres is a running PostgreSQL server. Its methods may be called from several goroutines.
type Postgres struct {
	bin      string
	account  *account
	folder   *folder
	settings map[string]string
	apart    bool
	password map[string]string // by role

	mu      sync.Mutex // held through start and stop, so that they never overlap
	port    int
	server  *child // nil when the server is not running
	stopped bool
}

// StartPostgres creates a database cluster and starts a server on it. ctx bounds the start only (60
// s at most); the server runs until Stop. Passwords are random, and checked with SCRAM.
//
// If root calls it, the server runs as the account postgres, or else nobody, because PostgreSQL
// refuses to run as root. The error wraps [ErrNotFound] when PostgreSQL is not installed.
func StartPostgres(ctx context.Context, opts PostgresOptions) (_ *Postgres, err error) {
	bin, err := FindPostgres(ctx)
	if err != nil {
		return nil, err
	}
	account, err := serverAccount()
	if err != nil {
		return nil, err
	}
	folder, err := newFolder("postgres", account)
	if err != nil {
		return nil, err
	}
	p := &Postgres{
		bin: bin, account: account, folder: folder,
		settings: serverSettings(folder.path, opts), apart: opts.Apart,
		password: map[string]string{superuser: rand.Text(), Role: rand.Text()},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Stop())
		}
	}()
	if err := makeCluster(ctx, bin, p.dataDir(), account); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(p.dataDir(), "pg_hba.conf"), []byte(hba),
		0o600); err != nil {
		return nil, fmt.Errorf("throwaway: %w", err)
	}
	if opts.TLS != nil {
		if err := p.writeCertificate(opts.TLS); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	err = p.startOnFreePort(ctx)
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return p, p.createRoles(ctx)
}

// hba accepts any client of the socket, which lies in a folder of mode 0700, and asks for a
// password over TCP.
const hba = `local all all trust
host all all 127.0.0.1/32 scram-sha-256
`

func serverSettings(socketDir string, opts PostgresOptions) map[string]string {
	if opts.MaxConnections == 0 {
		opts.MaxConnections = 100
	}
	settings := map[string]string{
		"max_connections":         strconv.Itoa(opts.MaxConnections),
		"listen_addresses":        "127.0.0.1",
		"unix_socket_directories": socketDir,
		"password_encryption":     "scram-sha-256",
		"shared_buffers":          "32MB",
		"fsync":                   "off",
		"synchronous_commit":      "off",
		"full_page_writes":        "off",
		"wal_level":               "minimal", // The server has no replica.
		"max_wal_senders":         "0",
		// the ready line and graver messages, not each statement's error
		"log_min_messages": "log",
		"log_checkpoints":  "off",
		"lc_messages":      "C",
	}
	if opts.TLS != nil {
		settings["ssl"] = "on"
	}
	maps.Copy(settings, opts.Settings)
	return settings
}

// writeCertificate puts the server's certificate where the server looks for it. Its key may be
// readable to the server's account alone.
func (p *Postgres) writeCertificate(a *Authority) error {
	files, err := a.serverFiles()
	if err != nil {
		return err
	}
	for _, name := range []string{certFile, keyFile} {
		path := filepath.Join(p.dataDir(), name)
		if err := os.WriteFile(path, files[name], 0o600); err != nil {
			return fmt.Errorf("throwaway: %w", err)
		}
		if err := p.account.own(path); err != nil {
			return fmt.Errorf("throwaway: %w", err)
		}
	}
	return nil
}

// startOnFreePort starts the server on a free port. The caller holds mu.
func (p *Postgres) startOnFreePort(ctx context.Context) (err error) {
	for range portAttempts {
		if p.port, err = freePort(); err != nil {
			return err
		}
		if err = p.start(ctx); !errors.Is(err, errPortTaken) {
			return err
		}
	}
	return fmt.Errorf("throwaway: no free port after %d tries: %w", portAttempts, err)
}

// start runs the server on p.port. The caller holds mu.
func (p *Postgres) start(ctx context.Context) error {
	args := []string{"-D", p.dataDir(), "-p", strconv.Itoa(p.port)}
	for _, name := range slices.Sorted(maps.Keys(p.settings)) {
		args = append(args, "-c", name+"="+p.settings[name])
	}
	cmd := exec.Command(filepath.Join(p.bin, "postgres"), args...)
	cmd.Dir, cmd.Env = p.folder.path, serverEnv()
	p.account.prepare(cmd, sigNow)
	if p.apart {
		setApart(cmd)
	}
	server, err := spawn(cmd, postgresReady)
	if err != nil {
		return err
	}
	if err := server.awaitReady(ctx); err != nil {
		return err
	}
	p.server = server
	return nil
}

// createRoles sets the superuser's password and creates the ordinary role and its database.
func (p *Postgres) createRoles(ctx context.Context) error {
	conn, err := pgx.Connect(ctx,
		fmt.Sprintf("host=%s port=%d user=%s database=postgres sslmode=disable",
			p.folder.path, p.port, superuser))
	if err != nil {
		return fmt.Errorf("throwaway: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, statement := range []string{
		fmt.Sprintf("ALTER ROLE %s PASSWORD '%s'", superuser, p.password[superuser]),
		fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", Role, p.password[Role]),
		fmt.Sprintf("CREATE DATABASE %s OWNER %[1]s", Role),
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("throwaway: %w", err)
		}
	}
	return nil
}

// URL is the connection string of the ordinary role, to the database that it owns.
func (p *Postgres) URL() string { return p.url(Role) }

// AdminURL is the connection string of the superuser, to the same database.
func (p *Postgres) AdminURL() string { return p.url(superuser) }

func (p *Postgres) url(role string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(role, p.password[role]),
		Host:     p.Addr(),
		Path:     "/" + Role,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Port is the TCP port on 127.0.0.1. It stays the same through Kill and Restart.
func (p *Postgres) Port() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.port
}

// Addr is the TCP address, for a [Proxy].
func (p *Postgres) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Port())) }

// Kill ends the server with SIGKILL, as a crash would. Its backends notice and end by themselves;
// Kill returns when they have. Restart starts the server again, after recovery.
func (p *Postgres) Kill() { p.halt(os.Kill) }

// Restart starts the server anew on the same port. If the server still runs, a fast shutdown ends
// every session first.
func (p *Postgres) Restart(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return errors.New("throwaway: restart of a stopped server")
	}
	p.haltLocked(sigFast)
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(50 * time.Millisecond) {
		err := p.start(ctx)
		if !errors.Is(err, errOldBackends) || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
	}
}

// errOldBackends: after Kill a backend can be on its way out for a moment, on a busy machine, and
// the new server refuses to start beside it.
var errOldBackends = errors.New("throwaway: backends of the server that was killed are not gone")

// Stop ends the server and removes its folder. The second and later calls do nothing.
func (p *Postgres) Stop() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil
	}
	p.stopped = true
	p.haltLocked(sigNow) // The data is about to be deleted, so the server need not write it out.
	removeSegment(p.dataDir())
	return p.folder.remove()
}

func (p *Postgres) halt(sig os.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.haltLocked(sig)
}

func (p *Postgres) haltLocked(sig os.Signal) {
	if p.server != nil {
		p.server.end(sig)
		p.server = nil
	}
}

func (p *Postgres) dataDir() string { return filepath.Join(p.folder.path, "data") }
