//go:build sqlite

package examples

import (
	"path/filepath"
	"strings"
	"testing"
)

// SQLite takes half a minute to compile, so this test has a tag. SQLite refuses a second writer at
// once: that is the witness.
func TestSQLite(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.holds(t, "orders-file", 1, func() (writers int, err error) {
		file := filepath.Join(t.TempDir(), "orders.db")
		var all []*process
		for range processes {
			all = append(all, s.spawn(t, "sqlite", []string{"SQLITE_FILE=" + file}))
		}
		for _, p := range all {
			if err := p.wait(); err != nil {
				if !strings.Contains(p.out.String(), "database is locked") {
					return 0, err
				}
				writers = 2
			}
		}
		return max(1, writers), nil
	})
	s.nothingLeft(t, "orders-file")
}
