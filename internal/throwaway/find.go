package throwaway

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// serverDirs are the places where packages put PostgreSQL's server programs without adding them to
// PATH: Debian and Ubuntu, RPM distributions, Homebrew on both kinds of Mac.
var serverDirs = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/pgsql-*/bin",
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
	"/opt/homebrew/bin",
}

var redisPrograms = []string{
	"redis-server", "/opt/homebrew/bin/redis-server", "/usr/local/bin/redis-server",
	"valkey-server",
}

// FindPostgres returns the folder that holds both initdb and postgres. It searches PATH, then the
// folder that pg_config prints, then the well-known folders, newest version first. Both programs
// must come from one folder, because they must be of one version.
func FindPostgres(ctx context.Context) (string, error) {
	if path, err := exec.LookPath("postgres"); err == nil {
		// PATH often holds a symbolic link to the real folder, where initdb lives too.
		for _, p := range []string{path, resolve(path)} {
			if dir := filepath.Dir(p); hasServer(dir) {
				return dir, nil
			}
		}
	}
	if dir := pgConfigBindir(ctx); dir != "" && hasServer(dir) {
		return dir, nil
	}
	for _, pattern := range serverDirs {
		dirs, _ := filepath.Glob(pattern) // the only error is a malformed pattern
		slices.SortFunc(dirs, func(a, b string) int { return digits(b) - digits(a) })
		if i := slices.IndexFunc(dirs, hasServer); i >= 0 {
			return dirs[i], nil
		}
	}
	return "", notFound("postgres and initdb",
		"install the PostgreSQL server, or run scripts/setup.sh")
}

// RedisEnv names the environment variable that chooses the server: a path, or a name to look up in
// PATH. With it the tests run on another version of Redis, or on Valkey.
const RedisEnv = "PASSBUDDY_REDIS_SERVER"

// FindRedis returns the path of the server that RedisEnv names. Without RedisEnv it returns that of
// redis-server, or of valkey-server, which speaks the same protocol and takes the same arguments.
func FindRedis() (string, error) {
	if name := os.Getenv(RedisEnv); name != "" {
		path, err := exec.LookPath(name)
		if err != nil {
			// Not ErrNotFound: tests skip on that error, and would pass without the requested
			// server.
			return "", fmt.Errorf("throwaway: %s is %q: %w", RedisEnv, name, err)
		}
		return filepath.Abs(path)
	}
	for _, name := range redisPrograms {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", notFound("redis-server", "install Redis, or run scripts/setup.sh --need redis")
}

func pgConfigBindir(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output()
	if err != nil {
		// The program is not installed. This is one of several places to search, so it is no error.
		return ""
	}
	return strings.TrimSpace(string(out))
}

func hasServer(dir string) bool {
	for _, name := range []string{"postgres", "initdb"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

func resolve(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// digits reads the version number out of a folder's path, so that 16 sorts above 9.
func digits(path string) int {
	n, _ := strconv.Atoi(strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, path))
	return n
}
