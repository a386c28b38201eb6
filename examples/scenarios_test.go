//go:build unix

package examples

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

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
	s.holds(t, "reports", 3, func() (int, error) {
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
						return fmt.Errorf("%s: %s", answer.Status, text)
					}
				}
				return nil
			})
		}
		if err := clients.Wait(); err != nil {
			return 0, err
		}
		return w.most(t), nil
	})
	for _, p := range services {
		must(t, p.end())
	}
	s.nothingLeft(t, "reports")
}

// Three instances have two permits. One that is frozen loses its permit to the others, which have
// Postgres end its backend first. When it thaws it works again.
func TestFrozenLambda(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	w := s.watchDatabase(t)
	s.patiently(t, func() error { return freeze(t, s) })
	if got := w.most(t); got != 2 {
		t.Errorf("%d backends at once, want 2", got)
	}
	s.nothingLeft(t, semaphoreName)
}

func freeze(t *testing.T, s *space) error {
	instance := func(name string) *process {
		return s.spawn(t, "lambda", []string{"PGAPPNAME=" + name})
	}
	frozen, b, c := instance("frozen"), instance("b"), instance("c")
	defer kill(frozen, b, c)
	if err := frozen.place(1); err != nil {
		return err
	}
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
	for s.backends(t, "b", "c") < 2 {
		if !b.running() || !c.running() {
			return others.Wait()
		}
		time.Sleep(5 * time.Millisecond)
	}
	must(t, frozen.cmd.Process.Signal(syscall.SIGCONT))
	err := frozen.place(2)
	close(stop)
	if err := errors.Join(err, others.Wait()); err != nil {
		return err
	}
	for _, p := range []*process{b, c, frozen} {
		must(t, p.in.Close())
		if err := p.wait(); err != nil {
			return err
		}
	}
	return nil
}

// The token changes while the processes run. A connect with an old one would fail.
func TestTokens(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	role := s.useRole(t)
	file := filepath.Join(t.TempDir(), "token")
	s.holds(t, semaphoreName, capacity, func() (int, error) {
		w := s.watchDatabase(t)
		var all []*process
		for range processes {
			all = append(all, s.spawn(t, "iam", []string{"TOKEN_FILE=" + file}))
		}
		defer kill(all...)
		for n := 1; n <= 2; n++ {
			// Nobody connects now. Postgres knows one token.
			s.endIdle(t, role)
			token := rand.Text()
			must(t, os.WriteFile(file, []byte(token), 0o600))
			_, err := s.rows.Exec(t.Context(), "alter role "+role+" password '"+token+"'")
			must(t, err)
			var batches errgroup.Group
			for _, p := range all {
				batches.Go(func() error { return p.place(n) })
			}
			if err := batches.Wait(); err != nil {
				return 0, err
			}
		}
		for _, p := range all {
			must(t, p.in.Close())
			if err := p.wait(); err != nil {
				return 0, err
			}
		}
		return w.most(t), nil
	})
	s.nothingLeft(t, semaphoreName)
}

// endIdle ends the backends of the role when they have been idle for so long that pgx's pool looks
// whether they live before it hands them out: a second.
func (s *space) endIdle(t *testing.T, role string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		var busy int
		must(t, s.admin.QueryRow(t.Context(), `select count(*) from pg_stat_activity
			where usename = $1 and (state is distinct from 'idle' or
				clock_timestamp() - state_change < '1.5 s')`, role).Scan(&busy))
		if busy == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the processes do not come to rest")
		}
	}
	_, err := s.admin.Exec(t.Context(), `select pg_terminate_backend(pid, 60000)
		from pg_stat_activity where usename = $1`, role)
	must(t, err)
}

// Each of a process's two databases has a cap of its own.
func TestTwoDatabases(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	billing := s.database + "_billing"
	s.makeDatabase(t, billing)
	run := func() (orders, bills int, err error) {
		o, b := s.watchDatabase(t), s.watch(t, "datname = $1", billing)
		var all []*process
		for range processes {
			all = append(all, s.spawn(t, "twodatabases",
				[]string{"BILLING_URL=" + databaseURL(t, s.databaseURL, billing)}))
		}
		for _, p := range all {
			if err := p.wait(); err != nil {
				return 0, 0, err
			}
		}
		return o.most(t), b.most(t), nil
	}
	s.holds(t, semaphoreName, 5, func() (int, error) {
		orders, bills, err := run()
		if bills > 3 {
			t.Fatalf("%d backends of the other database, capacity 3", bills)
		}
		return orders, err
	})
	s.holds(t, "billing-db", 3, func() (int, error) {
		_, bills, err := run()
		return bills, err
	})
	s.nothingLeft(t, semaphoreName)
	s.nothingLeft(t, "billing-db")
}

// The pools of all tenants share one cap.
func TestTenants(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	tenants := []string{s.database + "_a", s.database + "_b", s.database + "_c"}
	for _, tenant := range tenants {
		s.makeDatabase(t, tenant)
	}
	s.holds(t, "server-1", capacity, func() (int, error) {
		w := s.watch(t, "datname = any($1)", tenants)
		var all []*process
		for range processes {
			all = append(all, s.spawn(t, "tenants", nil, tenants...))
		}
		for _, p := range all {
			if err := p.wait(); err != nil {
				return 0, err
			}
		}
		return w.most(t), nil
	})
	s.nothingLeft(t, "server-1")
}

// Two processes are replaced one by one while all work. No operation fails, or the program would
// end with an error.
func TestRollingDeploy(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.holds(t, semaphoreName, capacity, func() (int, error) {
		_, err := s.rows.Exec(t.Context(), "truncate orders")
		must(t, err)
		w := s.watchDatabase(t)
		var running []*process
		deploy := func(version string) error { // start one, and wait until it works
			p := s.spawn(t, "deploy", []string{"VERSION=" + version})
			running = append(running, p)
			return s.awaitOrders(t, running, s.orders(t)+20)
		}
		end := func() error { // the oldest
			p := running[0]
			running = running[1:]
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			return p.wait()
		}
		for _, step := range []func() error{
			func() error { return deploy("old") }, func() error { return deploy("old") },
			func() error { return deploy("new") }, end,
			func() error { return deploy("new") }, end, end, end,
		} {
			if err := step(); err != nil {
				return 0, err
			}
		}
		return w.most(t), nil
	})
	s.nothingLeft(t, semaphoreName)
}
