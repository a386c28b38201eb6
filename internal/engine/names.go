package engine

import (
	"fmt"
	"sync"
	"weak"
)

// names are those that the pools of a session have, each its own: operators tell pools apart by
// them. A pool that is closed, or forgotten by its owner, leaves its name to the next one.
type names struct {
	mu    sync.Mutex
	taken map[string]weak.Pointer[Pool] // guarded by mu
}

// Name gives the pool a name: want, or "want (2)" and so on if other pools of the session have it.
// It is called once.
func (p *Pool) Name(want string) string {
	n := &p.s.names
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.taken == nil {
		n.taken = make(map[string]weak.Pointer[Pool])
	}
	for name, owner := range n.taken {
		if owner.Value() == nil {
			delete(n.taken, name)
		}
	}
	name := want
	for i := 2; ; i++ {
		if _, taken := n.taken[name]; !taken {
			break
		}
		name = fmt.Sprintf("%s (%d)", want, i)
	}
	n.taken[name] = weak.Make(p)
	return name
}

// unname takes the name of p from it.
func (n *names) unname(p *Pool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, owner := range n.taken {
		if owner == weak.Make(p) {
			delete(n.taken, name)
		}
	}
}

// pools are those that have a name.
func (n *names) pools() (list []*Pool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, owner := range n.taken {
		if p := owner.Value(); p != nil {
			list = append(list, p)
		}
	}
	return list
}
