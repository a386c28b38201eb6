//go:build unix

package examples

import (
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
)

// A request has one permit, and makes one query: so the queries under way are never more than the
// permits.
func TestHTTPService(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	var services []*process
	var addresses []string
	for range processes {
		p := s.spawn(t, "http", nil, "127.0.0.1:0")
		must(t, p.says("\n", 1))
		first, _, _ := strings.Cut(p.out.String(), "\n")
		services = append(services, p)
		addresses = append(addresses, strings.TrimPrefix(first, "listening on "))
	}
	ask := func() int {
		w := s.watch(t, "datname = $1 and state = 'active'", s.database)
		var clients errgroup.Group
		for i := range 12 {
			clients.Go(func() error {
				for range 3 {
					answer, err := http.Get("http://" + addresses[i%processes] + "/report")
					if err != nil {
						return err
					}
					text, _ := io.ReadAll(answer.Body)
					_ = answer.Body.Close()
					if answer.StatusCode != http.StatusOK {
						t.Errorf("%s: %s", answer.Status, text)
					}
				}
				return nil
			})
		}
		must(t, clients.Wait())
		return w.most(t)
	}
	if got := ask(); got != 3 {
		t.Errorf("%d reports at once, want 3", got)
	}
	s.liftCap(t, "reports")
	if got := ask(); got <= 3 {
		t.Errorf("%d reports at once without a cap: the cap was not needed", got)
	}
	for _, p := range services {
		p.interrupt(t)
		p.wait(t)
	}
	s.nothingLeft(t, "reports")
}

// Three instances have two permits. One that is frozen loses its permit to the others, which have
// Postgres end its backend first. When it thaws it works again.
func TestFrozenLambda(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	w := s.watchDatabase(t)
	instance := func(name string) *process {
		return s.spawn(t, "lambda", []string{"PGAPPNAME=" + name})
	}
	frozen, b, c := instance("frozen"), instance("b"), instance("c")
	must(t, frozen.place(1))
	must(t, frozen.cmd.Process.Signal(syscall.SIGSTOP))

	// The others work all the time.
	var others errgroup.Group
	stop := make(chan struct{})
	for _, p := range []*process{b, c} {
		others.Go(func() error {
			for n := 1; ; n++ {
				select {
				case <-stop:
					return nil
				default:
				}
				if err := p.place(n); err != nil {
					return err
				}
			}
		})
	}
	eventually(t, "each of the others has a connection", func() bool {
		return s.backends(t, "b") == 1 && s.backends(t, "c") == 1
	})
	must(t, frozen.cmd.Process.Signal(syscall.SIGCONT))
	must(t, frozen.place(2))

	close(stop)
	must(t, others.Wait())
	for _, p := range []*process{b, c, frozen} {
		must(t, p.in.Close())
		p.wait(t)
	}
	if got := w.most(t); got != 2 {
		t.Errorf("%d backends at once, want 2", got)
	}
	s.nothingLeft(t, semaphoreName)
}

// The token changes while the processes run. A connect with an old one would fail.
func TestTokens(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	w := s.watchDatabase(t)
	role := "user_" + s.database
	_, err := s.rows.Exec(t.Context(), "create role "+role+" login; grant insert on orders to "+role)
	must(t, err)
	u, err := url.Parse(s.databaseURL)
	must(t, err)
	u.User = url.User(role)
	s.databaseURL = u.String()
	file := filepath.Join(t.TempDir(), "token")
	rotate := func(token string) { // only while nobody connects: Postgres knows one password
		must(t, os.WriteFile(file, []byte(token), 0o600))
		_, err := s.rows.Exec(t.Context(), "alter role "+role+" password '"+token+"'")
		must(t, err)
	}
	start := func(name string) *process {
		return s.spawn(t, "iam", []string{"TOKEN_FILE=" + file, "PGAPPNAME=" + name})
	}
	rotate("first")
	a := start("a")
	must(t, a.place(1))
	had := s.backends(t, "a")
	rotate("second")
	b := start("b")
	for n := 1; s.backends(t, "a") == had; n++ { // until b has a permit of a's
		must(t, b.place(n))
	}
	rotate("third")
	for n := 2; s.backends(t, "a") < had; n++ { // until a has connected anew
		must(t, a.place(n))
	}
	for _, p := range []*process{a, b} {
		must(t, p.in.Close())
		p.wait(t)
	}
	if got := w.most(t); got != capacity {
		t.Errorf("%d backends at once, want %d", got, capacity)
	}
	s.nothingLeft(t, semaphoreName)
}

// Each of a process's two databases has a cap of its own.
func TestTwoDatabases(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	billing := s.database + "_billing"
	s.makeDatabase(t, billing)
	run := func() (orders, bills int) {
		o, b := s.watchDatabase(t), s.watch(t, "datname = $1", billing)
		var all []*process
		for range processes {
			all = append(all, s.spawn(t, "twodatabases",
				[]string{"BILLING_URL=" + databaseURL(t, s.databaseURL, billing)}))
		}
		for _, p := range all {
			p.wait(t)
		}
		return o.most(t), b.most(t)
	}
	if orders, bills := run(); orders != 5 || bills != 3 {
		t.Errorf("%d and %d backends at once, want 5 and 3", orders, bills)
	}
	for _, name := range []string{semaphoreName, "billing-db"} {
		s.nothingLeft(t, name)
		s.liftCap(t, name)
	}
	if orders, bills := run(); orders <= 5 || bills <= 3 {
		t.Errorf("%d and %d backends at once without caps: one was not needed", orders, bills)
	}
}

// The pools of all tenants share one cap.
func TestTenants(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	tenants := []string{s.database + "_a", s.database + "_b", s.database + "_c"}
	for _, tenant := range tenants {
		s.makeDatabase(t, tenant)
	}
	run := func() int {
		w := s.watch(t, "datname = any($1)", tenants)
		var all []*process
		for range processes {
			all = append(all, s.spawn(t, "tenants", nil, tenants...))
		}
		for _, p := range all {
			p.wait(t)
		}
		return w.most(t)
	}
	if got := run(); got != capacity {
		t.Errorf("%d backends at once, want %d", got, capacity)
	}
	s.nothingLeft(t, "server-1")
	s.liftCap(t, "server-1")
	if got := run(); got <= capacity {
		t.Errorf("%d backends at once without a cap: the cap was not needed", got)
	}
}

// Two processes are replaced one by one while all work. No operation fails, or the program would
// end with an error.
func TestRollingDeploy(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	roll := func() int {
		_, err := s.rows.Exec(t.Context(), "truncate orders")
		must(t, err)
		w := s.watchDatabase(t)
		working := func(version string) {
			eventually(t, version+" works", func() bool {
				var n int
				must(t, s.rows.QueryRow(t.Context(),
					"select count(*) from orders where item = $1", version).Scan(&n))
				return n >= 12
			})
		}
		start := func(version string) *process {
			p := s.spawn(t, "deploy", []string{"VERSION=" + version})
			working(version)
			return p
		}
		old := []*process{start("old 1"), start("old 2")}
		next := []*process{start("new 1")}
		end := func(p *process) {
			must(t, p.cmd.Process.Signal(syscall.SIGTERM))
			p.wait(t)
		}
		end(old[0])
		next = append(next, start("new 2"))
		end(old[1])
		for _, p := range next {
			end(p)
		}
		return w.most(t)
	}
	if got := roll(); got != capacity {
		t.Errorf("%d backends at once, want %d", got, capacity)
	}
	s.nothingLeft(t, semaphoreName)
	s.liftCap(t, semaphoreName)
	if got := roll(); got <= capacity {
		t.Errorf("%d backends at once without a cap: the cap was not needed", got)
	}
}
