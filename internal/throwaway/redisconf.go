package throwaway

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The data is in a folder of its own under the server's folder, so that it can be removed alone.
// Redis rewrites its configuration file, and a sentinel keeps its state there. So that file is made
// once, and Restart leaves it alone.
const (
	redisConf    = "redis.conf"
	redisDataDir = "data"
	aclFile      = "users.acl"
)

func (r *Redis) configPath() string { return filepath.Join(r.folder.path, redisConf) }
func (r *Redis) dataDir() string    { return filepath.Join(r.folder.path, redisDataDir) }

// configure writes the configuration file and the files that it names.
func (r *Redis) configure() error {
	files := map[string]string{redisConf: strings.Join(slices.Concat(r.baseConfig(), r.opts.Config),
		"\n") + "\n"}
	if lines := r.aclLines(); lines != nil {
		files[aclFile] = strings.Join(lines, "\n") + "\n"
	}
	if r.opts.TLS != nil {
		pems, err := r.opts.TLS.serverFiles()
		if err != nil {
			return err
		}
		for name, text := range pems {
			files[name] = string(text)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(r.folder.path, name), []byte(text),
			0o600); err != nil {
			return fmt.Errorf("throwaway: %w", err)
		}
	}
	if err := os.Mkdir(r.dataDir(), 0o700); err != nil && !os.IsExist(err) {
		return fmt.Errorf("throwaway: %w", err)
	}
	return nil
}

// removeData deletes all data that the server stored.
func (r *Redis) removeData() error {
	if err := os.RemoveAll(r.dataDir()); err != nil {
		return fmt.Errorf("throwaway: %w", err)
	}
	if err := os.Mkdir(r.dataDir(), 0o700); err != nil {
		return fmt.Errorf("throwaway: %w", err)
	}
	return nil
}

func (r *Redis) baseConfig() []string {
	lines := []string{
		"bind 127.0.0.1",
		"dir " + quoted(r.dataDir()),
	}
	lines = append(lines, r.portConfig()...)
	if r.opts.Password != "" {
		lines = append(lines, "requirepass "+quoted(r.opts.Password))
	}
	if r.kind.args != nil { // a sentinel stores nothing and replicates nothing
		return lines
	}
	appendOnly := "no"
	if r.opts.Persist {
		appendOnly = "yes"
	}
	lines = append(lines,
		`save ""`,
		"appendonly "+appendOnly,
		// A written file survives the death of its process, which is all that tests need.
		"appendfsync no",
		"repl-diskless-sync yes",
		"repl-diskless-sync-delay 0", // By default a primary waits 5 s for more replicas.
	)
	if r.opts.Password != "" {
		lines = append(lines, "masterauth "+quoted(r.opts.Password)) // in case it becomes a replica
	}
	if r.aclLines() != nil {
		lines = append(lines, "aclfile "+quoted(filepath.Join(r.folder.path, aclFile)))
	}
	return lines
}

func (r *Redis) portConfig() []string {
	port := strconv.Itoa(r.port)
	if r.opts.TLS == nil {
		return []string{"port " + port}
	}
	path := func(name string) string { return quoted(filepath.Join(r.folder.path, name)) }
	return []string{
		"port 0",
		"tls-port " + port,
		"tls-cert-file " + path(certFile),
		"tls-key-file " + path(keyFile),
		"tls-ca-cert-file " + path(caFile),
		"tls-auth-clients no",
		"tls-replication yes",
		"tls-cluster yes",
	}
}

// aclLines returns the lines of the ACL file, nil if there is none. With such a file Redis ignores
// requirepass.
func (r *Redis) aclLines() []string {
	if len(r.opts.ACL) == 0 {
		return nil
	}
	isDefault := func(line string) bool {
		return strings.HasPrefix(strings.TrimSpace(line), "user default ")
	}
	if r.opts.Password == "" || slices.ContainsFunc(r.opts.ACL, isDefault) {
		return r.opts.ACL
	}
	// The file has no quotes for the characters that a password may have.
	hash := sha256.Sum256([]byte(r.opts.Password))
	return append([]string{fmt.Sprintf("user default on #%x ~* &* +@all", hash)}, r.opts.ACL...)
}

// quoted returns s as one word of redis.conf, whose escapes are a subset of Go's.
func quoted(s string) string {
	var word strings.Builder
	word.WriteByte('"')
	for _, b := range []byte(s) {
		switch {
		case b == '"' || b == '\\':
			word.WriteByte('\\')
			word.WriteByte(b)
		case b < ' ' || b == 0x7f:
			fmt.Fprintf(&word, `\x%02x`, b)
		default:
			word.WriteByte(b)
		}
	}
	word.WriteByte('"')
	return word.String()
}
