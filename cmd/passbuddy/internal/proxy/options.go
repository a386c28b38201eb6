package proxy

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/membership"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
)

const (
	defaultListen      = "127.0.0.1:6432"
	defaultPort        = "5432" // of Postgres
	defaultWait        = 30 * time.Second
	defaultMaxClients  = 5000             // or what the limit on open files allows
	defaultStopTimeout = 25 * time.Second // Kubernetes sends SIGKILL after 30 s

	minWait        = 10 * time.Millisecond
	maxWait        = 24 * time.Hour
	maxMaxClients  = 500_000
	maxStopTimeout = 24 * time.Hour
)

// Options says what Run is to do.
type Options struct {
	Target target.Target
	Listen string // host:port
	To     string // host:port of Postgres
	// Wait is how long a client waits for a permit.
	Wait time.Duration
	// Capacity is declared by the proxy's session; 0: that of the fleet. See package
	// membership.
	Capacity int
	// Min, Max and Weight are those of semaphore.Config.
	Min, Max, Weight int
	// MaxClients are connected at a time, those that wait included; 0: defaultMaxClients.
	MaxClients  int
	StopTimeout time.Duration // for connections to end, when the proxy is stopped
	JSON        bool          // log lines are JSON
	Verbose     bool          // log each connection
}

// resolve fills in defaults, and refuses what semaphore.Config does not refuse itself.
func (o *Options) resolve() error {
	if o.To == "" {
		return errors.New("to which Postgres? Give --to host:port")
	}
	if _, _, err := net.SplitHostPort(o.To); err != nil {
		o.To = net.JoinHostPort(o.To, defaultPort)
	}
	for _, address := range []struct{ flag, value string }{{"--to", o.To}, {"--listen", o.Listen}} {
		if _, port, err := net.SplitHostPort(address.value); err != nil || port == "" {
			return fmt.Errorf("%s is %q: it must be host:port", address.flag, address.value)
		}
	}
	switch {
	case o.Wait < minWait || o.Wait > maxWait:
		return fmt.Errorf("--wait is %v: it must be from %v to %v", o.Wait, minWait, maxWait)
	case o.Capacity < 0 || o.Capacity > membership.Most:
		return fmt.Errorf("--capacity is %d: it must be from 1 to %d", o.Capacity, membership.Most)
	case o.MaxClients < 0 || o.MaxClients > maxMaxClients:
		return fmt.Errorf("--max-clients is %d: it must be from 1 to %d", o.MaxClients,
			maxMaxClients)
	case o.StopTimeout < 0 || o.StopTimeout > maxStopTimeout:
		return fmt.Errorf("--stop-timeout is %v: it must be from 0 to %v", o.StopTimeout,
			maxStopTimeout)
	}
	return nil
}
