package passbuddyprom_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/passbuddyprom"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

func must[T any](t *testing.T, v T, err error) T {
	t.Helper()
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("a server is not installed (scripts/setup.sh): ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// gathered maps each metric to the sum of its samples, and "name{label=value}" for each label.
func gathered(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			v := value(m)
			all[f.GetName()] += v
			for _, l := range m.GetLabel() {
				all[fmt.Sprintf("%s{%s=%s}", f.GetName(), l.GetName(), l.GetValue())] += v
			}
			if m.GetHistogram() != nil {
				all[f.GetName()+"_bucket"] = 1
			}
		}
	}
	return all
}

// patient lets a machine that stalls answer a scrape.
var patient = passbuddyprom.FleetOptions{Timeout: time.Minute}

func value(m *dto.Metric) float64 {
	switch {
	case m.GetGauge() != nil:
		return m.GetGauge().GetValue()
	case m.GetCounter() != nil:
		return m.GetCounter().GetValue()
	}
	return float64(m.GetHistogram().GetSampleCount())
}

// A fleet at work emits every metric that the dashboard and the alerts ask for, and its figures are
// those of Postgres.
func TestFleet(t *testing.T) {
	const capacity, processes, callers = 4, 3, 6
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	pg, err := throwaway.StartPostgres(ctx, throwaway.PostgresOptions{MaxConnections: 20})
	must(t, pg, err)
	t.Cleanup(func() { _ = pg.Stop() })
	rd, err := throwaway.StartRedis(ctx, throwaway.RedisOptions{})
	must(t, rd, err)
	t.Cleanup(func() { _ = rd.Stop() })

	registry := prometheus.NewRegistry()
	var pools []*pgxpool.Pool
	var first *semaphore.Semaphore
	for i := range processes {
		metrics := passbuddyprom.New(passbuddyprom.Options{})
		sem, err := semaphore.Open(ctx, rd.URL(), semaphore.Config{
			Name: "orders", Capacity: capacity, Observer: metrics.Observer("orders"),
			TTL:    time.Minute, // a machine that stalls must lose no lease
			Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), MaxAttempts: -1,
		})
		must(t, sem, err)
		t.Cleanup(func() { _ = sem.Close() })
		metrics.Add("orders", sem)
		instance := prometheus.Labels{"instance": fmt.Sprint(i)}
		prometheus.WrapRegistererWith(instance, registry).MustRegister(metrics)
		pool, err := passpool.New(ctx, pg.URL()+"&application_name=fleet", sem,
			passbuddy.Config{PoolName: "db"})
		must(t, pool, err)
		t.Cleanup(pool.Close)
		pools = append(pools, pool)
		if first == nil {
			first = sem
		}
	}
	inspector, err := semaphore.NewInspector(first.Client(), "", "orders")
	must(t, inspector, err)
	registry.MustRegister(passbuddyprom.NewFleet("orders", inspector, patient))

	// Each caller holds its connection until all have been counted.
	var work sync.WaitGroup
	release := make(chan struct{})
	for _, pool := range pools {
		for range callers {
			work.Go(func() {
				for range 20 {
					if _, err := pool.Exec(ctx, "select pg_sleep(0.002)"); err != nil {
						t.Error(err)
						return
					}
				}
				conn, err := pool.Acquire(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				<-release
				conn.Release()
			})
		}
	}
	watch, err := pgx.Connect(ctx, pg.URL())
	must(t, watch, err)
	defer watch.Close(ctx)
	var got map[string]float64
	for {
		got = gathered(t, registry)
		if got["passbuddy_pool_connections{state=in_use}"] == capacity &&
			got["passbuddy_pool_waiting"] == processes*callers-capacity {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("%v in use, %v wait", got["passbuddy_pool_connections{state=in_use}"],
				got["passbuddy_pool_waiting"])
		}
		time.Sleep(20 * time.Millisecond)
	}
	var backends float64
	const count = "select count(*) from pg_stat_activity where application_name = 'fleet'"
	if err := watch.QueryRow(ctx, count).Scan(&backends); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{
		"passbuddy_permits_held": backends, "passbuddy_pool_permits": backends,
		"passbuddy_pool_connections": backends, "passbuddy_fleet_permits_held": backends,
		"passbuddy_capacity": processes * capacity, "passbuddy_fleet_capacity": capacity,
		"passbuddy_redis_up": processes, "passbuddy_fleet_up": 1, "passbuddy_info": processes,
		"passbuddy_fleet_sessions": processes, "passbuddy_fleet_capacities_declared": 1,
		"passbuddy_grants_paused": 0, "passbuddy_leases_lost_total": 0,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	close(release)
	work.Wait()

	conn, err := pools[0].Acquire(ctx)
	must(t, conn, err)
	hijacked := conn.Hijack()
	got = gathered(t, registry)
	if h, long := got["passbuddy_pool_hijacked"], got["passbuddy_pool_long_use"]; h != 1 || long != 0 {
		t.Errorf("one connection is hijacked, just now: %v hijacked, %v in long use", h, long)
	}
	if err := hijacked.Close(ctx); err != nil {
		t.Error(err)
	}

	got = gathered(t, registry)
	for _, name := range []string{
		"passbuddy_pool_waits_total{result=ok}", "passbuddy_pool_wait_seconds",
		"passbuddy_pool_open_seconds", "passbuddy_pool_opened_total",
	} {
		if got[name] == 0 {
			t.Errorf("%s is 0 after work that waited, opened and moved connections", name)
		}
	}
	if waits, seen := got["passbuddy_pool_waits_total"], got["passbuddy_pool_wait_seconds"]; waits != seen {
		t.Errorf("%v waits counted, %v in the histogram", waits, seen)
	}
	for _, file := range []string{"dashboard.json", "alerts.yml"} {
		text, err := os.ReadFile(file)
		must(t, text, err)
		for _, name := range regexp.MustCompile(`\bpassbuddy_[a-z_]+`).FindAllString(string(text), -1) {
			if _, ok := got[name]; !ok {
				t.Errorf("%s asks for %s, which no collector emits", file, name)
			}
		}
	}
}

// A session that is removed is not exposed any more, and a fleet that cannot be read says so.
func TestWhatIsGone(t *testing.T) {
	ctx := context.Background()
	rd, err := throwaway.StartRedis(ctx, throwaway.RedisOptions{})
	must(t, rd, err)
	t.Cleanup(func() { _ = rd.Stop() })
	metrics := passbuddyprom.New(passbuddyprom.Options{})
	sem, err := semaphore.Open(ctx, rd.URL(), semaphore.Config{Name: "gone",
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	must(t, sem, err)
	metrics.Add("gone", sem)
	metrics.Add("gone", sem) // replaces it
	registry := prometheus.NewRegistry()
	inspector, err := semaphore.NewInspector(sem.Client(), "", "gone")
	must(t, inspector, err)
	registry.MustRegister(metrics, passbuddyprom.NewFleet("gone", inspector, patient))
	if got := gathered(t, registry); got["passbuddy_info"] != 1 || got["passbuddy_fleet_up"] != 1 {
		t.Fatalf("exposed: %v", got)
	}
	metrics.Remove(sem)
	rd.Kill()
	got := gathered(t, registry)
	for name := range got {
		if !strings.HasPrefix(name, "passbuddy_fleet_up") {
			t.Errorf("%s is still exposed", name)
		}
	}
	if got["passbuddy_fleet_up"] != 0 {
		t.Error("the fleet is said to be up, and Redis is gone")
	}
	_ = sem.Close()
}

// A session or an inspector whose error nobody looked at is found at the start, not at a scrape.
func TestNothingToExpose(t *testing.T) {
	for what, f := range map[string]func(){
		"Add":      func() { passbuddyprom.New(passbuddyprom.Options{}).Add("x", nil) },
		"NewFleet": func() { passbuddyprom.NewFleet("x", nil, passbuddyprom.FleetOptions{}) },
	} {
		func() {
			defer func() {
				if said, _ := recover().(string); !strings.Contains(said, what) {
					t.Errorf("%s: %q", what, said)
				}
			}()
			f()
		}()
	}
}
