package socket_test

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/socket"
)

// TestUserTimeout: the kernel detects a peer that acknowledges nothing, unless the dial function
// has set this itself.
func TestUserTimeout(t *testing.T) {
	const tcpUserTimeout = 18
	addr, accepted := server(t)
	set := func(d time.Duration) func(string, string, syscall.RawConn) error {
		return func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout,
					int(d.Milliseconds()))
			})
		}
	}
	for name, c := range map[string]struct {
		dialer net.Dialer
		want   time.Duration
	}{
		"default":        {want: time.Minute},
		"the user's own": {net.Dialer{Control: set(7 * time.Second)}, 7 * time.Second},
		"no keepalive":   {net.Dialer{KeepAlive: -1}, 0},
	} {
		nc := must(c.dialer.DialContext(t.Context(), "tcp", addr))(t)
		far := <-accepted
		s := socket.Wrap(nc)
		raw := must(s.SyscallConn())(t)
		var got int
		if err := raw.Control(func(fd uintptr) {
			got, _ = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout)
		}); err != nil {
			t.Fatal(err)
		}
		if got := time.Duration(got) * time.Millisecond; got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		far.Close()
		s.Close()
		<-s.Link().Gone()
	}
}
