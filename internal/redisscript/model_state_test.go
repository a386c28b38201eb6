package redisscript

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A state is all that the semaphore keeps in Redis, key by key. The model compares values as they
// are stored, so no fault hides behind a way to read them.
type state struct {
	Permits    map[string]int64
	Queue      map[string]int64
	Meta       map[string]string
	Sessions   map[string]int64
	Info       map[string]string
	Capacities map[string]int64
	Levels     map[string]float64
	Held       map[string]int64
	Debts      map[string]int64
	Promises   map[string]int64
	Reserves   map[string]int64
	Backends   map[string]string
	Quarantine map[string]string
	Recalls    map[string]int64
	Moves      map[string]int64
}

func (s *state) clone() *state {
	return &state{
		maps.Clone(s.Permits), maps.Clone(s.Queue), maps.Clone(s.Meta), maps.Clone(s.Sessions),
		maps.Clone(s.Info), maps.Clone(s.Capacities), maps.Clone(s.Levels), maps.Clone(s.Held),
		maps.Clone(s.Debts), maps.Clone(s.Promises), maps.Clone(s.Reserves),
		maps.Clone(s.Backends), maps.Clone(s.Quarantine), maps.Clone(s.Recalls),
		maps.Clone(s.Moves),
	}
}

// diff lists the fields of s that differ from want; "" if none does.
func (s *state) diff(want *state) string {
	var out []string
	got, wanted := reflect.ValueOf(*s), reflect.ValueOf(*want)
	for i := range got.NumField() {
		g, w := got.Field(i), wanted.Field(i)
		if g.Len() == 0 && w.Len() == 0 || reflect.DeepEqual(g.Interface(), w.Interface()) {
			continue
		}
		name := strings.ToLower(got.Type().Field(i).Name)
		for _, key := range w.MapKeys() {
			if is := g.MapIndex(key); !is.IsValid() {
				out = append(out,
					fmt.Sprintf("%s: %q is missing, want %v", name, key, w.MapIndex(key)))
			} else if !is.Equal(w.MapIndex(key)) {
				out = append(out,
					fmt.Sprintf("%s: %q is %v, want %v", name, key, is, w.MapIndex(key)))
			}
		}
		for _, key := range g.MapKeys() {
			if !w.MapIndex(key).IsValid() {
				out = append(out, fmt.Sprintf("%s: %q is %v, want none", name, key, g.MapIndex(key)))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func (s *state) num(field string) int64 {
	n, _ := strconv.ParseInt(s.Meta[field], 10, 64)
	return n
}

func (s *state) setNum(field string, n int64) { s.Meta[field] = strconv.FormatInt(n, 10) }

// setSkew stores no skew as zero does: the scripts read both alike.
func (s *state) setSkew(n int64) {
	delete(s.Meta, "skew")
	if n != 0 {
		s.setNum("skew", n)
	}
}

// tally counts the recalls from a pool.
func (s *state) tally(pool string) message.Tally {
	return message.Tally{Recalled: s.Recalls["+"+pool], Withdrawn: s.Recalls["-"+pool]}
}

// wants returns how many permits a request asks for, from its score in the queue.
func wants(score int64) int64 { return score%oracleWants + 1 }

// queued lists the requests of the queue, the next one to be granted first.
func (s *state) queued() []string { return byScore(s.Queue) }

// byScore lists a sorted set as Redis does: by score, then by name.
func byScore[N cmp.Ordered](set map[string]N) []string {
	return slices.SortedFunc(maps.Keys(set), func(a, b string) int {
		return cmp.Or(cmp.Compare(set[a], set[b]), cmp.Compare(a, b))
	})
}

// held lists the permits that count for their sessions and pools. A permit in quarantine counts for
// none.
func (s *state) held() (ids []string) {
	for id := range s.Permits {
		if !s.inQuarantine(id) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (s *state) inQuarantine(id string) bool { _, is := s.Quarantine[id]; return is }

// counts reports whether a permit counts for its session.
func (s *state) counts(id string) bool {
	_, there := s.Permits[id]
	return there && !s.inQuarantine(id)
}

// live counts the permits whose lease has not expired.
func (s *state) live(now int64) int64 {
	n := int64(0)
	for _, expiry := range s.Permits {
		if expiry > now {
			n++
		}
	}
	return n
}

// pools are all pools that hold permits, or of which Redis says so.
func (s *state) pools() map[string]bool {
	out := make(map[string]bool)
	for pool := range s.Held {
		out[pool] = true
	}
	for id := range s.Permits {
		out[poolOf(id)] = true
	}
	return out
}

func (s *state) isLive(session string, now int64) bool { return s.Sessions[session] > now }

// A UUID names its owner: the session, its weight, and the pool. See common.lua.

func sessionOf(id string) string { return chars(id, 0, 18) }
func poolOf(id string) string    { return chars(id, 0, 23) }
func isPooled(id string) bool    { return chars(id, 19, 23) != message.Plain }

// isOurs reports whether the UUID is one of this client. Other clients make UUIDs of version 4.
func isOurs(id string) bool { return chars(id, 14, 15) == "8" }

func chars(s string, from, to int) string {
	from, to = min(from, len(s)), min(to, len(s))
	return s[from:to]
}

func weightOf(id string) int64 {
	w, _ := strconv.ParseInt(chars(id, 15, 17), 16, 64)
	return max(1, w)
}

// parsed splits a stored request into the lease that it asks for, in ms, and its UUIDs.
func parsed(request string) (ttl int64, ids []string) {
	fields := strings.Fields(request)
	if len(fields) < 2 {
		return 0, nil
	}
	ttl, _ = strconv.ParseInt(fields[0], 10, 64)
	return ttl, fields[1:]
}
