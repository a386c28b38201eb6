package throwaway

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

const testDeadline = 10 * time.Second

// echo is a server that answers with the bytes that it received, and sends them on a channel.
func echo(t *testing.T) (addr string, received <-chan string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	requests := make(chan string, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buf := make([]byte, 1024)
				for {
					n, err := conn.Read(buf)
					if err != nil {
						return
					}
					requests <- string(buf[:n])
					if _, err := conn.Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String(), requests
}

func startProxy(t *testing.T, target string) *Proxy {
	t.Helper()
	p, err := StartProxy(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error("Close:", err)
		}
	})
	return p
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testDeadline)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func say(t *testing.T, conn net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(conn, s); err != nil {
		t.Fatal("write:", err)
	}
}

func expect(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(conn, buf); err != nil {
		t.Fatal("read:", err)
	}
	if string(buf) != want {
		t.Fatalf("read %q, want %q", buf, want)
	}
}

func expectBroken(t *testing.T, conn net.Conn) {
	t.Helper()
	_, err := conn.Read(make([]byte, 1))
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: %v, want a broken connection", err)
	}
}

func expectSilence(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: %d bytes, %v; want silence", n, err)
	}
	conn.SetReadDeadline(time.Now().Add(testDeadline))
}

func TestProxyStallHoldsBytesBack(t *testing.T) {
	addr, _ := echo(t)
	p := startProxy(t, addr)
	conn := dial(t, p.Addr())
	say(t, conn, "one")
	expect(t, conn, "one")

	p.Stall()
	say(t, conn, "two")
	fresh := dial(t, p.Addr())
	say(t, fresh, "three")
	expectSilence(t, conn)
	expectSilence(t, fresh)

	p.Resume()
	expect(t, conn, "two")
	expect(t, fresh, "three")
}

func TestProxyCutBreaksUntilHeal(t *testing.T) {
	addr, _ := echo(t)
	p := startProxy(t, addr)
	conn := dial(t, p.Addr())
	say(t, conn, "one")
	expect(t, conn, "one")

	p.Cut()
	expectBroken(t, conn)
	// The proxy resets a new connection, now and then before the dial has returned.
	if late, err := net.Dial("tcp", p.Addr()); err == nil {
		t.Cleanup(func() { _ = late.Close() })
		expectBroken(t, late)
	}

	p.Heal()
	conn = dial(t, p.Addr())
	say(t, conn, "two")
	expect(t, conn, "two")
}

func TestProxyCutWhileStalled(t *testing.T) {
	addr, _ := echo(t)
	p := startProxy(t, addr)
	conn := dial(t, p.Addr())
	p.Stall()
	say(t, conn, "held back")
	p.Cut()
	expectBroken(t, conn)
}

func TestProxyDropRepliesLosesAnswersNotRequests(t *testing.T) {
	addr, received := echo(t)
	p := startProxy(t, addr)
	lossy, whole := dial(t, p.Addr()), dial(t, p.Addr())
	say(t, whole, "w")
	expect(t, whole, "w")
	<-received

	p.DropReplies(true)
	say(t, lossy, "lost")
	if got := <-received; got != "lost" {
		t.Fatalf("server received %q", got)
	}
	expectSilence(t, lossy)

	p.DropReplies(false)
	expectBroken(t, lossy)
	say(t, whole, "w") // It lost nothing, so it lives on.
	expect(t, whole, "w")
}

func TestProxyPassesOnAnOrderlyEnd(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	payload := bytes.Repeat([]byte("passbuddy"), 100_000)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conn.Write(payload)
		conn.Close()
	}()
	got, err := io.ReadAll(dial(t, startProxy(t, l.Addr().String()).Addr()))
	if err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("read %d bytes, %v; want %d and no error", len(got), err, len(payload))
	}
}

func TestProxyWithoutServer(t *testing.T) {
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	p := startProxy(t, net.JoinHostPort("127.0.0.1", itoa(port)))
	expectBroken(t, dial(t, p.Addr()))
}

func TestProxyCloseEndsConnections(t *testing.T) {
	addr, _ := echo(t)
	p := startProxy(t, addr)
	conn := dial(t, p.Addr())
	say(t, conn, "one")
	expect(t, conn, "one")
	p.Stall()
	say(t, conn, "held back")
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	expectBroken(t, conn)
	if err := p.Close(); err != nil {
		t.Error("second Close:", err)
	}
}
