package throwaway

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// clusterView is one node's view of a Redis Cluster, from its reply to CLUSTER NODES.
type clusterView []clusterNode

type clusterNode struct {
	id, addr string
	flags    []string
	primary  string // the id, of a replica
	slots    []slotRange
}

type slotRange struct{ first, last int }

// parseClusterNodes reads lines of: id address flags primary ping pong epoch link [slots ...]. An
// address is host:port@bus, with a host name after it from Redis 7 on. Slots are "7", "0-5460", or
// in brackets while they move.
func parseClusterNodes(text string) (clusterView, error) {
	var view clusterView
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 8 {
			return nil, fmt.Errorf("throwaway: CLUSTER NODES has a malformed line %q", line)
		}
		addr, _, _ := strings.Cut(fields[1], "@")
		node := clusterNode{id: fields[0], addr: addr, flags: strings.Split(fields[2], ",")}
		if slices.Contains(node.flags, "myself") && strings.HasPrefix(addr, ":") {
			// a node does not know its own host until another node tells it
			node.addr = net.JoinHostPort("127.0.0.1", addr[1:])
		}
		if fields[3] != "-" {
			node.primary = fields[3]
		}
		for _, word := range fields[8:] {
			if strings.HasPrefix(word, "[") {
				continue
			}
			slots, err := parseSlotRange(word)
			if err != nil {
				return nil, err
			}
			node.slots = append(node.slots, slots)
		}
		view = append(view, node)
	}
	return view, nil
}

func parseSlotRange(word string) (slotRange, error) {
	first, last, found := strings.Cut(word, "-")
	if !found {
		last = first
	}
	a, err1 := strconv.Atoi(first)
	b, err2 := strconv.Atoi(last)
	if err1 != nil || err2 != nil {
		return slotRange{}, fmt.Errorf("throwaway: CLUSTER NODES has malformed slots %q", word)
	}
	return slotRange{a, b}, nil
}

func (v clusterView) at(addr string) *clusterNode {
	if i := slices.IndexFunc(v, func(n clusterNode) bool { return n.addr == addr }); i >= 0 {
		return &v[i]
	}
	return nil
}

func (v clusterView) owner(slot int) *clusterNode {
	for i, node := range v {
		for _, slots := range node.slots {
			if slots.first <= slot && slot <= slots.last {
				return &v[i]
			}
		}
	}
	return nil
}

// owners returns which node owns which slots, in a form that can be compared.
func (v clusterView) owners() string {
	var lines []string
	for _, node := range v {
		if len(node.slots) > 0 {
			lines = append(lines, fmt.Sprint(node.addr, node.slots))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
