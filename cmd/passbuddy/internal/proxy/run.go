package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/membership"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	// filesPerClient are its connection and its backend's, and the two pipes through which the
	// kernel splices, each with two ends.
	filesPerClient = 6
	otherFiles     = 64 // Redis, the listener, ...
	// cutTimeout is how long the ends of connections may take that were cut.
	cutTimeout = 3 * time.Second
)

// Run runs the proxy until ctx ends, and then until its connections have ended, for StopTimeout at
// most. It returns the exit code of this process; an error is to be shown. It logs on stderr.
func Run(ctx context.Context, o Options, _ io.Reader, _, stderr io.Writer) (int, error) {
	if err := o.resolve(); err != nil {
		return exit.Usage, err
	}
	log := newLog(stderr, o)
	o.limitClients(log)
	listener, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return exit.Failed, err
	}
	defer listener.Close()
	client, err := o.Target.Client()
	if err != nil {
		return exit.Usage, err
	}
	defer client.Close()
	sem, err := join(ctx, client, o, log)
	if err != nil {
		return codeOf(err), err
	}
	s, err := newServer(ctx, o, log, sem, listener)
	if err != nil {
		return exit.Failed, errors.Join(err, sem.Close())
	}
	log.Info("listening", "address", listener.Addr().String(), "to", o.To,
		"semaphore", o.Target.String(), "capacity", sem.Stats().Capacity)
	return s.run()
}

// limitClients keeps MaxClients within what the limit on open files allows. A proxy without a file
// to spare could reach neither Postgres nor Redis, and would lose its leases.
func (o *Options) limitClients(log *slog.Logger) {
	most := maxMaxClients
	if files := maxFiles(); files > 0 {
		most = max(1, (files-otherFiles)/filesPerClient)
	}
	switch {
	case o.MaxClients == 0:
		o.MaxClients = min(defaultMaxClients, most)
	case o.MaxClients > most:
		log.Warn("--max-clients is lowered: a client takes up to 6 open files, see ulimit -n",
			"from", o.MaxClients, "to", most)
		o.MaxClients = most
	}
}

// join makes the proxy a session of the fleet.
func join(ctx context.Context, client redis.UniversalClient, o Options, log *slog.Logger) (
	*semaphore.Semaphore, error,
) {
	capacity := o.Capacity
	if capacity == 0 {
		now, err := membership.Snapshot(ctx, client, o.Target.Prefix, o.Target.Name)
		if err != nil {
			return nil, err
		}
		var source string
		if capacity, source, err = membership.ToDeclare(now); err != nil {
			return nil, err
		}
		log.Info("no --capacity is given: the fleet's is declared. If the fleet's changes, "+
			"restart this proxy", "capacity", capacity, "as declared by", source)
	}
	return semaphore.New(ctx, client, semaphore.Config{
		Prefix: o.Target.Prefix, Name: o.Target.Name, Capacity: capacity,
		Min: o.Min, Max: o.Max, Weight: o.Weight,
		Owner: membership.ProxyOwner(), Logger: log,
	})
}

func codeOf(err error) int {
	switch {
	case errors.Is(err, membership.ErrNoCapacity):
		return exit.Usage
	case errors.Is(err, semaphore.ErrUnavailable):
		return exit.Unavailable
	}
	return exit.Failed
}

// newServer returns a server that is yet to be run. It stops when ctx ends.
func newServer(ctx context.Context, o Options, log *slog.Logger, sem *semaphore.Semaphore,
	listener net.Listener,
) (*server, error) {
	ad, err := newAdmission(sem, o.To, o.Wait, log)
	if err != nil {
		return nil, err
	}
	return &server{
		o: o, log: log, sem: sem, ad: ad, listener: listener, stopping: ctx,
		firstPacket: firstPacketTimeout,
	}, nil
}

// run serves until it is to stop, and then ends everything: the listener, the clients that wait,
// the connections as they end by themselves, those that do not, and the session.
func (s *server) run() (int, error) {
	accepting := make(chan error, 1)
	go func() { accepting <- s.serve() }()
	<-s.stopping.Done()
	s.log.Info("stopping", "clients", s.clients.Load(), "timeout", s.o.StopTimeout.String())
	err := s.listener.Close()
	err = errors.Join(err, <-accepting)
	s.ad.close()
	left := int64(0)
	if !within(&s.handlers, s.o.StopTimeout) {
		left = s.clients.Load()
	}
	s.ad.leave()
	// It asks the pool to end its connections. The permits of those that do not end in 3 s are
	// released all the same.
	err = errors.Join(err, s.sem.Close())
	if !within(&s.handlers, cutTimeout) {
		s.ad.cut()
		within(&s.handlers, cutTimeout)
	}
	switch {
	case err != nil:
		return exit.Failed, err
	case left > 0:
		return exit.Failed, fmt.Errorf("%d connections were cut after %v", left, s.o.StopTimeout)
	}
	return exit.OK, nil
}

// within reports whether the group is done within that time.
func within(group *sync.WaitGroup, limit time.Duration) bool {
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
