// Package passbuddyotel gives PassBuddy's figures to OpenTelemetry. It needs the metric API alone;
// the application brings the SDK.
//
//	observer, err := passbuddyotel.NewObserver("orders", passbuddyotel.Options{})
//	sem, err := semaphore.New(ctx, client, semaphore.Config{
//		Name: "orders", Capacity: 40, Observer: observer,
//	})
//	...
//	stop, err := passbuddyotel.Register("orders", sem, passbuddyotel.Options{})
//	defer stop()
//
// For each connection pool it emits the instruments of the semantic conventions for databases, as
// of version 1.44.0 (https://opentelemetry.io/docs/specs/semconv/database/database-metrics/):
//
//	db.client.connection.count, .pending_requests, .timeouts, .max, .wait_time, .create_time
//
// Only checkouts that had to wait count in .wait_time. The capacity of the whole fleet is .max,
// because no pool has a share of its own. The instruments .use_time, .idle.max and .idle.min are
// left out: no time is taken of a warm checkout, and idle connections have no bounds here.
//
// Names that the conventions do not have begin with "passbuddy.".
package passbuddyotel

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/passbuddy/passbuddy/semaphore"
)

const scope = "github.com/passbuddy/passbuddy"

// The attributes of the instruments.
const (
	semaphoreKey = attribute.Key("passbuddy.semaphore")
	poolKey      = attribute.Key("db.client.connection.pool.name")
	stateKey     = attribute.Key("db.client.connection.state")
	kindKey      = attribute.Key("passbuddy.redis.kind")
	errorKey     = attribute.Key("error.type")
)

// Options are those of [Register] and [NewObserver]. The zero value has defaults.
type Options struct {
	MeterProvider metric.MeterProvider // default otel.GetMeterProvider()
}

func (o Options) meter() metric.Meter {
	if o.MeterProvider == nil {
		o.MeterProvider = otel.GetMeterProvider()
	}
	return o.MeterProvider.Meter(scope)
}

// instruments are read when they are collected.
type instruments struct {
	count, pending, most                         metric.Int64ObservableUpDownCounter
	timeouts                                     metric.Int64ObservableCounter
	capacity, held, waiting, paused, up          metric.Int64ObservableGauge
	hijacked, longUse                            metric.Int64ObservableUpDownCounter
	lost, fenced, recalls, opened, sent, outages metric.Int64ObservableCounter
}

// Register has the figures of a session collected, with the attribute passbuddy.semaphore=name. To
// ask for them costs no round trip. stop ends that; call it before the session is closed for good.
func Register(
	name string, sem *semaphore.Semaphore, opts Options,
) (stop func() error, err error) {
	if sem == nil {
		return nil, errors.New("passbuddyotel: Register: sem is nil")
	}
	m := opts.meter()
	var errs []error
	gauge := func(name, unit, text string) metric.Int64ObservableGauge {
		i, err := m.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(text))
		errs = append(errs, err)
		return i
	}
	counter := func(name, unit, text string) metric.Int64ObservableCounter {
		i, err := m.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(text))
		errs = append(errs, err)
		return i
	}
	level := func(name, unit, text string) metric.Int64ObservableUpDownCounter {
		i, err := m.Int64ObservableUpDownCounter(name, metric.WithUnit(unit),
			metric.WithDescription(text))
		errs = append(errs, err)
		return i
	}
	i := &instruments{
		count: level("db.client.connection.count", "{connection}",
			"Connections by state."),
		pending: level("db.client.connection.pending_requests", "{request}",
			"Callers that wait for a connection."),
		most: level("db.client.connection.max", "{connection}",
			"The capacity in force, of the whole fleet."),
		timeouts: counter("db.client.connection.timeouts", "{timeout}",
			"Checkouts that waited for as long as they may."),
		hijacked: level("passbuddy.connections.hijacked", "{connection}",
			"Connections in use that were taken out of the pool for good."),
		longUse: level("passbuddy.connections.long_use", "{connection}",
			"Connections that have been in use for a minute or longer."),
		capacity: gauge("passbuddy.capacity", "{permit}",
			"The capacity in force, as this process last heard."),
		held: gauge("passbuddy.permits", "{permit}", "Permits that this process holds."),
		waiting: gauge("passbuddy.waiting", "{request}",
			"Requests of this process that wait in Redis's queue."),
		paused: gauge("passbuddy.grants.paused", "1", "1 while nothing is granted."),
		up:     gauge("passbuddy.redis.up", "1", "1 if Redis answered the last call."),
		lost:   counter("passbuddy.leases.lost", "{lease}", "Leases that could no longer be proven."),
		fenced: counter("passbuddy.connections.fenced", "{connection}",
			"Backends of expired leases that this process ended."),
		recalls: counter("passbuddy.recalls", "{permit}", "Permits that the fleet asked back."),
		opened:  counter("passbuddy.connections.opened", "{connection}", "Connections opened."),
		sent:    counter("passbuddy.redis.round_trips", "{call}", "Round trips to Redis."),
		outages: counter("passbuddy.redis.outages", "{outage}", "How often Redis stopped answering."),
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("passbuddyotel: %w", err)
	}
	r, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		i.observe(o, name, sem.Stats())
		return nil
	}, i.count, i.pending, i.most, i.timeouts, i.capacity, i.held, i.waiting, i.paused, i.up,
		i.lost, i.fenced, i.recalls, i.opened, i.sent, i.outages, i.hijacked, i.longUse)
	if err != nil {
		return nil, fmt.Errorf("passbuddyotel: %w", err)
	}
	return r.Unregister, nil
}

func (i *instruments) observe(o metric.Observer, name string, s semaphore.Stats) {
	of := func(more ...attribute.KeyValue) metric.MeasurementOption {
		return metric.WithAttributes(append(more, semaphoreKey.String(name))...)
	}
	o.ObserveInt64(i.capacity, int64(s.Capacity), of())
	o.ObserveInt64(i.held, int64(s.Held), of())
	o.ObserveInt64(i.waiting, int64(s.Waiting), of())
	o.ObserveInt64(i.paused, one(s.Paused), of())
	o.ObserveInt64(i.up, one(s.Up), of())
	o.ObserveInt64(i.lost, s.Lost, of())
	o.ObserveInt64(i.fenced, s.Fenced, of())
	o.ObserveInt64(i.sent, s.Heartbeats, of(kindKey.String("heartbeat")))
	o.ObserveInt64(i.sent, s.Requests, of(kindKey.String("batch")))
	o.ObserveInt64(i.outages, s.Outages, of())
	for _, p := range s.Pools {
		pool := poolKey.String(p.Name)
		o.ObserveInt64(i.count, int64(p.InUse), of(pool, stateKey.String("used")))
		o.ObserveInt64(i.count, int64(p.Idle), of(pool, stateKey.String("idle")))
		o.ObserveInt64(i.count, int64(p.Opening), of(pool, stateKey.String("opening")))
		o.ObserveInt64(i.count, int64(p.Closing), of(pool, stateKey.String("closing")))
		o.ObserveInt64(i.pending, int64(p.Waiting), of(pool))
		o.ObserveInt64(i.most, int64(s.Capacity), of(pool))
		o.ObserveInt64(i.timeouts, p.Timeouts, of(pool))
		o.ObserveInt64(i.recalls, p.Recalled, of(pool))
		o.ObserveInt64(i.opened, p.Opened, of(pool))
		o.ObserveInt64(i.hijacked, int64(p.Hijacked), of(pool))
		o.ObserveInt64(i.longUse, int64(p.LongUse), of(pool))
	}
}

func one(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

// NewObserver returns semaphore.Config.Observer for the histograms of a session,
// db.client.connection.wait_time and .create_time, with the attribute passbuddy.semaphore=name.
func NewObserver(name string, opts Options) (semaphore.Observer, error) {
	m := opts.meter()
	// The buckets that the conventions advise.
	buckets := metric.WithExplicitBucketBoundaries(.001, .005, .01, .05, .1, .5, 1, 5, 10, 30)
	waits, err := m.Float64Histogram("db.client.connection.wait_time", metric.WithUnit("s"),
		metric.WithDescription("How long checkouts waited that could not be served at once."), buckets)
	opens, also := m.Float64Histogram("db.client.connection.create_time", metric.WithUnit("s"),
		metric.WithDescription("How long it took to open a connection."), buckets)
	if err := errors.Join(err, also); err != nil {
		return nil, fmt.Errorf("passbuddyotel: %w", err)
	}
	return &observer{semaphoreKey.String(name), waits, opens}, nil
}

type observer struct {
	name         attribute.KeyValue
	waits, opens metric.Float64Histogram
}

func (o *observer) Observe(what semaphore.Observation) {
	attributes := []attribute.KeyValue{o.name, poolKey.String(what.Pool)}
	if what.Err != nil {
		attributes = append(attributes, errorKey.String(kindOf(what.Err)))
	}
	set := metric.WithAttributes(attributes...)
	switch what.Kind {
	case semaphore.ObservedWait:
		o.waits.Record(context.Background(), what.Duration.Seconds(), set)
	case semaphore.ObservedOpen:
		o.opens.Record(context.Background(), what.Duration.Seconds(), set)
	}
}

// kindOf is the class of an error: few values, as an attribute has to have.
func kindOf(err error) string {
	switch {
	case errors.Is(err, semaphore.ErrUnavailable):
		return "unavailable"
	case errors.Is(err, semaphore.ErrCapacity):
		return "capacity"
	case errors.Is(err, semaphore.ErrLost):
		return "lost"
	case errors.Is(err, semaphore.ErrClosed):
		return "closed"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "other"
}
