package throwaway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"sync"
)

const redisReady = "eady to accept connections" // "Ready" from version 6 on, "ready" before

// RedisOptions says what a server should be like. The zero value is the documented default.
type RedisOptions struct {
	// Password, if set, is asked of every client.
	Password string
	// Args are further command line arguments, such as "--appendonly", "yes". They come last, so they override
	// those made here: no persistence, loopback only. They must leave the log at its level and on standard output.
	Args []string
}

// Redis is a running Redis server. Its methods may be called from several goroutines.
type Redis struct {
	program string
	folder  *folder
	opts    RedisOptions

	mu      sync.Mutex // held through start and stop, so that they never overlap
	port    int
	server  *child // nil when the server is not running
	stopped bool
}

// StartRedis starts a server. ctx bounds the start only (60 s at most); the server runs until Stop.
// The error wraps [ErrNotFound] when Redis is not installed.
func StartRedis(ctx context.Context, opts RedisOptions) (*Redis, error) {
	program, err := FindRedis()
	if err != nil {
		return nil, err
	}
	folder, err := newFolder("redis", nil)
	if err != nil {
		return nil, err
	}
	r := &Redis{program: program, folder: folder, opts: opts}
	r.mu.Lock()
	err = r.startOnFreePort(ctx)
	r.mu.Unlock()
	if err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	return r, nil
}

// startOnFreePort starts the server on a port that nobody uses. The caller holds mu.
func (r *Redis) startOnFreePort(ctx context.Context) (err error) {
	for range portAttempts {
		if r.port, err = freePort(); err != nil {
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
	args := []string{
		"--bind", "127.0.0.1", "--port", strconv.Itoa(r.port),
		"--save", "", "--appendonly", "no", "--dir", r.folder.path,
	}
	if r.opts.Password != "" {
		args = append(args, "--requirepass", r.opts.Password)
	}
	cmd := exec.Command(r.program, append(args, r.opts.Args...)...)
	cmd.Dir, cmd.Env = r.folder.path, serverEnv()
	(*account)(nil).prepare(cmd, sigStop)
	server, err := spawn(cmd, redisReady)
	if err != nil {
		return err
	}
	if err := server.awaitReady(ctx); err != nil {
		return err
	}
	r.server = server
	return nil
}

// Addr is the server's TCP address, host:port. It stays the same through Kill and Restart.
func (r *Redis) Addr() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port))
}

// URL is the server's redis:// URL, with the password if there is one.
func (r *Redis) URL() string {
	u := url.URL{Scheme: "redis", Host: r.Addr(), Path: "/0"}
	if r.opts.Password != "" {
		u.User = url.UserPassword("", r.opts.Password)
	}
	return u.String()
}

// Kill ends the server with SIGKILL, as a crash would.
func (r *Redis) Kill() { r.halt(os.Kill) }

// Restart starts the server anew on the same port, after an orderly shutdown if it still runs. Without persistence,
// which is the default, all it knew is lost.
func (r *Redis) Restart(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return errors.New("throwaway: restart of a stopped server")
	}
	r.haltLocked(sigStop)
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
	r.haltLocked(os.Kill) // whatever it could write is about to be deleted
	return r.folder.remove()
}

func (r *Redis) halt(sig os.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.haltLocked(sig)
}

func (r *Redis) haltLocked(sig os.Signal) {
	if r.server != nil {
		r.server.end(sig)
		r.server = nil
	}
}
