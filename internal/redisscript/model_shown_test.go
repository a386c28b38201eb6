package redisscript

import (
	"flag"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// How a history that fails is shown, and made smaller first.

// shown prints arguments or a reply as a Go literal, without the fields that are not set.
type shown struct{ v any }

func (s shown) String() string {
	v := reflect.ValueOf(s.v)
	var parts []string
	for i := range v.NumField() {
		if f := v.Field(i); !f.IsZero() && !(f.Kind() == reflect.Slice && f.Len() == 0) {
			parts = append(parts, fmt.Sprintf("%s: %v", v.Type().Field(i).Name, f))
		}
	}
	return fmt.Sprintf("%s{%s}", v.Type().Name(), strings.Join(parts, ", "))
}

// uuids finds names of sessions, pools and permits, and times.
var uuids = regexp.MustCompile(`000000([0-9a-f]{2})-([0-9a-f]{4})-8[0-9a-f]{2}0` +
	`(?:-8([0-9a-f]{3}))?(?:-([0-9a-f]{12}))?|\b179[0-9]{10}\b`)

// short gives them short names. The first session, in slot a, is a1. Its second pool is a1/2, and
// a1/2#7 is a permit of that pool; no pool holds a1#7. Times count from the start.
func short(text string) string {
	return uuids.ReplaceAllStringFunc(text, func(id string) string {
		m := uuids.FindStringSubmatch(id)
		if m[1] == "" {
			n, _ := strconv.ParseInt(id, 10, 64)
			return "T" + fmt.Sprintf("%+d", n-modelStart)
		}
		number := func(hex string) int64 { n, _ := strconv.ParseInt(hex, 16, 64); return n }
		name := string(rune('a'+number(m[1])-0xa0)) + strconv.FormatInt(number(m[2]), 10)
		if m[3] != "" && m[3] != "000" {
			name += "/" + strconv.FormatInt(number(m[3]), 10)
		}
		if m[4] != "" {
			name += "#" + strconv.FormatInt(number(m[4]), 10)
		}
		return name
	})
}

// shrinkFor bounds how long a history that fails is made smaller.
var shrinkFor = flag.Duration("shrink", 20*time.Second,
	"how long the model makes a history smaller that fails")

// shrunk shows a history that fails, without the steps and faults that it does not take. The rest
// of it still breaks the same property.
func shrunk(p *plan, at place, k Keys, failedAt int, why string, faults []string) string {
	property, _, _ := strings.Cut(why, ":")
	finish := failedAt == len(p.steps)
	if !finish {
		p.steps = p.steps[:failedAt+1]
	}
	fails := func(steps []step, unharmed map[string]bool) bool {
		with := *p
		with.unharmed = unharmed
		why, _ := (&trial{plan: &with, place: at, keys: k}).run(steps, finish)
		return strings.HasPrefix(why, property)
	}
	end := time.Now().Add(*shrinkFor)
	rest := p.steps
	for size := len(rest) / 2; size >= 1 && time.Now().Before(end); {
		smaller := false
		for from := 0; from < len(rest) && time.Now().Before(end); {
			without := slices.Concat(rest[:from], rest[min(from+size, len(rest)):])
			if fails(without, p.unharmed) {
				rest, smaller = without, true
			} else {
				from += size
			}
		}
		if !smaller || size > 1 {
			size /= 2
		}
	}
	// A history whose messages arrive is easier to read. By now they have other numbers.
	tr := &trial{plan: p, place: at, keys: k}
	tr.run(rest, finish)
	for _, fault := range append(tr.faults, faults...) {
		unharmed := maps.Clone(p.unharmed)
		if unharmed[fault] = true; time.Now().Before(end) && fails(rest, unharmed) {
			p.unharmed = unharmed
		}
	}
	var lines []string
	tr = &trial{plan: p, place: at, keys: k}
	tr.trace = func(line string) {
		lines = append(lines, fmt.Sprintf("%10v  %s", tr.now, short(line)))
	}
	why, _ = tr.run(rest, finish)
	return fmt.Sprintf("capacity %d, leases of %v, a round trip takes %v, %d steps left:\n%s\n%s",
		p.capacity, p.ttl, p.roundTrip, len(rest), strings.Join(lines, "\n"), short(why))
}
