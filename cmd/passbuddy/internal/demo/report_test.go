package demo

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

func TestTable(t *testing.T) {
	without, with := testResult("without PassBuddy", 10, 22, 22), testResult("with PassBuddy", 10,
		20, 20)
	without.counts = fleet.Counts{Operations: 12_345, Refused: 1_234_567, Failed: 2}
	without.failures = map[string]int64{"connection reset": 2}
	without.served = 22
	with.counts = fleet.Counts{Operations: 18_000}
	with.served = 320
	with.wait.Record(1500 * time.Microsecond)
	with.total.Record(250 * time.Millisecond)

	var out bytes.Buffer
	writeTable(&out, testOptions(), []*result{without, with})
	for _, line := range []string{
		"operations/s 1,235 1,800",
		"failed: too many clients 1,234,567 0",
		"failed: other errors 2 0",
		"goroutines ever served 22 of 320 320 of 320",
		"wait for a connection, p99 - 1.50 ms",
		"whole operation, p50 - 250 ms",
		"peak of backends (cap 20) 22 20",
		"without PassBuddy: 2 x connection reset",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), line) {
			t.Errorf("no line %q in:\n%s", line, &out)
		}
	}
}

func TestVerdict(t *testing.T) {
	o := testOptions()
	for name, c := range map[string]struct {
		peak   int
		counts fleet.Counts
		want   string // part of the error
	}{
		"kept":       {20, fleet.Counts{Operations: 9}, ""},
		"exceeded":   {21, fleet.Counts{Operations: 9}, "21 backends"},
		"refused":    {20, fleet.Counts{Operations: 9, Refused: 1}, "1 operations failed"},
		"failed":     {20, fleet.Counts{Operations: 9, Failed: 3}, "3 operations failed"},
		"no success": {20, fleet.Counts{}, "no operation"},
	} {
		var out bytes.Buffer
		err := verdict(&out, o, &result{peak: c.peak, counts: c.counts})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if (out.Len() > 0) != (c.want == "") {
			t.Errorf("%s: says %q", name, &out)
		}
	}
}
