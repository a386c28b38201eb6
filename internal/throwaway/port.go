package throwaway

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
)

const (
	// portLowest keeps clear of the ports that well-known services of a developer's machine use.
	portLowest = 10240
	// busOffset is the distance from a node's port to its port of the Redis Cluster bus.
	busOffset = 10000
	portTries = 200
)

// freePort returns a TCP port of the loopback interface that was free a moment ago.
//
// It lies outside of the range from which the kernel takes the ports of outgoing connections.
// Otherwise any client could take the port of a server that is down for a while. A client that
// keeps dialling it could even be connected to itself.
func freePort() (int, error) { return freePortWith(0) }

// freeClusterPort is freePort with the port of the cluster bus free too.
func freeClusterPort() (int, error) { return freePortWith(busOffset) }

func freePortWith(offset int) (int, error) {
	low, high := portRange()
	if high-offset <= low {
		return 0, fmt.Errorf("throwaway: no two ports %d apart outside of the range of outgoing "+
			"connections", offset)
	}
	var err error
	for range portTries {
		port := low + rand.IntN(high-offset-low)
		if err = portFree(port); err == nil && offset != 0 {
			err = portFree(port + offset)
		}
		if err == nil {
			return port, nil
		}
	}
	return 0, fmt.Errorf("throwaway: no free port: %w", err)
}

func portFree(port int) error {
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return l.Close()
}

// portRange is the wider of the two ranges left and right of the kernel's own. Where that is
// unknown, it assumes Linux's default. That is safe for macOS and the BSDs, whose range begins at
// 49152.
func portRange() (low, high int) {
	first, last := 32768, 60999
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if fields := strings.Fields(string(text)); len(fields) == 2 {
			a, err1 := strconv.Atoi(fields[0])
			b, err2 := strconv.Atoi(fields[1])
			if err1 == nil && err2 == nil {
				first, last = a, b
			}
		}
	}
	below, above := first-portLowest, 65535-last
	switch {
	case below > busOffset || below > 0 && below >= above:
		return portLowest, first
	case above > busOffset:
		return last + 1, 65536
	}
	return portLowest, 65536 // The kernel takes all ports: a port at risk is better than none.
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
