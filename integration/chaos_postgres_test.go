//go:build unix

package integration

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// This file holds the faults of Postgres, and of the connections to it.

// whose returns the place whose connections a network fault hits: one place in half of the cases,
// else all.
func (s step) whose() int {
	if s.way%2 == 0 {
		return -1
	}
	return s.process
}

func (r *chaos) betweenPostgres(
	s step, begin, end func(*throwaway.Proxy),
) (began, ended time.Time) {
	began = time.Now()
	r.fleet.postgresProxies(s.whose(), begin)
	r.hold(s)
	r.fleet.postgresProxies(s.whose(), end)
	return began, time.Now()
}

func (r *chaos) postgresStalled(s step) {
	_, ended := r.betweenPostgres(s, (*throwaway.Proxy).Stall, (*throwaway.Proxy).Resume)
	r.from(ended)
}

// A backend in a query does not notice that its connection is reset: it lives until the query ends.
func (r *chaos) hadReset(s step, at time.Time) {
	whose, all := s.whose(), s.whose() < 0
	var names []string
	for i, p := range r.fleet.places {
		if all || i == whose {
			names = append(names, p.process.name)
		}
	}
	end := r.excused(fmt.Sprintf("queries of %v whose connections were reset", names),
		r.job.Capacity, func(b backend) bool {
			for _, name := range names {
				if b.process == name {
					return b.started.Before(at.Add(100 * time.Millisecond))
				}
			}
			return false
		})
	end(at.Add(longestRun + grace))
}

func (r *chaos) postgresReset(s step) {
	at := time.Now()
	r.hadReset(s, at)
	r.fleet.postgresProxies(s.whose(), (*throwaway.Proxy).Reset)
	r.fleet.allow(s.whose(), at, at.Add(grace))
	r.from(at)
}

func (r *chaos) postgresCut(s step) {
	r.hadReset(s, time.Now())
	began, ended := r.betweenPostgres(s, (*throwaway.Proxy).Cut, (*throwaway.Proxy).Heal)
	r.fleet.allow(s.whose(), began, ended.Add(grace))
	r.from(ended)
}

func (r *chaos) postgresMute(s step) {
	began, ended := r.betweenPostgres(s, mute, func(p *throwaway.Proxy) {})
	r.hadReset(s, ended)
	r.fleet.postgresProxies(s.whose(), unmute)
	r.fleet.allow(s.whose(), began, ended.Add(grace))
	r.from(ended)
}

func (r *chaos) postgresRestarted(s step) {
	began := time.Now()
	r.must(r.postgres.Restart(r.t.Context()))
	r.fleet.allow(-1, began, time.Now().Add(grace))
	r.from(time.Now())
}

func (r *chaos) postgresCrashed(s step) {
	began := time.Now()
	r.postgres.Kill()
	r.postgresRestarted(s)
	r.fleet.allow(-1, began, time.Now())
}

func (r *chaos) terminated(s step) {
	began := time.Now()
	r.from(began)
	for range s.amount {
		r.terminate(1)
		time.Sleep(s.length / time.Duration(s.amount))
	}
	r.fleet.allow(-1, began, time.Now().Add(grace))
}

// terminate has Postgres end some backends.
func (r *chaos) terminate(n int) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	admin, err := pgx.Connect(ctx, r.postgres.AdminURL())
	r.must(err)
	defer admin.Close(ctx)
	_, err = admin.Exec(ctx, `select pg_terminate_backend(pid) from (
		select pid from pg_stat_activity
		where usename = '`+throwaway.Role+`' and backend_type = 'client backend'
		order by random() limit $1) as victims`, n)
	r.must(err)
}
