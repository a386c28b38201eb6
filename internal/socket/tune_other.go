//go:build !linux

package socket

import "net"

// tune leaves the socket as it is: Go's keepalives detect a dead connection within about two
// minutes.
func tune(net.Conn) {}
