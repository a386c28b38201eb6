package throwaway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"sync"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// RedisOptions are the settings of a server. The zero value is the documented default.
type RedisOptions struct {
	// Password, if set, is required of every client.
	Password string
	// Apart runs the server in a terminal session of its own. Linux shares the processors between
	// sessions. So the server then competes with its clients as it would if it were not their
	// child.
	Apart bool
	// Persist lets the data survive Kill and Restart: a write is in the append-only file before it
	// is answered. Without it the data is lost whenever the server ends.
	Persist bool
	// ACL are the lines of the server's ACL file, such as "user app on >secret ~app:* &* +@all".
	// The user default keeps Password, unless a line says otherwise.
	ACL []string
	// TLS, if set, makes the server speak only TLS, with a certificate of this authority. Clients
	// need no certificate, unless Config says "tls-auth-clients yes". TLS needs a Redis that was
	// built with it.
	TLS *Authority
	// Clock lets StepClock move the server's clock. It needs Linux and a C compiler: see
	// [Redis.StepClock].
	Clock bool
	// Config are further lines of redis.conf. They override those made here: loopback only, no
	// persistence.
	Config []string
	// Args are further command line arguments, such as "--appendonly", "yes". They override Config.
	// They must leave the log at its level and on standard output.
	Args []string
}

// Redis is a running Redis server. Its methods may be called from several goroutines.
type Redis struct {
	program string
	folder  *folder
	opts    RedisOptions
	kind    redisKind
	clock   *steppedClock // nil unless RedisOptions.Clock

	mu      sync.Mutex // held through start and stop, so that they never overlap
	port    int
	server  *child // nil when the server is not running
	paused  bool
	stopped bool
	log     *output // of the server that runs, or ran last
}

// redisKind describes the modes in which the one program runs.
type redisKind struct {
	ready    string   // its log line when it is ready
	args     []string // after the configuration file
	freePort func() (int, error)
	started  func(context.Context, *Redis) error // if not nil, called after each start
}

var (
	// "Ready" from version 6 on, "ready" before.
	plainRedis   = redisKind{ready: "eady to accept connections", freePort: freePort}
	clusterRedis = redisKind{ready: plainRedis.ready, freePort: freeClusterPort}
	sentinelMode = redisKind{ready: "Sentinel ID is", args: []string{"--sentinel"},
		freePort: freePort, started: hurry}
)

// StartRedis starts a server. ctx bounds the start only (60 s at most); the server runs until Stop.
// The error wraps [ErrNotFound] when Redis is not installed.
func StartRedis(ctx context.Context, opts RedisOptions) (*Redis, error) {
	return launchRedis(ctx, opts, plainRedis)
}

func launchRedis(ctx context.Context, opts RedisOptions, kind redisKind) (_ *Redis, err error) {
	program, err := FindRedis()
	if err != nil {
		return nil, err
	}
	folder, err := newFolder("redis", nil)
	if err != nil {
		return nil, err
	}
	r := &Redis{program: program, folder: folder, opts: opts, kind: kind}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Stop())
		}
	}()
	if opts.Clock {
		if r.clock, err = newSteppedClock(ctx, folder.path); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	err = r.startOnFreePort(ctx)
	r.mu.Unlock()
	if err == nil && kind.started != nil {
		err = kind.started(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// startOnFreePort starts the server on a free port. The caller holds mu.
func (r *Redis) startOnFreePort(ctx context.Context) (err error) {
	for range portAttempts {
		if r.port, err = r.kind.freePort(); err != nil {
			return err
		}
		if err = r.configure(); err != nil {
			return err
		}
		if err = r.start(ctx); !errors.Is(err, errPortTaken) {
			return err
		}
	}
	return fmt.Errorf("throwaway: no free port after %d tries: %w", portAttempts, err)
}

// start runs the server on r.port. The caller holds mu.
func (r *Redis) start(ctx context.Context) error {
	args := append([]string{r.configPath()}, r.kind.args...)
	cmd := exec.Command(r.program, append(args, r.opts.Args...)...)
	cmd.Dir, cmd.Env = r.folder.path, append(serverEnv(), r.clock.env()...)
	// Not sigStop: a primary waits for replicas that lag, and only a SIGKILL is sure to reach a
	// paused server.
	(*account)(nil).prepare(cmd, sigKill)
	if r.opts.Apart {
		setApart(cmd)
	}
	server, err := spawn(cmd, r.kind.ready)
	if err != nil {
		return err
	}
	r.log = server.out
	if err := server.awaitReady(ctx); err != nil {
		return err
	}
	r.server = server
	if err := r.clock.attached(); err != nil {
		r.haltLocked(sigKill)
		return err
	}
	return nil
}

// Addr is the server's TCP address, host:port. It stays the same through Kill and Restart.
func (r *Redis) Addr() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return loopback(r.port)
}

// URL is the server's redis:// URL, with the password if there is one. With TLS it is a rediss://
// URL, and a client needs TLSConfig as well.
func (r *Redis) URL() string {
	u := url.URL{Scheme: "redis", Host: r.Addr(), Path: "/0"}
	if r.opts.TLS != nil {
		u.Scheme = "rediss"
	}
	if r.opts.Password != "" {
		u.User = url.UserPassword("", r.opts.Password)
	}
	return u.String()
}

// TLSConfig is the configuration for a client of the server, nil unless the server speaks TLS.
func (r *Redis) TLSConfig() *tls.Config {
	if r.opts.TLS == nil {
		return nil
	}
	return r.opts.TLS.ClientConfig()
}

// Options returns the options for a client of the server: its address, password and TLS.
func (r *Redis) Options() *redis.Options {
	return &redis.Options{Addr: r.Addr(), Password: r.opts.Password, TLSConfig: r.TLSConfig()}
}

// admin returns a client for a few questions, which the caller repeats. The caller closes it.
func (r *Redis) admin() *redis.Client { return redis.NewClient(r.adminOptions()) }

// patient returns an admin client for commands that nobody repeats. It waits for as long as a start
// may take: a machine can stand still for seconds.
func (r *Redis) patient() *redis.Client {
	opts := r.adminOptions()
	opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = startTimeout, startTimeout, startTimeout
	return redis.NewClient(opts)
}

// adminOptions returns options for a client that gives up with its caller.
func (r *Redis) adminOptions() *redis.Options {
	opts := r.Options()
	opts.Protocol = 2
	// a silent server is paused or cut
	opts.DialTimeout, opts.ReadTimeout = adminTimeout, adminTimeout
	opts.MaxRetries, opts.DialerRetries = -1, 1 // the caller retries
	opts.ContextTimeoutEnabled = true
	opts.DisableIdentity = true
	opts.MaintNotificationsConfig =
		&maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return opts
}

// do sends the server one command.
func (r *Redis) do(ctx context.Context, args ...any) (any, error) {
	client := r.patient()
	defer client.Close()
	reply, err := client.Do(ctx, args...).Result()
	if err != nil {
		return nil, fmt.Errorf("throwaway: %v at %s: %w", args[:min(2, len(args))], r.Addr(), err)
	}
	return reply, nil
}

// Log returns the last lines of the server's log, some 40.
func (r *Redis) Log() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.log == nil {
		return ""
	}
	return r.log.String()
}

// serving reports whether the server runs and is not paused.
func (r *Redis) serving() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.server != nil && !r.paused
}

// Kill ends the server with SIGKILL, as a crash would.
func (r *Redis) Kill() { r.halt(os.Kill) }

// Restart starts the server anew on the same port, after an orderly shutdown if it still runs.
// Without RedisOptions.Persist all data is lost. The configuration stays as the server itself or a
// sentinel left it.
func (r *Redis) Restart(ctx context.Context) error { return r.restart(ctx, sigStop, false) }

// RestartEmpty is Restart after a crash that lost the data.
func (r *Redis) RestartEmpty(ctx context.Context) error { return r.restart(ctx, sigKill, true) }

func (r *Redis) restart(ctx context.Context, sig os.Signal, empty bool) error {
	if err := r.startAgain(ctx, sig, empty); err != nil || r.kind.started == nil {
		return err
	}
	return r.kind.started(ctx, r)
}

func (r *Redis) startAgain(ctx context.Context, sig os.Signal, empty bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return errors.New("throwaway: restart of a stopped server")
	}
	r.haltLocked(sig)
	if empty {
		if err := r.removeData(); err != nil {
			return err
		}
	}
	return r.start(ctx)
}

// Stop ends the server and removes its folder. The second and later calls do nothing.
func (r *Redis) Stop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return nil
	}
	r.stopped = true
	r.haltLocked(os.Kill) // The data is about to be deleted, so the server need not write it out.
	return errors.Join(r.clock.close(), r.folder.remove())
}

func (r *Redis) halt(sig os.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.haltLocked(sig)
}

func (r *Redis) haltLocked(sig os.Signal) {
	if r.server != nil {
		r.server.end(sig)
		r.server, r.paused = nil, false
	}
}

func addrs(servers []*Redis) []string {
	addrs := make([]string, len(servers))
	for i, r := range servers {
		addrs[i] = r.Addr()
	}
	return addrs
}
