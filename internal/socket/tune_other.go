//go:build !linux

package socket

import "net"

// tune leaves the socket as it is: Go's keepalives find a dead connection within some two minutes.
func tune(net.Conn) {}
