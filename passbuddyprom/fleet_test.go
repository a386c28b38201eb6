package passbuddyprom_test

import (
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/passbuddyprom"
	"github.com/passbuddy/passbuddy/semaphore"
)

// `passbuddy run` declares a capacity that is none. It makes no mismatch, and no capacity.
func TestFleetWithoutADeclaration(t *testing.T) {
	rd, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{})
	must(t, rd, err)
	t.Cleanup(func() { _ = rd.Stop() })
	join := func(capacity int) *semaphore.Semaphore {
		sem, err := semaphore.Open(t.Context(), rd.URL(), semaphore.Config{Name: "orders",
			Capacity: capacity, TTL: time.Minute, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
		must(t, sem, err)
		t.Cleanup(func() { _ = sem.Close() })
		return sem
	}
	run := join(1_000_000)
	inspector, err := semaphore.NewInspector(run.Client(), "", "orders")
	must(t, inspector, err)
	registry := prometheus.NewRegistry()
	registry.MustRegister(passbuddyprom.NewFleet("orders", inspector, patient))
	exposes := func(capacity, declared float64) {
		t.Helper()
		got := gathered(t, registry)
		if c, n := got["passbuddy_fleet_capacity"], got["passbuddy_fleet_capacities_declared"]; c != capacity ||
			n != declared {
			t.Errorf("capacity %v, %v declared, want %v, %v", c, n, capacity, declared)
		}
	}
	exposes(0, 0)
	join(7)
	exposes(7, 1)
	join(8)
	exposes(7, 2)
}
