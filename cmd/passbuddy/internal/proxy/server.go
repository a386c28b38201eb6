package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	minAcceptPause = 5 * time.Millisecond // after an error, as when files run out; it doubles
	maxAcceptPause = time.Second
	// extraClients are told that there are too many; more are closed without a word.
	extraClients  = 64
	cancelTimeout = 10 * time.Second
)

// server accepts clients.
type server struct {
	o        Options
	log      *slog.Logger
	sem      *semaphore.Semaphore
	ad       *admission
	listener net.Listener
	refused  refusals

	stopping    context.Context // ends when the proxy is to stop
	firstPacket time.Duration   // firstPacketTimeout; shorter in a test
	clients     atomic.Int64
	handlers    sync.WaitGroup
}

// serve accepts clients until the listener is closed.
func (s *server) serve() error {
	pause := minAcceptPause
	for {
		client, err := s.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			s.log.Error("accept a client", "error", err)
			select {
			case <-time.After(pause):
			case <-s.stopping.Done():
			}
			pause = min(2*pause, maxAcceptPause)
			continue
		}
		pause = minAcceptPause
		n := s.clients.Add(1)
		if n > int64(s.o.MaxClients)+extraClients {
			s.clients.Add(-1)
			_ = client.Close()
			continue
		}
		s.handlers.Go(func() {
			defer s.clients.Add(-1)
			defer client.Close()
			s.handle(client.(*net.TCPConn), n > int64(s.o.MaxClients))
		})
	}
}

// handle serves one client to its end.
func (s *server) handle(client *net.TCPConn, tooMany bool) {
	if tooMany {
		s.refuse(client, refusal{tooManyConnections, fmt.Sprintf("%d clients are here already",
			s.o.MaxClients), "Raise --max-clients."}, nil)
		return
	}
	stopped := context.AfterFunc(s.stopping, func() { _ = client.SetReadDeadline(longAgo) })
	f, err := readFirst(client, s.firstPacket)
	stopped()
	switch {
	case s.stopping.Err() != nil:
		s.refuse(client, s.explain(allotment.ErrPoolClosed), nil)
	case errors.Is(err, errNotPostgres):
		s.refuse(client, refusal{code: protocolViolation, message: err.Error()}, nil)
	case err != nil: // it sent nothing, as a health check does, or was too slow
		s.log.Debug("no first packet", "client", client.RemoteAddr().String(), "error", err)
	case f.kind == cancelRequest:
		s.cancel(f.bytes)
	default:
		s.connect(client, f)
	}
}

// connect serves a client that wants a session.
func (s *server) connect(client *net.TCPConn, f first) {
	began := time.Now()
	ctx, h := watch(context.Background(), client)
	r, err := s.ad.open(ctx, client)
	early, gone := h.stop()
	log := s.log.With("client", client.RemoteAddr().String())
	switch {
	case gone:
		if r != nil {
			r.drop()
		}
		log.Debug("a client has gone before it was served", "after", time.Since(began).String())
		return
	case err != nil && f.kind == directTLS:
		s.note(s.explain(err), err) // it expects TLS, and no other word
		return
	case err != nil:
		s.refuse(client, s.explain(err), err)
		return
	}
	log.Debug("connected", "as", r.server.LocalAddr().String(), "after", time.Since(began).String())
	if !r.run(append(f.bytes, early...)) {
		log.Debug("Postgres closed the connection without an answer")
	}
	log.Debug("closed", "after", time.Since(began).String())
}

// cancel passes a cancel request on. Postgres closes the connection when it has sent the signal,
// and the client waits for that.
func (s *server) cancel(packet []byte) {
	ctx, stop := context.WithTimeout(context.Background(), cancelTimeout)
	defer stop()
	to, err := s.ad.dial(ctx)
	if err != nil {
		s.note(s.explain(dialError{err}), err)
		return
	}
	defer to.Close()
	_ = to.SetDeadline(time.Now().Add(cancelTimeout))
	if _, err := to.Write(packet); err == nil {
		_, _ = io.Copy(io.Discard, to)
	}
}

// explain is what a client is told of why it is not served.
func (s *server) explain(err error) refusal {
	var dial dialError
	switch {
	case errors.As(err, &dial):
		return refusal{unableToConnect, fmt.Sprintf("cannot connect to Postgres at %s", s.o.To), ""}
	case errors.Is(err, allotment.ErrPoolClosed), errors.Is(err, semaphore.ErrClosed):
		return refusal{cannotConnectNow, "it is being stopped", ""}
	case errors.Is(err, semaphore.ErrUnavailable), errors.Is(err, semaphore.ErrLost):
		return refusal{cannotConnectNow, "Redis cannot be asked for a permit", ""}
	}
	return refusal{
		tooManyConnections,
		fmt.Sprintf("no permit of %q became free within %v; its capacity is %d", &s.o.Target,
			s.o.Wait, s.sem.Stats().Capacity),
		"See who holds the permits with: passbuddy status",
	}
}

// refuse tells a client why it is not served; cause is for the log, or nil.
func (s *server) refuse(client *net.TCPConn, r refusal, cause error) {
	s.note(r, cause)
	r.send(client)
}

// note logs a refusal, unless it logged the same code a moment ago.
func (s *server) note(r refusal, cause error) {
	if n := s.refused.count(r.code, time.Now()); n > 0 {
		s.log.Warn("clients refused: "+r.message, "code", r.code, "clients", n, "error", cause)
	}
}

var longAgo = time.Unix(1, 0)
