package dashboard_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/passbuddy/passbuddy/dashboard"
	"github.com/passbuddy/passbuddy/internal/page/incident"
	"github.com/passbuddy/passbuddy/internal/quiet"
	"github.com/passbuddy/passbuddy/semaphore"
)

func TestMain(m *testing.M) {
	quiet.Redis()
	goleak.VerifyTestMain(m)
}

const token = "correct-horse-battery-staple"

// start serves the dashboard of a fleet of one session, which holds three permits.
func start(t *testing.T, opts dashboard.Options) (*semaphore.Semaphore, *httptest.Server) {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
	t.Cleanup(func() { _ = client.Close() })
	// A machine that stalls must lose no lease, and end no wait and no reading.
	sem, err := semaphore.New(t.Context(), client, semaphore.Config{
		Name: "orders", Capacity: 5, Owner: incident.Hostile, Logger: slog.New(slog.DiscardHandler),
		TTL: time.Minute, MaxAttempts: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sem.Close() })
	if _, err := sem.AcquireN(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	opts.Timeout = time.Minute
	opts.Client, opts.Name, opts.Logger = client, "orders", slog.New(slog.DiscardHandler)
	handler, err := dashboard.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/fleet/", http.StripPrefix("/fleet", handler))
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		if err := handler.Close(); err != nil {
			t.Error(err)
		}
		server.Close()
	})
	return sem, server
}

// The dashboard shows a real fleet, joins nothing, and keeps hostile names data.
func TestDashboardShowsTheFleet(t *testing.T) {
	sem, server := start(t, dashboard.Options{})
	reply, err := server.Client().Get(server.URL + "/fleet/events")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reply.Body.Close() }()
	lines := bufio.NewScanner(reply.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() && lines.Text() != "event: status" {
	}
	lines.Scan()
	data, ok := strings.CutPrefix(lines.Text(), "data: ")
	if !ok || strings.Contains(data, "<") {
		t.Fatalf("the state: %s: %v", data, lines.Err())
	}
	var d struct {
		Semaphore string
		Held      int
		Capacity  struct {
			InForce int `json:"in_force"`
		}
		Processes []struct{ Owner string }
	}
	if err := json.Unmarshal([]byte(data), &d); err != nil {
		t.Fatal(err)
	}
	if d.Semaphore != "orders" || d.Held != 3 || d.Capacity.InForce != 5 || len(d.Processes) != 1 ||
		!strings.HasPrefix(d.Processes[0].Owner, "<img") {
		t.Errorf("the state: %+v", d)
	}
	snapshot, err := sem.Snapshot(t.Context())
	if err != nil || len(snapshot.Sessions) != 1 {
		t.Errorf("the dashboard has joined: %+v: %v", snapshot.Sessions, err)
	}
}

// A verb acts in the name of its operator.
func TestDashboardControls(t *testing.T) {
	sem, server := start(t, dashboard.Options{Control: &dashboard.Control{
		Token: token, Operator: func(r *http.Request) string { return r.Header.Get("X-User") },
	}})
	for secret, want := range map[string]int{"wrong": http.StatusUnauthorized, token: http.StatusOK} {
		body := strings.NewReader(`{"confirm":"orders","capacity":9}`)
		r, err := http.NewRequest(http.MethodPost, server.URL+"/fleet/control/capacity", body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+secret)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("X-PassBuddy-Control", "1")
		r.Header.Set("X-User", "ana")
		reply, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = reply.Body.Close()
		if reply.StatusCode != want {
			t.Errorf("token %q: %s", secret, reply.Status)
		}
	}
	snapshot, err := sem.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if snapshot.Capacity != 9 || snapshot.CapacitySetBy != "ana@127.0.0.1" {
		t.Errorf("%d, set by %q", snapshot.Capacity, snapshot.CapacitySetBy)
	}
}

func TestDashboardOptions(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer func() { _ = client.Close() }()
	for want, opts := range map[string]dashboard.Options{
		"Client":        {},
		"Name":          {Client: client, Name: "a{b"},
		"Interval":      {Client: client, Interval: 1},
		"Control.Token": {Client: client, Control: &dashboard.Control{}},
		"Postgres":      {Client: client, Postgres: "postgres://u:s3cret@h:port/d"},
	} {
		_, err := dashboard.New(opts)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New without a good %s: %v", want, err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

// A Postgres that does not answer is told of, and does not keep the fleet's state from viewers.
func TestDashboardWithoutItsPostgres(t *testing.T) {
	_, server := start(t, dashboard.Options{Postgres: "postgres://u:s3cret@127.0.0.1:1/d"})
	reply, err := server.Client().Get(server.URL + "/fleet/status.json")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reply.Body.Close() }()
	var d struct {
		Held          int
		PostgresError string `json:"postgres_error"`
	}
	if err := json.NewDecoder(reply.Body).Decode(&d); err != nil {
		t.Fatal(err)
	}
	if d.Held != 3 || d.PostgresError == "" || strings.Contains(d.PostgresError, "s3cret") {
		t.Errorf("the state: %+v", d)
	}
}

func ExampleNew() {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379"})
	defer func() { _ = client.Close() }()
	handler, err := dashboard.New(dashboard.Options{Client: client, Name: "orders"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = handler.Close() }()
	mux := http.NewServeMux()
	mux.Handle("/passbuddy/", http.StripPrefix("/passbuddy", handler))
	// http.ListenAndServe("127.0.0.1:8080", mux): the page is at /passbuddy/.
}
