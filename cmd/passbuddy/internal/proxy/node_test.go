package proxy

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// npmTimeout bounds the installation of node-postgres, over the network.
const npmTimeout = 2 * time.Minute

// installNode installs node-postgres in a folder of the test's own, and returns that folder and the
// path of node. The test is skipped if node, npm or the registry is missing.
func installNode(t *testing.T) (dir, node string) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: this installs node-postgres")
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not installed")
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		t.Skip("npm is not installed")
	}
	dir = t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), npmTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "install", "--no-audit", "--no-fund", "--ignore-scripts",
		"--loglevel=error", "pg@8")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("npm cannot install node-postgres: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "script.js"), []byte(nodeScript), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, node
}

// connectAdmin returns a connection that takes no permit.
func connectAdmin(t *testing.T, s *servers) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.postgres.AdminURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}
