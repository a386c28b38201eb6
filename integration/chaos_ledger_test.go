//go:build unix

package integration

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// This file is the witness of a chaos run. It samples the backends that Postgres itself reports,
// some hundred times a second, over a connection that no fault reaches. It judges each sample at
// once.

const sampleEvery = 10 * time.Millisecond

// A backend as pg_stat_activity shows it. No two backends share both pid and start.
type backend struct {
	pid     int32
	process string // its application_name
	started time.Time
	doing   string // its state, since when, and its query
}

// An excuse is a window, declared in docs/SAFETY.md, in which there may be more backends than the
// capacity. It names the backends that do not count against the capacity; all others never exceed
// it. After the window they count again, so the excuse bounds the time too.
type excuse struct {
	why         string
	from, until time.Time // until is zero while the window has no end yet
	covers      func(backend) bool
	extra       int // or a number of any backends
	covered     int // the most backends covered at once while there were too many
}

// A backendSample is the state of the backends at one instant.
type backendSample struct {
	at       time.Time
	took     time.Duration
	backends []backend
	excused  int
	capacity int
	down     bool // Postgres did not answer
}

// over returns how many backends are beyond the capacity, excused or not.
func (l backendSample) over() int { return len(l.backends) - l.capacity }

func (l backendSample) String() string {
	if l.down {
		return l.at.Format(clock) + " no answer"
	}
	by := make(map[string]int)
	for _, b := range l.backends {
		by[b.process]++
	}
	var of []string
	for _, process := range slices.Sorted(maps.Keys(by)) {
		of = append(of, fmt.Sprintf("%s:%d", process, by[process]))
	}
	return fmt.Sprintf("%s %d backends of %d (%d excused): %s", l.at.Format(clock), len(l.backends),
		l.capacity, l.excused, strings.Join(of, " "))
}

const clock = "15:04:05.000"

// chronicle is the witness's record.
type chronicle struct {
	mu sync.Mutex

	// Guarded by mu.
	capacity  int
	excuses   []*excuse
	recent    []backendSample // the last ones
	samples   int
	unheard   int           // samples that Postgres did not answer
	late      time.Duration // the longest delay of a sample in this episode
	peak      int           // most backends beyond the capacity, excused ones aside
	violation string        // the first one
	episode   *episode      // the current one
	during    string        // the current step, for the reader of a violation
}

const kept = 250 // samples: those of a calm, and some more

func newChronicle(capacity int) *chronicle { return &chronicle{capacity: capacity} }

// watch samples until ctx ends. It reconnects when its connection breaks, because the run restarts
// Postgres too.
func (c *chronicle) watch(ctx context.Context, url string) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.Background())
		}
	}()
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	last := time.Now()
	for ctx.Err() == nil {
		var err error
		asked := time.Now()
		if conn == nil {
			conn, err = pgx.Connect(ctx, url)
		}
		var found []backend
		if err == nil {
			asked = time.Now()
			found, err = backendsOf(ctx, conn)
		}
		if err != nil && conn != nil {
			_ = conn.Close(ctx)
			conn = nil
		}
		if ctx.Err() == nil {
			c.add(backendSample{at: asked, took: time.Since(asked), backends: found, down: err != nil},
				asked.Sub(last)-sampleEvery)
		}
		last = asked
		<-tick.C
	}
}

func backendsOf(ctx context.Context, conn *pgx.Conn) (found []backend, err error) {
	rows, err := conn.Query(ctx, `select pid, application_name, backend_start,
			concat_ws(' ', state, state_change::time(3), wait_event, left(query, 60))
		from pg_stat_activity
		where usename = '`+throwaway.Role+`' and backend_type = 'client backend'`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (b backend, err error) {
		return b, row.Scan(&b.pid, &b.process, &b.started, &b.doing)
	})
}

func (c *chronicle) add(l backendSample, late time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l.capacity = c.capacity
	c.late = max(c.late, late)
	if len(c.recent) == kept {
		c.recent = c.recent[:copy(c.recent, c.recent[1:])]
	}
	if l.down {
		c.unheard++
		c.recent = append(c.recent, l)
		return
	}
	c.samples++
	extra := 0
	covered := make(map[int32]bool)
	tooMany := l.over() > 0
	for _, e := range c.excuses {
		if l.at.Add(l.took).Before(e.from) || !e.until.IsZero() && l.at.After(e.until) {
			continue
		}
		extra += e.extra
		n := 0
		for _, b := range l.backends {
			if e.covers != nil && e.covers(b) {
				covered[b.pid] = true
				n++
			}
		}
		if tooMany {
			e.covered = max(e.covered, n)
		}
	}
	l.excused = len(covered) + extra
	c.recent = append(c.recent, l)
	if e := c.episode; e != nil {
		e.add(l)
	}
	over := l.over() - l.excused
	c.peak = max(c.peak, over)
	if over > 0 && c.violation == "" {
		c.violation = fmt.Sprintf(
			"%d backends, %d excused, capacity %d\nduring: %s\nexcuses: %s\n"+
				"samples before it:\n%s\nbackends:\n%s",
			len(l.backends), l.excused, c.capacity, c.during, c.excusesText(l.at), c.recentText(),
			l.backendsText())
	}
}

// backendsText lists the backends of a sample by process and age.
func (l backendSample) backendsText() string {
	backends := slices.Clone(l.backends)
	slices.SortFunc(backends, func(a, b backend) int {
		return cmp.Or(strings.Compare(a.process, b.process), a.started.Compare(b.started))
	})
	var text strings.Builder
	for _, b := range backends {
		fmt.Fprintf(&text, "  %s %d since %s: %s\n", b.process, b.pid, b.started.Format(clock),
			b.doing)
	}
	return text.String()
}

func (c *chronicle) excusesText(at time.Time) string {
	var text []string
	for _, e := range c.excuses {
		ends := "open"
		if !e.until.IsZero() {
			ends = e.until.Sub(at).Round(time.Millisecond).String() + " left"
		}
		text = append(text, fmt.Sprintf("%s (since %v, %s)", e.why,
			at.Sub(e.from).Round(time.Millisecond), ends))
	}
	if text == nil {
		return "none"
	}
	return strings.Join(text, "; ")
}

// recentText lists the last samples, equal ones in one line.
func (c *chronicle) recentText() string {
	var lines []string
	before := ""
	for _, l := range c.recent {
		_, said, _ := strings.Cut(l.String(), " ")
		if said != before {
			lines = append(lines, "  "+l.String())
		}
		before = said
	}
	return strings.Join(lines, "\n")
}

// excuse declares a window. The window stays open until it is closed.
func (c *chronicle) excuse(e *excuse) *excuse {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.from.IsZero() {
		e.from = time.Now()
	}
	c.excuses = append(c.excuses, e)
	return e
}

func (c *chronicle) until(e *excuse, end time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.until = end
}

// setCapacity changes the allowed number of backends.
func (c *chronicle) setCapacity(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.capacity = n
}

// begin opens an episode, which counts the samples from now on.
func (c *chronicle) begin(e *episode, during string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.episode, c.during, c.late = e, during, 0
}

// last returns the most recent sample, and the longest delay of one since the episode began.
func (c *chronicle) last() (backendSample, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.recent) == 0 {
		return backendSample{down: true, capacity: c.capacity}, c.late
	}
	return c.recent[len(c.recent)-1], c.late
}

// held returns the backends that a process has now.
func (c *chronicle) held(process string) (n int) {
	l, _ := c.last()
	for _, b := range l.backends {
		if b.process == process {
			n++
		}
	}
	return n
}

// openedSince returns the processes with a backend that began after a time.
func (c *chronicle) openedSince(since time.Time) map[string]bool {
	l, _ := c.last()
	opened := make(map[string]bool)
	for _, b := range l.backends {
		if b.started.After(since) {
			opened[b.process] = true
		}
	}
	return opened
}

func (c *chronicle) violated() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.violation
}

// An episode is one step of the schedule, from its fault to the end of the calm after it. Guarded
// by the chronicle's mu.
type episode struct {
	calm     bool
	waiting  func() bool // whether a caller waits now
	samples  int
	most     int           // most excused backends beyond the capacity
	overFor  time.Duration // the longest time without a break
	overFrom time.Time
	// backends, and capacity, summed over the samples of the calm in which a caller waited
	used, could   int
	calmSamples   int
	fewest        int // the fewest backends in one of those
	waitingInCalm int
}

func (e *episode) add(l backendSample) {
	e.samples++
	if over := l.over(); over > 0 {
		e.most = max(e.most, over)
		if e.overFrom.IsZero() {
			e.overFrom = l.at
		}
		e.overFor = max(e.overFor, l.at.Add(l.took).Sub(e.overFrom))
	} else {
		e.overFrom = time.Time{}
	}
	if !e.calm {
		return
	}
	e.calmSamples++
	if !e.waiting() {
		return
	}
	if e.waitingInCalm == 0 || len(l.backends) < e.fewest {
		e.fewest = len(l.backends)
	}
	e.waitingInCalm++
	e.used += len(l.backends)
	e.could += l.capacity
}

// setCalm says that the fault and its consequences are over, or that the next fault begins.
func (c *chronicle) setCalm(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.episode != nil {
		c.episode.calm = yes
	}
}

// figures returns a copy of the episode's figures.
func (c *chronicle) figures() episode {
	c.mu.Lock()
	defer c.mu.Unlock()
	return *c.episode
}
