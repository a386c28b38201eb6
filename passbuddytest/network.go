package passbuddytest

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// address is shown in errors. It is an IP literal: a name would be looked up.
const address = "127.0.0.1:6379"

// A network leads to Redis, over pipes in memory. It can be down, and it can hold replies back.
type network struct {
	redis *miniredis.Miniredis
	wg    sync.WaitGroup // the goroutines of connections

	mu sync.Mutex

	// Guarded by mu. Nothing that can block is done with it held.
	conns   map[*conn]struct{}
	closed  bool
	down    bool
	delay   time.Duration
	changed chan struct{} // closed when delay or a link changes, and replaced
}

func newNetwork(m *miniredis.Miniredis) *network {
	return &network{redis: m, conns: make(map[*conn]struct{}), changed: make(chan struct{})}
}

// A link is one process's way to Redis.
type link struct {
	n      *network
	exempt bool // no fault affects it; guarded by n.mu
}

func (n *network) newLink(exempt bool) *link { return &link{n: n, exempt: exempt} }

// client returns a client over the link. Its options are those that sessions and the code under
// test start from.
func (l *link) client() *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: address, Dialer: l.dial, Protocol: 2, DisableIdentity: true, DialerRetries: 1,
		MaintNotificationsConfig: &maintnotifications.Config{
			Mode: maintnotifications.ModeDisabled,
		},
	})
}

// setExempt has no fault affect the link any more.
func (l *link) setExempt() {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	l.exempt = true
	l.n.notify()
}

// notify wakes what waits for n.delay. n.mu is held.
func (n *network) notify() {
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *network) setDelay(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = d
	n.notify()
}

// setDown ends the connections and refuses new ones, or allows them again.
func (n *network) setDown(down bool) {
	n.mu.Lock()
	n.down = down
	var cut []*conn
	for c := range n.conns {
		if down && !c.link.exempt {
			cut = append(cut, c)
		}
	}
	n.mu.Unlock()
	for _, c := range cut {
		c.cut()
	}
}

func (n *network) isDown() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.down
}

// close ends all connections and their goroutines.
func (n *network) close() {
	n.mu.Lock()
	n.closed = true
	var all []*conn
	for c := range n.conns {
		all = append(all, c)
	}
	n.mu.Unlock()
	for _, c := range all {
		c.cut()
	}
	n.wg.Wait()
}

// refused returns the error of a dial where nobody listens.
func refused() error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{
		IP: net.IPv4(127, 0, 0, 1), Port: 6379,
	}, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
}

// refuses reports whether a dial over l fails. n.mu is held.
func (l *link) refuses() bool { return l.n.closed || l.n.down && !l.exempt }

// dial is a redis.Options.Dialer.
func (l *link) dial(context.Context, string, string) (net.Conn, error) {
	n := l.n
	n.mu.Lock()
	refuses := l.refuses()
	n.mu.Unlock()
	if refuses {
		return nil, refused()
	}
	server, err := n.redis.Dial() // takes miniredis's lock
	if err != nil {
		return nil, err
	}
	c := &conn{link: l, server: server, woken: make(chan struct{}, 1), done: make(chan struct{})}
	c.Conn, c.replies = net.Pipe()
	n.mu.Lock()
	defer n.mu.Unlock()
	if l.refuses() { // since we looked: setDown and close have not seen c
		_ = server.Close()
		return nil, refused()
	}
	n.conns[c] = struct{}{}
	n.wg.Go(c.receive) // close has not begun to wait: n.closed is false
	n.wg.Go(c.deliver)
	return c, nil
}

// awaitDelay waits until a reply that came at that time is due. It returns false if done is closed
// before.
func (l *link) awaitDelay(at time.Time, done <-chan struct{}) bool {
	for {
		l.n.mu.Lock()
		wait, changed := time.Until(at.Add(l.n.delay)), l.n.changed
		if l.exempt {
			wait = 0
		}
		l.n.mu.Unlock()
		if wait <= 0 {
			return true
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-done:
			timer.Stop()
			return false
		}
		timer.Stop()
	}
}

// A conn is a connection to Redis, as the client has it.
//
//	client -- Write ---------------------------------> server
//	client <- Read -- pipe <- deliver <- queue <- receive -- server
//
// receive never waits for the client, however long replies are held back. Otherwise miniredis would
// wait, and with it all other clients: it executes one command at a time, and pushes while it does.
type conn struct {
	net.Conn          // the client's end of the pipe
	replies  net.Conn // deliver's end
	server   net.Conn
	link     *link
	once     sync.Once
	done     chan struct{} // closed by cut

	mu    sync.Mutex
	queue []piece
	ended bool          // the server has closed the connection
	woken chan struct{} // of size 1: queue or ended has changed
}

// A piece is some bytes of the server, and when they came.
type piece struct {
	b  []byte
	at time.Time
}

func (c *conn) receive() {
	for {
		b := make([]byte, 4096)
		n, err := c.server.Read(b)
		c.mu.Lock()
		if n > 0 {
			c.queue = append(c.queue, piece{b[:n], time.Now()})
		}
		c.ended = err != nil
		c.mu.Unlock()
		select {
		case c.woken <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// deliver passes the pieces on, each when it is due. They stay in order: a piece waits for those
// before it.
func (c *conn) deliver() {
	defer c.cut()
	for {
		c.mu.Lock()
		queue, ended := c.queue, c.ended
		c.queue = nil
		c.mu.Unlock()
		for _, p := range queue {
			if !c.link.awaitDelay(p.at, c.done) {
				return
			}
			if _, err := c.replies.Write(p.b); err != nil {
				return
			}
		}
		if len(queue) == 0 && ended {
			return
		}
		select {
		case <-c.woken:
		case <-c.done:
			return
		}
	}
}

// cut ends the connection: the client reads the end of the stream, and replies that are held back
// are lost.
func (c *conn) cut() {
	c.once.Do(func() {
		close(c.done)
		_ = c.server.Close()
		_ = c.replies.Close()
		c.link.n.mu.Lock()
		defer c.link.n.mu.Unlock()
		delete(c.link.n.conns, c)
	})
}

func (c *conn) Close() error {
	c.cut()
	return c.Conn.Close()
}

// Write and the deadlines tell a client that was cut off what TCP tells it.

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.server.Write(b)
	if err != nil && c.isCut() {
		err = &net.OpError{Op: "write", Net: "tcp",
			Err: os.NewSyscallError("write", syscall.EPIPE)}
	}
	return n, err
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) SetReadDeadline(t time.Time) error {
	if err := c.Conn.SetReadDeadline(t); !c.isCut() {
		return err
	}
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	if err := c.server.SetWriteDeadline(t); !c.isCut() {
		return err
	}
	return nil
}

func (c *conn) isCut() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}
