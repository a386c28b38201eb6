package throwaway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const pgBouncerReady = "process up"

// PgBouncerOptions are the settings of a PgBouncer.
type PgBouncerOptions struct {
	// Postgres is the server behind it. Stop the PgBouncer before the Postgres.
	Postgres *Postgres
	// PoolMode is PgBouncer's pool_mode: "transaction", "session" or "statement". Default
	// "session", as PgBouncer's own.
	PoolMode string
	// PoolSize is how many server connections PgBouncer may hold, because there is one role and one
	// database. Default 20.
	PoolSize int
	// MaxClients is its max_client_conn. Default 1,000.
	MaxClients int
	// Settings are further lines of the [pgbouncer] section. They override those made here.
	Settings map[string]string
}

// PgBouncer is a running PgBouncer in front of a [Postgres]. Its methods may be called from several
// goroutines.
type PgBouncer struct {
	program  string
	account  *account
	folder   *folder
	postgres *Postgres
	opts     PgBouncerOptions
	port     int

	mu     sync.Mutex // held through stop
	server *child     // nil when stopped
}

// StartPgBouncer starts a PgBouncer. ctx bounds the start only (60 s at most); the PgBouncer runs
// until Stop. Its clients log in as the server's ordinary role with the same password. PgBouncer
// checks it with SCRAM, and logs in to the server with SCRAM too.
//
// If root calls it, PgBouncer runs as the server's account, because it refuses to run as root. The
// error wraps [ErrNotFound] when PgBouncer is not installed.
func StartPgBouncer(ctx context.Context, opts PgBouncerOptions) (_ *PgBouncer, err error) {
	program, err := FindPgBouncer()
	if err != nil {
		return nil, err
	}
	account, err := serverAccount()
	if err != nil {
		return nil, err
	}
	folder, err := newFolder("pgbouncer", account)
	if err != nil {
		return nil, err
	}
	b := &PgBouncer{program: program, account: account, folder: folder, postgres: opts.Postgres,
		opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Stop())
		}
	}()
	for range portAttempts {
		if b.port, err = freePort(); err != nil {
			return nil, err
		}
		if err = b.start(ctx); !errors.Is(err, errPortTaken) {
			return b, err
		}
	}
	return nil, fmt.Errorf("throwaway: no free port after %d tries: %w", portAttempts, err)
}

func (b *PgBouncer) start(ctx context.Context) error {
	// in clear, because SCRAM towards the server needs it
	users := fmt.Sprintf("%q %q\n", Role, b.postgres.password[Role])
	for name, text := range map[string]string{"pgbouncer.ini": b.config(), "users.txt": users} {
		if err := os.WriteFile(b.path(name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("throwaway: %w", err)
		}
	}
	if err := b.account.own(b.folder.path); err != nil {
		return fmt.Errorf("throwaway: %w", err)
	}
	cmd := exec.Command(b.program, b.path("pgbouncer.ini"))
	cmd.Dir, cmd.Env = b.folder.path, serverEnv()
	b.account.prepare(cmd, sigKill)
	server, err := spawn(cmd, pgBouncerReady)
	if err != nil {
		return err
	}
	if err := server.awaitReady(ctx); err != nil {
		return err
	}
	b.mu.Lock()
	b.server = server
	b.mu.Unlock()
	return nil
}

func (b *PgBouncer) config() string {
	settings := [][2]string{
		{"listen_addr", "127.0.0.1"},
		{"listen_port", strconv.Itoa(b.port)},
		{"unix_socket_dir", ""}, // none
		{"auth_type", "scram-sha-256"},
		{"auth_file", b.path("users.txt")},
		{"pool_mode", orDefault(b.opts.PoolMode, "session")},
		{"default_pool_size", strconv.Itoa(orDefault(b.opts.PoolSize, 20))},
		{"max_client_conn", strconv.Itoa(orDefault(b.opts.MaxClients, 1000))},
		{"log_connections", "0"},
		{"log_disconnections", "0"},
	}
	var text strings.Builder
	fmt.Fprintf(&text, "[databases]\n%s = host=127.0.0.1 port=%d\n\n[pgbouncer]\n", Role,
		b.postgres.Port())
	for _, s := range settings {
		if _, overridden := b.opts.Settings[s[0]]; !overridden {
			fmt.Fprintf(&text, "%s = %s\n", s[0], s[1])
		}
	}
	for name, value := range b.opts.Settings {
		fmt.Fprintf(&text, "%s = %s\n", name, value)
	}
	return text.String()
}

func orDefault[T comparable](value, byDefault T) T {
	var zero T
	if value == zero {
		return byDefault
	}
	return value
}

func (b *PgBouncer) path(name string) string { return filepath.Join(b.folder.path, name) }

// URL is the connection string of the ordinary role, through PgBouncer.
func (b *PgBouncer) URL() string {
	u, err := url.Parse(b.postgres.URL())
	if err != nil {
		panic("bug: " + err.Error())
	}
	u.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(b.port))
	return u.String()
}

// PID is the process id, 0 when it is stopped.
func (b *PgBouncer) PID() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.server.pid()
}

// Stop ends PgBouncer and removes its folder. The second and later calls do nothing.
func (b *PgBouncer) Stop() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.folder == nil {
		return nil
	}
	if b.server != nil {
		// The gentle signals wait for clients, and mean different things in different versions.
		b.server.end(sigKill)
		b.server = nil
	}
	err := b.folder.remove()
	b.folder = nil
	return err
}

// FindPgBouncer returns the path of pgbouncer.
func FindPgBouncer() (string, error) {
	for _, name := range pgBouncerPrograms {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", notFound("pgbouncer", "install PgBouncer, or run scripts/setup.sh --want pgbouncer")
}

// Debian installs it in a folder that is not in every user's PATH.
var pgBouncerPrograms = []string{
	"pgbouncer", "/usr/sbin/pgbouncer", "/opt/homebrew/bin/pgbouncer", "/usr/local/bin/pgbouncer",
	"/opt/homebrew/opt/pgbouncer/bin/pgbouncer",
}

// PgBouncerVersion returns the version of the installed pgbouncer, such as "1.18.0".
func PgBouncerVersion(ctx context.Context) (string, error) {
	program, err := FindPgBouncer()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("throwaway: %s --version: %w", program, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	_, version, found := strings.Cut(line, "PgBouncer ")
	if !found {
		return "", fmt.Errorf("throwaway: %s --version says %q", program, line)
	}
	return strings.TrimSpace(version), nil
}
