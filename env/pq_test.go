package env

import (
	"database/sql"
	"database/sql/driver"
	"strings"
	"testing"

	"github.com/lib/pq"

	"github.com/passbuddy/passbuddy"
)

// UsePQ takes lib/pq's NewConnector, and what it makes dials by passbuddy's Dialer.
func TestUsePQ(t *testing.T) {
	defer newPQ.Store(nil)
	w := newWorld(t)
	var made *pq.Connector
	var dialed bool
	UsePQ(func(dsn string) (*spy, error) {
		c, err := pq.NewConnector(dsn)
		made = c
		return &spy{c, &dialed}, err
	})
	db := w.open("passbuddy-pq", w.dsn())
	ok(t, db.Ping())
	if made == nil || !dialed {
		t.Error("the connector has no Dialer of passbuddy's")
	}
	UsePQ(pq.NewConnector)
	db = w.open("passbuddy-pq", w.dsn("passbuddy_name=n"))
	ok(t, db.Ping())
	w.expect("n", 1)
	UsePQ(func(string) (*stranger, error) { return &stranger{}, nil })
	if _, err := sql.Open("passbuddy-pq", w.dsn()); err == nil ||
		!strings.Contains(err.Error(), "UsePQ") {
		t.Errorf("a connector of another kind: %v", err)
	}
	UsePQ[*pq.Connector](nil)
	if _, err := sql.Open("passbuddy-pq", w.dsn()); err == nil ||
		!strings.Contains(err.Error(), "is nil") {
		t.Errorf("no function: %v", err)
	}
}

// spy is a *pq.Connector that notes which dialer it is given.
type spy struct {
	*pq.Connector
	dialed *bool
}

func (s *spy) Dialer(d pq.Dialer) {
	_, *s.dialed = d.(*passbuddy.Dialer)
	s.Connector.Dialer(d)
}

// stranger takes dialers that passbuddy.Dialer is not.
type stranger struct{ driver.Connector }

func (*stranger) Dialer(interface{ Nothing() }) {}
