package passbuddytest

import (
	"context"
	"io"
	"net"
	"testing"
)

// URL returns a redis:// URL of the fleet's Redis, for code that takes one: semaphore.Open, an
// environment variable, a flag. It opens a port on the loopback interface. While the fleet is Down
// a connection to it is accepted and ended at once. In a synctest bubble use Client instead: URL
// ends the test there, because a bubble's clock stands still while a goroutine waits for a socket.
func (f *Fleet) URL(t testing.TB) string {
	t.Helper()
	f.here(t, "URL")
	if f.bubbled {
		t.Fatal("passbuddytest: URL: sockets do not work in a synctest bubble: use Client")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.listener == nil {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("passbuddytest: URL: %v", err)
		}
		f.listener = &listener{Listener: l, link: f.network.newLink(false)}
		f.network.wg.Go(f.listener.serve)
	}
	return "redis://" + f.listener.Addr().String()
}

// A listener leads from a port to a link.
type listener struct {
	net.Listener
	link *link
}

func (l *listener) serve() {
	for {
		c, err := l.Accept()
		if err != nil {
			return // it was closed
		}
		to, err := l.link.dial(context.Background(), "", "")
		if err != nil {
			_ = c.Close()
			continue
		}
		// serve counts in wg itself, so close cannot have stopped waiting.
		l.link.n.wg.Go(func() { forward(c, to) })
		l.link.n.wg.Go(func() { forward(to, c) })
	}
}

// forward copies until one side ends, and ends the other.
func forward(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_ = to.Close()
	_ = from.Close()
}
