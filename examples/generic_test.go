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
	run := func() int {
		server := startMySQL(t)
		var all []*process
		for range processes {
			all = append(all, s.spawn(t, "mysql", []string{"MYSQL_DSN=" + server.dsn()}))
		}
		for _, p := range all {
			p.wait(t)
		}
		server.mu.Lock()
		defer server.mu.Unlock()
		if server.queries != processes*60 {
			t.Errorf("%d statements, want %d", server.queries, processes*60)
		}
		return server.peak
	}
	if got := run(); got != capacity {
		t.Errorf("%d connections at once, want %d", got, capacity)
	}
	s.nothingLeft(t, semaphoreName)
	s.liftCap(t, semaphoreName)
	if got := run(); got <= capacity {
		t.Errorf("%d connections at once without a cap: the cap was not needed", got)
	}
}

// A mock is no server. But its one connection counts while it is open.
func TestSQLMock(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	p := s.spawn(t, "sqlmock", nil)
	p.wait(t)
	if !strings.Contains(p.out.String(), "permits held: 1\n") {
		t.Errorf("its connection did not count:\n%s", p.out.String())
	}
	s.nothingLeft(t, semaphoreName)
}
