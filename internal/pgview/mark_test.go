package pgview

import "testing"

func TestMark(t *testing.T) {
	group := func(application, address string, n int) Group {
		return Group{Application: application, User: "u", Address: address, State: "idle", Backends: n}
	}
	for name, c := range map[string]struct {
		fleet  Fleet
		groups []Group
		ours   []bool
		n      int
	}{
		"by name": {Fleet{Names: []string{"api"}, Connections: 4},
			[]Group{group("api", "10.0.0.1", 4), group("psql", "10.0.0.2", 9)}, []bool{true, false}, 4},
		"a name is taken at its word": {Fleet{Names: []string{"api"}, Connections: 1},
			[]Group{group("api", "10.0.0.1", 40)}, []bool{true}, 40},
		"by no name, as many as there are": {Fleet{Names: []string{"api"}, Connections: 8},
			[]Group{group("", "10.0.0.1", 5), group("", "10.0.0.2", 3), group("", "10.0.0.3", 3),
				group("psql", "", 1)}, []bool{true, true, false, false}, 8},
		"an address of the fleet first": {Fleet{Addresses: []string{"10.0.0.3"}, Connections: 3},
			[]Group{group("", "10.0.0.1", 5), group("", "10.0.0.3", 3)}, []bool{false, true}, 3},
		"another program on its host": {Fleet{Addresses: []string{"local"}, Connections: 2},
			[]Group{group("rails", "local", 60)}, []bool{false}, 2},
		"a name of its own": {Fleet{Addresses: []string{"10.0.0.1"}, Connections: 5},
			[]Group{group("custom", "10.0.0.1", 5)}, []bool{true}, 5},
		"its own count is some seconds old": {Fleet{Addresses: []string{"local"}, Connections: 6},
			[]Group{group("rails", "local", 26), group("custom", "local", 4)}, []bool{false, true}, 4},
		"its own count is larger": {Fleet{Names: []string{"api"}, Connections: 9},
			[]Group{group("rails", "local", 26), group("api", "local", 4)}, []bool{false, true}, 9},
		"no fleet":    {Fleet{}, []Group{group("psql", "local", 3)}, []bool{false}, 0},
		"no backends": {Fleet{Connections: 3}, nil, nil, 0},
	} {
		v := View{Backends: c.groups}
		v.Mark(c.fleet)
		total := 0
		for i, g := range v.Backends {
			total += g.Backends
			if g.Ours != c.ours[i] {
				t.Errorf("%s: %+v is ours: %v", name, g, g.Ours)
			}
		}
		if v.Ours != c.n || v.Others != total-c.n || v.Guess == "" {
			t.Errorf("%s: ours %d, others %d of %d, %s", name, v.Ours, v.Others, total, v.Guess)
		}
	}
}

func TestRoom(t *testing.T) {
	v := View{MaxConnections: 100, Reserved: 13, Ours: 40, Others: 50}
	if v.Usable() != 87 || v.Total() != 90 || v.Free() != 0 {
		t.Errorf("%d usable, %d, %d free", v.Usable(), v.Total(), v.Free())
	}
}
