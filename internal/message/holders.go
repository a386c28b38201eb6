package message

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// LongUse is how long a checkout lasts that PoolFigures.LongUse counts. It is twice the default
// AcquireTimeout: a caller that began to wait with it has been refused by then. Requests end long
// before. A report may take as long, and is then worth to be known: no recall takes its permit.
const LongUse = time.Minute

const (
	// HeldDocument is where it is told what to do about connections that stay out.
	HeldDocument = "docs/HELD-CONNECTIONS.md"
	// OutCause is why connections may not come back. From here the causes look the same.
	OutCause = "either their work takes as long, or their callers keep them, " +
		"or callers hold one while they ask for another and wait for each other"
)

// Holders are connections of a fleet that no recall takes back for long.
type Holders struct {
	Hijacked int
	Long     int           // others, in use for LongUse or longer
	Oldest   time.Duration // how long the first of all these has been in use
}

// Add adds those of a pool. Another version of this library, or a hand, may have written f.
func (h *Holders) Add(f PoolFigures) {
	sane := func(n int) int { return min(max(0, n), 1_000_000) }
	hijacked := sane(f.Hijacked)
	long := max(0, sane(f.LongUse)-hijacked)
	if hijacked+long > 0 {
		h.Hijacked += hijacked
		h.Long += long
		h.Oldest = max(h.Oldest, f.OldestUse)
	}
}

// Of says which of the permits of a capacity they hold, "" if they are none.
func (h Holders) Of(capacity int) string {
	by := ""
	switch {
	case h.Hijacked > 0 && h.Long > 0:
		by = fmt.Sprintf("hijacked connections (%d) and by others in use for over a minute (%d)",
			h.Hijacked, h.Long)
	case h.Hijacked > 0:
		by = "hijacked connections"
	case h.Long > 0:
		by = "connections in use for over a minute"
	default:
		return ""
	}
	text := fmt.Sprintf("%d of %d permits are held by %s", h.Hijacked+h.Long, capacity, by)
	if h.Oldest >= time.Second { // else a look has met them just now, and their age is not known
		text += ", the oldest for " + seconds(h.Oldest)
	}
	return text
}

// Out counts the connections that the pools of a session have in use while callers wait.
type Out struct {
	// InUse and Waiting are in words, by pool, for how many connections and callers how long.
	InUse, Waiting string
	Newest         time.Duration // all that is in use is so for that long at least
	Waited         time.Duration // by the caller that waits longest
}

// NewOut sums up, if a caller has waited for that long. Newest is 0 where hijacked connections
// alone are in use: of those Holders tells. It is 0 where a connection is being opened, too: that
// serves a caller soon.
func NewOut(pools []PoolFigures, waited time.Duration) (o Out) {
	for _, p := range pools {
		o.Waited = max(o.Waited, p.OldestWait)
	}
	if o.Waited < waited {
		return Out{}
	}
	newest, pooled, opening := time.Duration(math.MaxInt64), 0, 0
	var inUse, waiting []string
	say := func(list *[]string, name string, n int, text string) {
		if n > 0 && len(*list) < maxPoolsShown {
			*list = append(*list, fmt.Sprintf("%s: %d for %s", name, n, text))
		}
	}
	for _, p := range pools {
		pooled, opening = pooled+p.InUse-p.Hijacked, opening+p.Opening
		if p.InUse > 0 {
			newest = min(newest, p.NewestUse)
		}
		say(&waiting, p.Name, p.Waiting, seconds(p.OldestWait))
		say(&inUse, p.Name, p.InUse, seconds(p.NewestUse)+" to "+seconds(p.OldestUse))
	}
	if pooled > 0 && opening == 0 {
		o.Newest = newest
	}
	o.InUse, o.Waiting = strings.Join(inUse, ", "), strings.Join(waiting, ", ")
	return o
}

func seconds(d time.Duration) string { return d.Round(time.Second).String() }
