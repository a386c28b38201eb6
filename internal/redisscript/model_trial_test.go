package redisscript

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A trial is one history at one place. After every script the state in Redis, the answer and the
// pushes must be those that the oracle predicts. After everything that happens the specification
// must hold.
type trial struct {
	plan  *plan
	place place
	keys  Keys
	trace func(string)
	evidence

	now          time.Duration // the world's time since the history began
	set          int64         // by how many ms Redis's clock was set
	scheduled    []occurrence  // the next ones, in their order
	stalledUntil time.Duration // Redis executes nothing before

	before    *state      // what is stored
	sessions  [4]*session // by slot; nil: free
	leaving   []*session
	born      int                 // sessions there ever were
	postgres  map[string]*backend // the backends that live, by the permit that covers them
	pids      int                 // backends there ever were
	foreign   int                 // permits that other clients ever took
	faultless bool                // it is the end: nothing goes wrong any more
	returning bool                // every session gives back what it is granted
	calls     int                 // scripts that were run
	faults    []string            // the messages that did not go as usual
}

// A broken is the panic that ends a trial.
type broken struct{ why string }

// failf ends the trial. The text begins with the name of the property that does not hold.
func (t *trial) failf(format string, args ...any) { panic(broken{fmt.Sprintf(format, args...)}) }

func (t *trial) must(err error) {
	if err != nil {
		t.failf("bug in the test: %v", err)
	}
}

func (t *trial) say(format string, args ...any) {
	if t.trace != nil {
		t.trace(fmt.Sprintf(format, args...))
	}
}

const modelStart = 1_790_000_000_000 // some day in 2026

// run takes steps and then, if finish says so, brings everything to its end. It returns what
// failed, and at which step.
func (t *trial) run(steps []step, finish bool) (why string, failedAt int) {
	at := 0
	defer func() {
		if r := recover(); r != nil {
			b, ok := r.(broken)
			if !ok {
				panic(r)
			}
			why, failedAt = b.why, at
		}
	}()
	t.place.restart()
	t.evidence = newEvidence()
	t.postgres = make(map[string]*backend)
	t.reload()
	for i, s := range steps {
		at = i
		t.take(s)
		t.checkNow()
		t.until(t.now)
	}
	at = len(steps)
	if finish {
		t.finish()
	}
	return "", 0
}

// reload reads the state after a change that no script made.
func (t *trial) reload() {
	s, err := t.place.load()
	if err != nil {
		t.failf("state: %v", err)
	}
	t.before = s
}

// clock returns the time that Redis's clock shows, in ms.
func (t *trial) clock() int64 { return modelStart + t.now.Milliseconds() + t.set }

func (t *trial) ttlMillis() int64 { return t.plan.ttl.Milliseconds() }

// begin has the oracle begin a script at that time of Redis's clock.
func (t *trial) begin(time, expected int64) *oracle {
	return begin(t.before, time, expected, t.place.sharded(), t.place.listeners())
}

// judge compares what a script did with what the oracle predicts for it, and then checks the
// specification.
func (t *trial) judge(a act, reply any, predict func(time int64) (*oracle, any)) {
	t.calls++
	after, err := t.place.load()
	if err != nil {
		t.failf("%s: state: %v", a.name, err)
	}
	listeners := t.place.listeners()
	got := t.place.pushed()
	var o *oracle
	least := ""
	for late := range t.place.late() + 1 {
		var want any
		o, want = predict(t.clock() + late)
		var wrong []string
		if fmt.Sprintf("%+v", reply) != fmt.Sprintf("%+v", want) {
			wrong = append(wrong, fmt.Sprintf("answered %+v\nwant     %+v", reply, want))
		}
		if d := after.diff(o.state); d != "" {
			wrong = append(wrong, d)
		}
		s, w := sortPushes(got, listeners, o.anyOrder), sortPushes(o.pushes, listeners, o.anyOrder)
		if !slices.Equal(s, w) {
			wrong = append(wrong, fmt.Sprintf("pushed %q\nwant   %q", s, w))
		}
		if len(wrong) == 0 {
			least = ""
			break
		}
		if text := strings.Join(wrong, "\n"); least == "" || len(text) < len(least) {
			least = text
		}
	}
	if least != "" {
		t.failf("%s: the oracle says otherwise:\n%s", a.name, least)
	}
	before := t.before
	t.before = after
	a.now, a.pushes = o.now, o.pushes
	if !a.timeless {
		t.lastScript, t.lastClock, t.lastSet = t.now, a.now, t.set
	}
	for id, expiry := range after.Permits {
		if before.Permits[id] != expiry {
			left := time.Duration(expiry-a.now) * time.Millisecond
			t.ends[id] = t.now.Truncate(time.Millisecond) + left
		}
	}
	// If the pause after a loss ended just now, the queue may not have been served.
	a.served = a.served && before.num("gate") <= a.now && after.Meta["epoch"] != "" &&
		!after.pausedByOperator(a.now)
	t.checkScript(before, after, a)
	t.sendPushes(got)
}
