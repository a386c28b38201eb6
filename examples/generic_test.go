package examples

import (
	"strings"
	"testing"
)

// There is no MySQL server to test with. The driver is the real one; the server, below, understands
// just what the driver says to it, and counts its connections.
func TestMySQL(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.holds(t, semaphoreName, capacity, func() (int, error) {
		server := startMySQL(t)
		var all []*process
		for range processes {
			all = append(all, s.spawn(t, "mysql", []string{"MYSQL_DSN=" + server.dsn()}))
		}
		for _, p := range all {
			if err := p.wait(); err != nil {
				return 0, err
			}
		}
		server.mu.Lock()
		defer server.mu.Unlock()
		if server.queries != processes*40 {
			t.Errorf("%d statements, want %d", server.queries, processes*40)
		}
		return server.peak, nil
	})
	s.nothingLeft(t, semaphoreName)
}

// A mock is no server. But its one connection counts while it is open.
func TestSQLMock(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	p := s.spawn(t, "sqlmock", nil)
	must(t, p.wait())
	if !strings.Contains(p.out.String(), "permits held: 1\n") {
		t.Errorf("its connection did not count:\n%s", p.out.String())
	}
	s.nothingLeft(t, semaphoreName)
}
