package integration

import (
	"bufio"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/quiet"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// This file is a worker process: its main function, and the pools that it uses.

// work is the worker's main function.
func work() error {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var j job
	if err := json.Unmarshal(line, &j); err != nil {
		return err
	}
	if j.Chaos != nil {
		return runChaosWorker(j, in) // Its log is kept, and shown if the run fails.
	}
	quiet.Redis()
	ctx, cancel := context.WithTimeout(context.Background(), j.Load)
	defer cancel()
	var tally tally
	var out sync.Mutex
	reports := json.NewEncoder(os.Stdout)
	report := func(m message) error {
		out.Lock()
		defer out.Unlock()
		return reports.Encode(m)
	}
	go func() {
		for commands := bufio.NewScanner(in); commands.Scan(); {
			switch commands.Text() {
			case count:
				tally.begin()
			case soFar:
				o := tally.sofar()
				_ = report(message{SoFar: &o})
			case end:
				tally.end()
				cancel()
			}
		}
		os.Exit(2) // The parent has ended.
	}()

	sem, err := semaphore.Open(context.Background(), j.Redis, semaphore.Config{
		Name: j.Semaphore, Capacity: j.Capacity, TTL: j.TTL, Min: j.Min, Max: j.Max,
		Weight: j.Weight,
	})
	if err != nil {
		return err
	}
	p, err := newPool(j, sem)
	if err != nil {
		return err
	}
	if err := report(message{Joined: &greeting{time.Now()}}); err != nil {
		return err
	}
	if j.Fault == "exit" { // as log.Fatal does: past every Close
		if _, err := p.once(j); err != nil {
			return err
		}
		os.Exit(0)
	}
	var wg sync.WaitGroup
	for i := range j.Goroutines {
		wg.Go(func() {
			first := j
			if i < 5 && j.FirstQuery > 0 {
				first.MinQuery, first.MaxQuery = j.FirstQuery, j.FirstQuery
			}
			for this := first; ctx.Err() == nil; this = j {
				waited, err := p.once(this)
				tally.add(waited, err, err != nil && expected(j, err))
				if j.Pause > 0 {
					time.Sleep(j.Pause)
				}
			}
		})
	}
	wg.Wait()
	p.close()
	if err := sem.Close(); err != nil {
		return err
	}
	o := tally.report()
	return report(message{Outcome: &o})
}

var errAfterConnect = errors.New("AfterConnect fails on purpose")

func expected(j job, err error) bool {
	switch j.Fault {
	case "cancel":
		// Both drivers report ErrBadConn for a context that ends before the query was sent.
		return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, driver.ErrBadConn) ||
			strings.Contains(err.Error(), "canceling statement")
	case "afterconnect":
		return errors.Is(err, errAfterConnect)
	case "freeze", "away":
		if errors.Is(err, semaphore.ErrUnavailable) || errors.Is(err, semaphore.ErrLost) ||
			errors.Is(err, net.ErrClosed) ||
			strings.Contains(err.Error(), "use of closed network connection") {
			return true
		}
		// A fenced connection can also end in the ways of a terminated one.
		fallthrough
	case "terminate":
		var e *pgconn.PgError
		var pe *pq.Error
		text := err.Error()
		return errors.As(err, &e) && e.Code == "57P01" || errors.As(err, &pe) &&
			pe.Code == "57P01" ||
			strings.Contains(text, "unexpected EOF") || strings.Contains(text, "reset by peer") ||
			strings.Contains(text, "broken pipe") || strings.Contains(text, "bad connection") ||
			strings.Contains(text, "conn closed")
	}
	return false
}

// pool is one of the three integrations, or permits alone.
type pool interface {
	once(j job) (waited time.Duration, err error)
	close()
}

func newPool(j job, sem *semaphore.Semaphore) (pool, error) {
	opts := passbuddy.Config{Scope: j.Scope, AcquireTimeout: time.Minute, Fence: j.Fence,
		KeepOnLoss: j.KeepOnLoss, FallbackConns: j.FallbackConns}
	switch j.Integration {
	case "semaphore":
		return permits{sem}, nil
	case "bare-pgxpool": // the rival: a static split, the only cap that pools have by themselves
		cfg, err := pgxpool.ParseConfig(j.Postgres)
		if err != nil {
			return nil, err
		}
		cfg.MaxConns = int32(j.Share)
		p, err := pgxpool.NewWithConfig(context.Background(), cfg)
		return pgxPool{p}, err
	case "bare-stdlib":
		return newSQLPool("pgx", j)
	case "bare-pq":
		return newSQLPool("postgres", j)
	case "pgxpool":
		cfg, err := pgxpool.ParseConfig(j.Postgres)
		if err != nil {
			return nil, err
		}
		cfg.MaxConns = int32(j.Goroutines)
		if j.Fault == "afterconnect" {
			cfg.AfterConnect = func(context.Context, *pgx.Conn) error {
				if rand.IntN(2) == 0 {
					return errAfterConnect
				}
				return nil
			}
		}
		p, err := passpool.NewWithConfig(context.Background(), cfg, sem, opts)
		return pgxPool{p}, err
	case "stdlib":
		passbuddy.Register("pass-pgx", stdlib.GetDefaultDriver(), sem, opts)
		return newSQLPool("pass-pgx", j)
	case "pq":
		passbuddy.Register("pass-pq", &pq.Driver{}, sem, opts)
		return newSQLPool("pass-pq", j)
	}
	return nil, fmt.Errorf("no integration %q", j.Integration)
}

func query(j job) (string, context.Context, context.CancelFunc) {
	d := j.MinQuery + rand.N(j.MaxQuery-j.MinQuery+1)
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	if j.Fault == "cancel" {
		ctx, cancel = context.WithCancel(ctx)
	}
	return fmt.Sprintf("select pg_sleep(%f)", d.Seconds()), ctx, cancel
}

// The statement timeout of fault "cancel" begins with the checkout. So half of the queries are
// cancelled and no wait is.
const cancelAfter = 5 * time.Millisecond

// permits is the semaphore alone, without a pool: a query is a permit held.
type permits struct{ *semaphore.Semaphore }

func (permits) close() {}

func (p permits) once(j job) (time.Duration, error) {
	began := time.Now()
	permit, err := p.Acquire(context.Background())
	if err != nil {
		return 0, err
	}
	waited := time.Since(began)
	time.Sleep(j.MinQuery)
	return waited, permit.Release(context.Background())
}

type pgxPool struct{ *pgxpool.Pool }

func (p pgxPool) close() { p.Close() }

func (p pgxPool) once(j job) (time.Duration, error) {
	text, ctx, cancel := query(j)
	defer cancel()
	began := time.Now()
	c, err := p.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	waited := time.Since(began)
	if j.served != nil {
		j.served()
	}
	if j.Fault == "hijack" && rand.IntN(10) == 0 {
		conn := c.Hijack()
		_, err := conn.Exec(ctx, text)
		return waited, errors.Join(err, conn.Close(ctx))
	}
	defer c.Release()
	if j.Fault == "cancel" {
		ctx, cancel = context.WithTimeout(ctx, cancelAfter)
		defer cancel()
	}
	if j.QueryTimeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, j.QueryTimeout)
		defer cancel()
	}
	_, err = c.Exec(ctx, text)
	return waited, err
}

type sqlPool struct{ *sql.DB }

func newSQLPool(name string, j job) (pool, error) {
	db, err := sql.Open(name, j.Postgres)
	if err != nil {
		return nil, err
	}
	db.SetMaxIdleConns(j.Capacity)
	db.SetMaxOpenConns(j.Share) // 0 for pools with PassBuddy: they have no limit of their own
	return sqlPool{db}, nil
}

func (p sqlPool) close() { _ = p.Close() }

func (p sqlPool) once(j job) (time.Duration, error) {
	text, ctx, cancel := query(j)
	defer cancel()
	began := time.Now()
	if j.Fault == "cancel" {
		c, err := p.Conn(ctx)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		waited := time.Since(began)
		ctx, cancel = context.WithTimeout(ctx, cancelAfter)
		defer cancel()
		_, err = c.ExecContext(ctx, text)
		return waited, err
	}
	// This times the checkout alone, without the time that Postgres takes to begin a transaction.
	if j.served != nil {
		c, err := p.Conn(ctx)
		if err != nil {
			return 0, err
		}
		waited := time.Since(began)
		j.served()
		if j.QueryTimeout > 0 {
			ctx, cancel = context.WithTimeout(ctx, j.QueryTimeout)
			// This runs after Close, which discards a connection whose transaction's context has
			// ended.
			defer cancel()
		}
		defer c.Close()
		tx, err := c.BeginTx(ctx, nil)
		if err != nil {
			return waited, err
		}
		return waited, runTx(ctx, tx, text)
	}
	tx, err := p.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	return time.Since(began), runTx(ctx, tx, text)
}

func runTx(ctx context.Context, tx *sql.Tx, text string) error {
	if _, err := tx.ExecContext(ctx, text); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}
