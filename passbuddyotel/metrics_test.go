package passbuddyotel_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/passbuddyotel"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

func must(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("a server is not installed (scripts/setup.sh): ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// collected maps "name", or "name/state" where there is one, to a value. Of a histogram it is the
// number of measurements.
func collected(t *testing.T, reader *sdk.ManualReader) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]int64)
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			add := func(set attribute.Set, v int64) {
				name := m.Name
				if state, ok := set.Value("db.client.connection.state"); ok {
					name += "/" + state.AsString()
				}
				if s, ok := set.Value("passbuddy.semaphore"); !ok || s.AsString() != "orders" {
					t.Errorf("%s is of no semaphore: %v", m.Name, set.ToSlice())
				}
				got[name] += v
			}
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					add(p.Attributes, p.Value)
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					add(p.Attributes, p.Value)
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					add(p.Attributes, int64(p.Count))
				}
			}
		}
	}
	return got
}

// A pool at work is seen by the names of the semantic conventions.
func TestRegister(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pg, err := throwaway.StartPostgres(ctx, throwaway.PostgresOptions{MaxConnections: 20})
	must(t, err)
	t.Cleanup(func() { _ = pg.Stop() })
	rd, err := throwaway.StartRedis(ctx, throwaway.RedisOptions{})
	must(t, err)
	t.Cleanup(func() { _ = rd.Stop() })

	reader := sdk.NewManualReader()
	opts := passbuddyotel.Options{MeterProvider: sdk.NewMeterProvider(sdk.WithReader(reader))}
	observer, err := passbuddyotel.NewObserver("orders", opts)
	must(t, err)
	sem, err := semaphore.Open(ctx, rd.URL(), semaphore.Config{Name: "orders", Capacity: 2,
		TTL:      time.Minute, // a machine that stalls must lose no lease
		Observer: observer, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	must(t, err)
	t.Cleanup(func() { _ = sem.Close() })
	stop, err := passbuddyotel.Register("orders", sem, opts)
	must(t, err)
	pool, err := passpool.New(ctx, pg.URL(), sem, passbuddy.Config{
		AcquireTimeout: 50 * time.Millisecond, PoolName: "db",
	})
	must(t, err)
	t.Cleanup(pool.Close)

	var held []*pgxpool.Conn
	for range 2 {
		for len(held) < 2 {
			conn, err := pool.Acquire(ctx) // a first connect can take longer than the time-out
			if err == nil {
				held = append(held, conn)
			} else if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	before := collected(t, reader)
	if _, err := pool.Acquire(ctx); !errors.Is(err, semaphore.ErrCapacity) {
		t.Fatalf("a third of two: %v", err)
	}
	got := collected(t, reader)
	for name, want := range map[string]int64{
		"db.client.connection.count/used": 2, "db.client.connection.count/idle": 0,
		"db.client.connection.max": 2, "db.client.connection.pending_requests": 0,
		"db.client.connection.timeouts":  before["db.client.connection.timeouts"] + 1,
		"db.client.connection.wait_time": before["db.client.connection.wait_time"] + 1,
		"passbuddy.capacity":             2, "passbuddy.permits": 2, "passbuddy.redis.up": 1,
		"passbuddy.grants.paused": 0, "passbuddy.leases.lost": 0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %d (there: %v), want %d", name, v, ok, want)
		}
	}
	if n := got["db.client.connection.create_time"]; n != got["passbuddy.connections.opened"] || n < 2 {
		t.Errorf("%d connects measured, %d counted", n, got["passbuddy.connections.opened"])
	}
	raw := held[0].Hijack()
	got = collected(t, reader)
	if h, long := got["passbuddy.connections.hijacked"], got["passbuddy.connections.long_use"]; h != 1 ||
		long != 0 {
		t.Errorf("one connection is hijacked, just now: %d hijacked, %d in long use", h, long)
	}
	must(t, raw.Close(ctx))
	held[1].Release()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if got := collected(t, reader); got["passbuddy.capacity"] != 0 {
		t.Error("still observed after stop")
	}
}

func TestRegisterOfNothing(t *testing.T) {
	if _, err := passbuddyotel.Register("x", nil, passbuddyotel.Options{}); err == nil {
		t.Error("a nil semaphore is taken")
	}
}
