package socket

import (
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"syscall"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// Conn is a socket that owns a permit. Its Close returns at once; the permit is given back when the
// server's backend has ended. After Close no call of the driver reaches the socket any more, so its
// deadlines cannot cut the drain short.
type Conn struct {
	net.Conn
	link *Link
	// bound for the socket's whole life, or nil; set before the socket is shared
	slot *allotment.Slot
}

var _ syscall.Conn = (*Conn)(nil)

// Wrap returns nc as a socket without a slot. A socket that is dropped without Close is closed when
// the garbage collector frees it.
func Wrap(nc net.Conn) *Conn {
	tune(nc)
	l := &Link{inner: nc, gone: make(chan struct{}), made: now()}
	s := &Conn{Conn: nc, link: l}
	runtime.AddCleanup(s, func(l *Link) { l.Close() }, l)
	return s
}

// Of returns the Link of nc, looking through TLS, or nil.
func Of(nc net.Conn) *Link {
	for {
		switch c := nc.(type) {
		case *Conn:
			return c.link
		case *tls.Conn:
			nc = c.NetConn()
		default:
			return nil
		}
	}
}

// Slot is the slot that was opened for this socket, or nil: Link().Slot(), but two loads cheaper,
// for the warm path.
func (s *Conn) Slot() *allotment.Slot { return s.slot }

// Link is the part that holds the permit.
func (s *Conn) Link() *Link { return s.link }

// Close starts the end of the connection; see [Link.Close].
func (s *Conn) Close() error {
	s.link.left.Store(true)
	return s.link.Close()
}

func (s *Conn) Read(b []byte) (int, error) {
	if s.link.closed.Load() {
		return 0, s.link.errClosed()
	}
	n, err := s.Conn.Read(b)
	if n > 0 {
		s.link.hear()
	}
	if err != nil {
		s.link.note(err)
		if s.link.closed.Load() {
			err = s.link.errClosed() // the drain interrupts a call by a timeout, which means this
		}
	}
	runtime.KeepAlive(s)
	return n, err
}

// Write drops data for a connection that we have ended under its user, as a network does before it
// learns of the peer's end. The read that follows returns the reason. If the write failed, pgx's
// stdlib would call the statement safe to retry, which it is not inside a transaction, and report a
// bad connection.
func (s *Conn) Write(b []byte) (int, error) {
	if s.link.closed.Load() {
		return s.link.drop(b)
	}
	n, err := s.Conn.Write(b)
	if err != nil {
		if s.link.closed.Load() { // we closed it ourselves
			return s.link.drop(b)
		}
		s.link.note(err)
	}
	runtime.KeepAlive(s)
	return n, err
}

func (s *Conn) SetDeadline(t time.Time) error {
	if s.link.closed.Load() {
		return net.ErrClosed
	}
	return s.Conn.SetDeadline(t)
}

func (s *Conn) SetReadDeadline(t time.Time) error {
	if s.link.closed.Load() {
		return net.ErrClosed
	}
	return s.Conn.SetReadDeadline(t)
}

func (s *Conn) SetWriteDeadline(t time.Time) error {
	if s.link.closed.Load() {
		return net.ErrClosed
	}
	return s.Conn.SetWriteDeadline(t)
}

// SyscallConn gives access to the file descriptor, if the wrapped socket has one. pgx 5.12 does not
// ask for it; the owner of a hijacked connection may.
func (s *Conn) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := s.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
