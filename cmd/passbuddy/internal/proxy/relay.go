package proxy

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	// closedNotice is how long a backend may outlive its client before the log says so.
	closedNotice = 15 * time.Second
	// maxDropped is how much of what a server sends to a client that has gone is read. After that
	// the connection is reset: the backend's next write fails, and ends it.
	maxDropped = 64 << 20
	// resetGrace is how long such a backend may take. It was sending all along.
	resetGrace = time.Second
	// clientTimeout is how long a client may take to close its end, when Postgres has closed.
	clientTimeout = 2 * time.Second
)

// relay is a client's connection and its backend's, and the permit that covers the backend.
//
//	opened --------> connected --------> leaving --------------------------> gone
//	  |  server's first  |   the client has gone    server's EOF, or reset      ^
//	  |  bytes           +------------------------------------------------------+
//	  +-- drop: nothing was sent to the server yet -----------------------------+
type relay struct {
	client, server *net.TCPConn
	slot           *allotment.Slot
	exit           func() // gives back the turn, while it is not the slot's
	log            *slog.Logger
	aborted        atomic.Bool
	notice         *time.Timer // set by leave, read when that has returned
}

// drop ends a relay that was not run.
func (r *relay) drop() {
	reset(r.server) // Postgres has read nothing, and has no session
	r.slot.Gone()
	r.exit()
}

// run sends what the client has sent already, and then passes bytes on until Postgres has closed
// its end. It reports whether Postgres was connected to at all: whether it has sent anything.
func (r *relay) run(sent []byte) (connected bool) {
	up := make(chan struct{})
	go func() {
		defer close(up)
		if _, err := r.server.Write(sent); err == nil {
			_, _ = io.Copy(r.server, r.client)
		}
		r.leave()
	}()
	connected = r.connect()
	if connected {
		if _, err := io.Copy(r.client, r.server); err != nil {
			r.drain()
		}
	}
	// Postgres has closed its end, or the network has lost it, which we cannot tell from that.
	r.slot.Gone()
	_ = r.client.CloseWrite()
	_ = r.client.SetReadDeadline(time.Now().Add(clientTimeout))
	<-up
	r.notice.Stop()
	_, _ = io.Copy(io.Discard, r.client)
	_ = r.server.Close()
	return connected
}

// connect passes on the server's first bytes. Until they come the connection is being opened, for
// the pool: that is what it learns the cost of a connect from, and how it paces them. In truth a
// connect also takes the exchange of the password, which the proxy does not see.
func (r *relay) connect() bool {
	b := make([]byte, 4<<10)
	n, err := r.server.Read(b)
	if n == 0 || err != nil {
		r.exit()
		return false
	}
	if !r.slot.CheckOut() { // the client has gone meanwhile, or the lease was lost
		r.exit()
	}
	_, _ = r.client.Write(b[:n]) // if this fails, the next write does, too
	return true
}

// leave begins the end: the client has gone, or the server takes nothing more.
func (r *relay) leave() {
	r.notice = time.AfterFunc(closedNotice, func() {
		r.log.Warn("the client has gone, and its backend has not ended: it is counted while it "+
			"lives; Postgres's client_connection_check_interval ends such backends",
			"client_addr:client_port of the backend", r.server.LocalAddr().String())
	})
	r.slot.Leave()
	_ = r.server.CloseWrite()
}

// drain reads what the server still sends, to its end. The client takes nothing any more.
func (r *relay) drain() {
	_ = r.client.Close()
	if _, err := io.CopyN(io.Discard, r.server, maxDropped); err == nil {
		reset(r.server)
		time.Sleep(resetGrace)
	}
}

// abort ends both connections from outside: the lease is lost, or the session is being closed. If
// the lease is lost, it is of no use to wait for Postgres's EOF.
func (r *relay) abort(why error) {
	if !r.aborted.CompareAndSwap(false, true) {
		return
	}
	if errors.Is(why, semaphore.ErrLost) {
		r.log.Warn("the lease of a connection is lost: it is cut",
			"client", r.client.RemoteAddr().String())
		reset(r.server)
	}
	_ = r.client.Close()
}

// reset closes a connection, and has the other end drop what it has not read.
func reset(nc *net.TCPConn) {
	_ = nc.SetLinger(0)
	_ = nc.Close()
}
