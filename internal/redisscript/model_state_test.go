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

// A state is all that the semaphore keeps in Redis, key by key. Fields are compared as they are stored, so that nothing
// hides behind a way to read it.
type state struct {
	Permits    map[string]int64
	Queue      map[string]int64
	Meta       map[string]string
	Sessions   map[string]int64
	Info       map[string]string
	Capacities map[string]int64
	Shares     map[string]float64
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
		maps.Clone(s.Permits), maps.Clone(s.Queue), maps.Clone(s.Meta), maps.Clone(s.Sessions), maps.Clone(s.Info),
		maps.Clone(s.Capacities), maps.Clone(s.Shares), maps.Clone(s.Held), maps.Clone(s.Debts), maps.Clone(s.Promises),
		maps.Clone(s.Reserves), maps.Clone(s.Backends), maps.Clone(s.Quarantine), maps.Clone(s.Recalls), maps.Clone(s.Moves),
	}
}

// diff says where s is not what was expected, or nothing.
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
				out = append(out, fmt.Sprintf("%s: %q is missing, want %v", name, key, w.MapIndex(key)))
			} else if !is.Equal(w.MapIndex(key)) {
				out = append(out, fmt.Sprintf("%s: %q is %v, want %v", name, key, is, w.MapIndex(key)))
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

// setSkew: none is as good as zero.
func (s *state) setSkew(n int64) {
	delete(s.Meta, "skew")
	if n != 0 {
		s.setNum("skew", n)
	}
}

// tally is what a sharer was ever asked for.
func (s *state) tally(sharer string) message.Tally {
	return message.Tally{Recalled: s.Recalls["+"+sharer], Withdrawn: s.Recalls["-"+sharer]}
}

// wants is how many permits a request of that place in the queue is for.
func wants(score int64) int64 { return score%oracleWants + 1 }

// line is the queue in its order.
func (s *state) line() []string { return byScore(s.Queue) }

// byScore lists a sorted set as Redis does: by score, then by name.
func byScore[N cmp.Ordered](set map[string]N) []string {
	return slices.SortedFunc(maps.Keys(set), func(a, b string) int {
		return cmp.Or(cmp.Compare(set[a], set[b]), cmp.Compare(a, b))
	})
}

// held are the permits that count for their sessions and pools: those in quarantine are nobody's.
func (s *state) held() (ids []string) {
	for id := range s.Permits {
		if _, parted := s.Quarantine[id]; !parted {
			ids = append(ids, id)
		}
	}
	return ids
}

// live are the permits whose lease is not over.
func (s *state) live(now int64) int64 {
	n := int64(0)
	for _, expiry := range s.Permits {
		if expiry > now {
			n++
		}
	}
	return n
}

// sharers are all that hold permits, or are said to.
func (s *state) sharers() map[string]bool {
	out := make(map[string]bool)
	for sharer := range s.Held {
		out[sharer] = true
	}
	for id := range s.Permits {
		out[sharerOf(id)] = true
	}
	return out
}

func (s *state) isLive(session string, now int64) bool { return s.Sessions[session] > now }

// Who a UUID belongs to.
func cut(s string, from, to int) string {
	from, to = min(from, len(s)), min(to, len(s))
	return s[from:to]
}
func sessionOf(id string) string { return cut(id, 0, 18) }
func sharerOf(id string) string  { return cut(id, 0, 23) }
func isShared(id string) bool    { return cut(id, 19, 23) != message.Plain }

// isOurs: other clients make UUIDs of another version.
func isOurs(id string) bool { return cut(id, 14, 15) == "8" }
func weightOf(id string) int64 {
	w, _ := strconv.ParseInt(cut(id, 15, 17), 16, 64)
	return max(1, w)
}

// parsed splits a request into its lease and its UUIDs.
func parsed(request string) (ttl int64, ids []string) {
	fields := strings.Fields(request)
	if len(fields) < 2 {
		return 0, nil
	}
	ttl, _ = strconv.ParseInt(fields[0], 10, 64)
	return ttl, fields[1:]
}
