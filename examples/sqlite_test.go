//go:build sqlite

package examples

import (
	"path/filepath"
	"testing"
)

// SQLite takes half a minute to compile, so this test has a tag. It refuses a second writer at once:
// that is the witness.
func TestSQLite(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	run := func() (all []*process) {
		file := filepath.Join(t.TempDir(), "orders.db")
		for range processes {
			all = append(all, s.spawn(t, "sqlite", []string{"SQLITE_FILE=" + file}))
		}
		return all
	}
	for _, p := range run() {
		p.wait(t)
	}
	const name = "orders-file"
	s.nothingLeft(t, name)
	s.liftCap(t, name)
	refused := false
	for _, p := range run() {
		<-p.exited
		refused = refused || p.err != nil
	}
	if !refused {
		t.Error("no writer was refused without a cap: the cap was not needed")
	}
}
