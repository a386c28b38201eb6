package status

import (
	"net"
	"os"

	"github.com/passbuddy/passbuddy/internal/pgview"
)

// fleetOf returns all by which the fleet's backends can be told from others'. Hosts are known by
// name only, and are not looked up: the addresses of pods are in no DNS, and others wrote the
// names.
func fleetOf(processes []Process) pgview.Fleet {
	var f pgview.Fleet
	known := make(map[string]bool)
	own, _ := os.Hostname()
	for _, p := range processes {
		// Permits that no pool has told of yet have connections, too: `passbuddy run`, a pool that
		// opened some since the last heartbeat.
		f.Connections += max(p.InUse+p.Idle+p.Opening+p.Closing, p.Permits)
		for _, name := range []string{p.Program, p.Owner, p.Host} {
			if name == "" || known[name] {
				continue
			}
			known[name] = true
			f.Names = append(f.Names, name)
			if name == own {
				f.Addresses = append(f.Addresses, "local", "127.0.0.1", "::1")
			}
			if ip := net.ParseIP(name); ip != nil {
				f.Addresses = append(f.Addresses, ip.String())
			}
		}
	}
	return f
}
