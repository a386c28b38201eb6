package status

import (
	"cmp"
	"slices"
	"time"
)

const (
	// longWait is how long a caller may wait for a permit before that is worth a word. At the cap
	// callers wait in turn, which is healthy.
	longWait = 2.0
	// longUse is how long one checkout may last while others wait.
	longUse = 60.0
	// longIdle is how long a transaction may be open that does nothing.
	longIdle = 60.0
	// forgotten is how long a checkout may last while nobody waits: LISTEN and Hijack keep one for
	// ever, and no recall can take it back.
	forgotten = 600.0
	// silent is which part of its lease a session may be silent for. It sends a heartbeat each third.
	silent = 0.6
	// slowRedis and tooSlowRedis are which part of a lease Redis's replies may take.
	slowRedis, tooSlowRedis = 0.2, 0.4
	// lately is how long an event is worth a finding.
	lately = 10 * time.Minute
)

// Diagnose returns what is wrong with a fleet, the worst first. It asks nobody: everything that it
// needs is in the document. It does not read Document.Findings.
func Diagnose(d Document) []Finding {
	x := &diagnosis{Document: d}
	if d.RedisError != "" {
		x.redisGone()
		x.postgres()
		return x.sorted()
	}
	if d.Empty() {
		x.add(Info, "nobody", x.quoted()+" has no state in Redis: no session has joined it, or it "+
			"has another name.", "passbuddy list", "Lists the semaphores of this Redis.")
	}
	x.paused()
	x.capacity()
	x.postgres()
	x.held()
	x.holders()
	x.sessions()
	x.redis()
	x.deploy()
	x.waits()
	return x.sorted()
}

// A diagnosis is a document, and what was found in it.
type diagnosis struct {
	Document
	found []Finding
}

func (x *diagnosis) add(severity, code, text, command, effect string) {
	x.found = append(x.found, Finding{severity, code, text, command, effect})
}

var ranks = map[string]int{Critical: 0, Warning: 1, Info: 2}

// sorted returns the worst first, and what is as bad in the order in which it was found.
func (x *diagnosis) sorted() []Finding {
	slices.SortStableFunc(x.found, func(a, b Finding) int {
		return cmp.Compare(ranks[a.Severity], ranks[b.Severity])
	})
	if x.found == nil {
		return []Finding{}
	}
	return x.found
}

func (x *diagnosis) has(severity string) bool {
	return slices.ContainsFunc(x.found, func(f Finding) bool { return f.Severity == severity })
}

// told reports whether a finding of that code was made.
func (x *diagnosis) told(code string) bool {
	return slices.ContainsFunc(x.found, func(f Finding) bool { return f.Code == code })
}

// wanted reports whether somebody waits for a permit.
func (x *diagnosis) wanted() bool { return x.Callers > 0 || x.Waiting > 0 }

// suffering reports whether callers wait for long, or have given up.
func (x *diagnosis) suffering() bool {
	return x.Callers > 0 && x.OldestWaitSeconds >= longWait || x.RecentTimeouts > 0
}

// severe is Critical if callers suffer, and otherwise what is given.
func (x *diagnosis) severe(otherwise string) string {
	if x.suffering() {
		return Critical
	}
	return otherwise
}

// room is how many connections Postgres has for the fleet, others' deducted; -1 if it is not known.
func (x *diagnosis) room() int {
	if x.Postgres == nil {
		return -1
	}
	return max(0, x.Postgres.Usable()-x.Postgres.Others)
}

// since is how long ago a time was.
func (x *diagnosis) since(t time.Time) float64 { return max(0, x.At.Sub(t).Seconds()) }

// Worst is the severity of the worst finding, "" if there is none.
func (d Document) Worst() string {
	worst := ""
	for _, f := range d.Findings {
		if worst == "" || ranks[f.Severity] < ranks[worst] {
			worst = f.Severity
		}
	}
	return worst
}
