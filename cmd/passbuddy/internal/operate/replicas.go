package operate

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/passbuddy/passbuddy/internal/status"
)

// replicas compares the replicas that Redis has with those that the processes wait for.
func (r *report) replicas(info map[string]string, processes []status.Process) {
	if info["role"] != "master" {
		return // server has said so, or it is not known
	}
	there := countReplicas(info)
	var lacking, none []string // owners
	least, most := there, 0    // that a process waits for
	for _, p := range processes {
		least, most = min(least, p.WaitReplicas), max(most, p.WaitReplicas)
		switch {
		case p.WaitReplicas > there:
			lacking = append(lacking, p.Owner)
		case p.WaitReplicas == 0:
			none = append(none, p.Owner)
		}
	}
	has := "Redis has " + status.Count(there, "replica")
	if there == 0 {
		has = "Redis has no replica"
	}
	switch {
	case len(lacking) > 0:
		r.found(status.Critical, "few-replicas", fmt.Sprintf("%s, and %s for up to %d "+
			"(semaphore.Config.WaitReplicas): nothing is granted to them, and their leases end.", has,
			waits(lacking), most), "", fmt.Sprintf("Bring replicas back, or set WaitReplicas to %d "+
			"at most.", there))
	case there == 0: // and nobody waits for any
	case len(processes) == 0:
		r.found(status.Info, "replicas", has+". A failover can forget the last grants.", "",
			"Set semaphore.Config.WaitReplicas to wait for them.")
	case len(none) > 0:
		r.found(status.Info, "replicas", fmt.Sprintf("%s, and %s for none. A failover can forget what "+
			"was granted last.", has, waits(none)), "",
			"Set semaphore.Config.WaitReplicas there to wait for them.")
	case most == there:
		r.found(status.Info, "all-replicas", fmt.Sprintf("%s, and processes wait for all of them. While "+
			"one is down, nothing is granted and leases end.", has), "",
			"Add a replica, or lower semaphore.Config.WaitReplicas, to survive that.")
	default:
		r.well("%s, and every process waits for %d or more", has, least)
	}
}

// countReplicas counts the replicas that follow. One that still copies the data acknowledges
// nothing.
func countReplicas(info map[string]string) int {
	n, _ := strconv.Atoi(info["connected_slaves"])
	for field, value := range info {
		number, isReplica := strings.CutPrefix(field, "slave")
		_, err := strconv.Atoi(number)
		if isReplica && err == nil && !strings.Contains(value, "state=online") {
			n--
		}
	}
	return max(0, n)
}

// waits says whose processes wait, naming three at most.
func waits(owners []string) string {
	const most = 3
	if len(owners) == 1 {
		return owners[0] + " waits"
	}
	named := strings.Join(owners[:min(most, len(owners))], ", ")
	if more := len(owners) - most; more > 0 {
		named += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Sprintf("%d processes wait (%s)", len(owners), named)
}
