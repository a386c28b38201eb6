package socket

import (
	"net"
	"syscall"
	"time"
)

// userTimeout is how long the kernel tries to deliver data before it ends the connection with an
// error. Without it that takes a quarter of an hour. If only keepalives are sent, it takes the two
// minutes of Go's defaults (15 s, then 9 probes every 15 s).
//
// It also ends a connection whose server reads nothing for that long while we have data for it,
// such as a COPY that waits for a lock. So it must not be shorter.
const userTimeout = time.Minute

const (
	tcpUserTimeout = 18 // TCP_USER_TIMEOUT, which package syscall lacks on some architectures
)

// tune sets userTimeout on a TCP socket. It does not if the user has set one or has turned
// keepalives off, which Go turns on by default: then the user handles dead connections. tune
// ignores errors: the timeout is then not set.
func tune(nc net.Conn) {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		alive, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)
		if err != nil || alive == 0 {
			return
		}
		set, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout)
		if err != nil || set != 0 {
			return
		}
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout,
			int(userTimeout/time.Millisecond))
	})
}
