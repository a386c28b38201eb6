package membership

import (
	"errors"
	"testing"

	"github.com/passbuddy/passbuddy/semaphore"
)

func session(owner string, capacity int) semaphore.Session {
	return semaphore.Session{Owner: owner, Capacity: capacity}
}

func TestToDeclare(t *testing.T) {
	const proxy = "host/" + proxyProgram + "/1"
	for _, c := range []struct {
		name     string
		operator int
		sessions []semaphore.Session
		want     int
	}{
		{"the smallest of the fleet's", 0,
			[]semaphore.Session{session("a", 40), session("b", 20), session("c", Most)}, 20},
		{"not an operator's for the time being", 5, []semaphore.Session{session("a", 20)}, 20},
		{"an operator's if nobody declares one", 30, []semaphore.Session{session("a", Most)}, 30},
		{"not what another proxy keeps alive", 0,
			[]semaphore.Session{session("a", 40), session(proxy, 20)}, 40},
		{"another proxy's if there is nothing else", 0,
			[]semaphore.Session{session(proxy, 20), session("a", Most)}, 20},
	} {
		n, _, err := ToDeclare(semaphore.Snapshot{OperatorCapacity: c.operator, Sessions: c.sessions})
		if n != c.want || err != nil {
			t.Errorf("%s: %d, %v, want %d", c.name, n, err, c.want)
		}
	}
	_, _, err := ToDeclare(semaphore.Snapshot{Sessions: []semaphore.Session{session("a", Most)}})
	if !errors.Is(err, ErrNoCapacity) {
		t.Error(err)
	}
	if !isProxy(ProxyOwner()) || isProxy(RunOwner("psql")) {
		t.Errorf("%s, %s", ProxyOwner(), RunOwner("psql"))
	}
}

func TestInForce(t *testing.T) {
	for _, c := range []struct{ capacity, operator, want int }{
		{20, 0, 20}, {20, 20, 20}, {Most, 0, 0}, {Most, Most, Most}, {0, 0, 0},
	} {
		s := semaphore.Snapshot{Capacity: c.capacity, OperatorCapacity: c.operator}
		if got := InForce(s); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
