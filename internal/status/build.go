package status

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/pgview"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Options say what Build looks at.
type Options struct {
	// Semaphore and Prefix are the names that the inspector was made with; "" is the default.
	Semaphore, Prefix string
	// Postgres is a URL or a connection string. Default "": Postgres is not asked. It is not kept,
	// and shown nowhere.
	Postgres string
	// Before is an earlier document of the same fleet, for the figures of a time: timeouts.
	Before *Document
}

// Build reads the fleet, and Postgres at the same time if it is told to. It writes nothing. If
// Redis cannot be asked, it returns the error, and a document that has the error and what Postgres
// said. A Postgres that cannot be asked is no error: the document says so.
func Build(ctx context.Context, i *semaphore.Inspector, opts Options) (Document, error) {
	type answer struct {
		view *pgview.View
		err  error
	}
	asked := make(chan answer, 1)
	if opts.Postgres == "" {
		asked <- answer{}
	} else {
		go func() {
			view, err := pgview.Read(ctx, opts.Postgres)
			asked <- answer{view, err}
		}()
	}
	began := time.Now()
	snapshot, err := i.Snapshot(ctx)
	var events []semaphore.Event
	if err == nil {
		events, err = i.Events(ctx)
	}
	d := fromSnapshot(snapshot, events, opts)
	d.Read = time.Since(began).Seconds()
	if err != nil {
		d.RedisError = err.Error()
	}
	postgres := <-asked
	if postgres.err != nil {
		d.PostgresError = postgres.err.Error()
	}
	if d.Postgres = postgres.view; d.Postgres != nil {
		d.Postgres.Mark(fleetOf(d.Processes))
	}
	if opts.Before != nil {
		d.compare(opts.Before)
	}
	d.Findings = Diagnose(d)
	return d, err
}

func fromSnapshot(s semaphore.Snapshot, events []semaphore.Event, opts Options) Document {
	d := Document{
		Version:   Version,
		Semaphore: cmp.Or(opts.Semaphore, semaphore.DefaultName),
		Prefix:    cmp.Or(opts.Prefix, semaphore.DefaultPrefix),
		At:        s.At.UTC(),
		Capacity: Capacity{
			InForce: inForce(s), Operator: s.OperatorCapacity, SetBy: s.CapacitySetBy,
			SetAt: when(s.CapacitySetAt), Declared: []Declared{},
		},
		GrantsPaused: seconds(s.GrantsPausedFor),
		Held:         s.Held, Quarantined: s.Quarantined, Waiting: len(s.Waiters),
		Processes: make([]Process, 0, len(s.Sessions)),
		Waiters:   make([]Waiter, 0, len(s.Waiters)),
		Events:    make([]Event, 0, len(events)),
		Findings:  []Finding{},
	}
	if p := s.Pause; p != nil {
		d.Pause = &Pause{By: p.By, Reason: p.Reason, Since: p.Since.UTC(), Until: when(p.Until),
			Drain: p.Drain}
	}
	for _, session := range s.Sessions {
		d.Processes = append(d.Processes, newProcess(session))
	}
	d.addUp()
	setDue(d.Processes, d.Capacity.InForce)
	pools := make(map[string]string)
	for _, p := range d.Processes {
		pools[p.Session] = waitingPool(p)
	}
	for _, w := range s.Waiters {
		d.Waiters = append(d.Waiters, Waiter{Session: w.Session, Owner: w.Owner, N: w.N,
			Pool: pools[w.Session]})
	}
	for _, e := range events {
		d.Events = append(d.Events, Event{At: e.At.UTC(), Kind: string(e.Kind),
			Session: e.Session, Owner: e.Owner, By: e.By, Detail: e.Detail})
	}
	for _, h := range s.Holders {
		if h.Session == "" {
			d.Others += len(h.Permits)
		}
	}
	return d
}

// inForce is the capacity, 0 if none is.
func inForce(s semaphore.Snapshot) int {
	if s.Capacity >= NoCapacity && s.OperatorCapacity == 0 {
		return 0
	}
	return s.Capacity
}

// waitingPool is the pool in which callers wait, "" unless it is one.
func waitingPool(p Process) (name string) {
	n := 0
	for _, pool := range p.Pools {
		if pool.Waiting > 0 {
			n++
			name = pool.Name
		}
	}
	if n != 1 {
		return ""
	}
	return name
}

func newProcess(s semaphore.Session) Process {
	p := Process{
		Session: s.ID, Owner: s.Owner, Host: s.Host, PID: s.PID, Program: s.Program,
		Version: s.Version, Started: s.Started.UTC(), Capacity: s.Capacity, Min: s.Min, Max: s.Max,
		Weight: s.Weight, Permits: s.Held, Queued: s.Waiting, TTL: seconds(s.TTL),
		Lease: seconds(s.Lease), Age: seconds(s.Age), RoundTrip: seconds(s.RoundTrip),
		Lost: s.Lost, Outages: s.Outages, WaitReplicas: s.WaitReplicas,
		Pools: make([]Pool, 0, len(s.Pools)),
	}
	for _, q := range s.Pools {
		pool := Pool{
			Name: q.Name, Permits: q.Permits, InUse: q.InUse, Idle: q.Idle, Opening: q.Opening,
			Closing: q.Closing, Waiting: q.Waiting, OldestWait: seconds(q.OldestWait),
			OldestUse: seconds(q.OldestUse), NewestUse: seconds(q.NewestUse),
			LongUse: max(0, q.LongUse), Hijacked: max(0, q.Hijacked), Timeouts: q.Timeouts,
			Recalled: q.Recalled, Failed: q.Failed,
		}
		p.Pools = append(p.Pools, pool)
		p.InUse += pool.InUse
		p.Idle += pool.Idle
		p.Opening += pool.Opening
		p.Closing += pool.Closing
		p.Waiting += pool.Waiting
		p.OldestWait = max(p.OldestWait, pool.OldestWait)
		p.OldestUse = max(p.OldestUse, pool.OldestUse)
		p.LongUse += pool.LongUse
		p.Hijacked += pool.Hijacked
		p.Timeouts += pool.Timeouts
	}
	return p
}

// addUp sets what follows from the processes.
func (d *Document) addUp() {
	declared := make(map[int]int)
	for _, p := range d.Processes {
		d.InUse += p.InUse
		d.Idle += p.Idle
		d.Callers += p.Waiting
		d.Timeouts += p.Timeouts
		d.OldestWaitSeconds = max(d.OldestWaitSeconds, p.OldestWait)
		if declares(p) {
			declared[p.Capacity]++
		}
	}
	for capacity, n := range declared {
		d.Capacity.Declared = append(d.Capacity.Declared, Declared{capacity, n})
	}
	slices.SortFunc(d.Capacity.Declared, func(a, b Declared) int {
		return cmp.Compare(a.Capacity, b.Capacity)
	})
	d.Capacity.Mismatch = len(declared) > 1
}

func declares(p Process) bool { return p.Capacity > 0 && p.Capacity < NoCapacity }

// compare sets the figures of the time since an earlier document.
func (d *Document) compare(before *Document) {
	if d.RedisError != "" || before.RedisError != "" || !d.At.After(before.At) {
		return
	}
	was := make(map[string]int64, len(before.Processes))
	for _, p := range before.Processes {
		was[p.Session] = p.Timeouts
	}
	d.RecentSeconds = d.At.Sub(before.At).Seconds()
	d.RecentTimeouts = 0
	for i := range d.Processes {
		p := &d.Processes[i]
		if n, known := was[p.Session]; known || p.Started.After(before.At) {
			p.RecentTimeouts = max(0, p.Timeouts-n)
		}
		d.RecentTimeouts += p.RecentTimeouts
	}
}

// when is nil for a zero time.
func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// seconds has no more digits than microseconds, and is never less than zero.
func seconds(d time.Duration) float64 {
	return math.Max(0, math.Round(d.Seconds()*1e6)/1e6)
}

// Empty reports whether nobody has used the semaphore yet.
func (d Document) Empty() bool {
	return len(d.Processes) == 0 && d.Held == 0 && d.Capacity.InForce == 0 && len(d.Events) == 0
}
