package socket

import (
	"net"
	"syscall"
	"time"
)

// userTimeout is how long the kernel tries to get data across before it ends the connection with an
// error. Without it that takes a quarter of an hour or, where nothing but keepalives are sent, the
// two minutes of Go's defaults (15 s, then 9 probes every 15 s).
//
// It also ends a connection whose server reads nothing for that long while we have data for it, as
// a COPY that waits for a lock may. So it is no shorter.
const userTimeout = time.Minute

const (
	tcpUserTimeout = 18 // TCP_USER_TIMEOUT, which package syscall lacks on some architectures
)

// tune sets userTimeout on a TCP socket, unless its user has set one, or has turned keepalives off:
// then dead connections are the user's concern. Keepalives are on by Go's own default. An error is
// no more than that it is not set.
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
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(userTimeout/time.Millisecond))
	})
}
