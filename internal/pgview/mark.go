package pgview

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Fleet holds all by which the fleet's backends can be told from others'.
type Fleet struct {
	// Names are the names that its connections may have: programs, owners, hosts.
	Names []string
	// Addresses are those that its hosts are known by.
	Addresses []string
	// Connections is how many connections it says are open.
	Connections int
}

// slack is by how many backends a guess may exceed what the fleet says of itself: its figures are
// some seconds old.
const slack = 2

// client are the backends of one application, user, database and address, in all states.
type client struct {
	application, user, database, address string
}

func clientOf(g Group) client { return client{g.Application, g.User, g.Database, g.Address} }

// Mark guesses which groups are the fleet's. An application name of the fleet's is taken at its
// word. Of other clients it takes those from an address of the fleet, and then those that have no
// application name, as pgx gives none. It takes no more than the fleet has connections.
//
// The guess can be wrong either way: names can be given to anything, and addresses are shared.
func (v *View) Mark(f Fleet) {
	counts := make(map[client]int)
	total := 0
	for _, g := range v.Backends {
		counts[clientOf(g)] += g.Backends
		total += g.Backends
	}
	clients := make([]client, 0, len(counts))
	for c := range counts {
		clients = append(clients, c)
	}
	rank := func(c client) int { return f.rank(c) }
	slices.SortFunc(clients, func(a, b client) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(counts[b], counts[a]),
			strings.Compare(fmt.Sprint(a), fmt.Sprint(b)))
	})
	ours := make(map[client]bool)
	sum, named := 0, 0
	for _, c := range clients {
		n := counts[c]
		switch r := rank(c); {
		case r == byName:
			named += n
		case r == unknown, sum+n > f.Connections+slack:
			continue
		}
		ours[c] = true
		sum += n
	}
	for i := range v.Backends {
		v.Backends[i].Ours = ours[clientOf(v.Backends[i])]
	}
	switch {
	case f.Connections > sum:
		// Backends that nothing gives away: the fleet's own count is better than none.
		v.Guess = "by the fleet's own count of its connections"
		sum = min(f.Connections, total)
	case sum > 0 && sum == named:
		v.Guess = "by application_name"
	default:
		v.Guess = "by application_name and client address"
	}
	v.Ours, v.Others = sum, total-sum
}

// The reasons to take a client for one of the fleet, the best first.
const (
	byName = iota
	byAddressNoName
	byNoName
	byAddress
	unknown
)

func (f Fleet) rank(c client) int {
	known := c.address != "" && slices.Contains(f.Addresses, c.address)
	switch {
	case c.application != "" && slices.ContainsFunc(f.Names, func(name string) bool {
		return name != "" && truncated(name) == c.application
	}):
		return byName
	case c.application == "" && known:
		return byAddressNoName
	case c.application == "":
		return byNoName
	case known:
		return byAddress
	}
	return unknown
}

// truncated is name as Postgres keeps an application_name: NAMEDATALEN less one bytes.
func truncated(name string) string {
	const most = 63
	if len(name) > most {
		return name[:most]
	}
	return name
}
