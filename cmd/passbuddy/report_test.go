package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestTable(t *testing.T) {
	without, with := testResult("without PassBuddy", 10, 22, 22), testResult("with PassBuddy", 10, 20, 20)
	without.counts = counts{Operations: 12_345, Refused: 1_234_567, Failed: 2}
	without.failures = map[string]int64{"connection reset": 2}
	without.served = 22
	with.counts = counts{Operations: 18_000}
	with.served = 320
	with.wait.record(1500 * time.Microsecond)
	with.total.record(250 * time.Millisecond)

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
		counts counts
		want   string // part of the error
	}{
		"kept":       {20, counts{Operations: 9}, ""},
		"exceeded":   {21, counts{Operations: 9}, "21 backends"},
		"refused":    {20, counts{Operations: 9, Refused: 1}, "1 operations failed"},
		"failed":     {20, counts{Operations: 9, Failed: 3}, "3 operations failed"},
		"no success": {20, counts{}, "no operation"},
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

func TestThousands(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 123456: "123,456", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) is %q, want %q", n, got, want)
		}
	}
}

func TestFailuresAreGrouped(t *testing.T) {
	w := &worker{failures: make(map[string]int64)}
	refused := &pgconn.PgError{Code: tooManyClients, Message: "sorry, too many clients already"}
	w.fail(fmt.Errorf("connect: %w", refused))
	for range 2 {
		w.fail(errors.New("broken\n  pipe"))
	}
	w.fail(errors.New(strings.Repeat("ä", 1000)))
	for i := range 2 * maxFailures {
		w.fail(fmt.Errorf("failure %d", i))
	}
	r := w.report()
	if r.Refused != 1 || r.Failed != int64(3+2*maxFailures) {
		t.Errorf("refused %d, failed %d", r.Refused, r.Failed)
	}
	if w.failures["broken pipe"] != 2 || w.failures["others"] == 0 || len(w.failures) > maxFailures+1 {
		t.Errorf("failures: %v", w.failures)
	}
	for text := range w.failures {
		if len(text) > maxFailureLen+3 {
			t.Errorf("a text of %d bytes", len(text))
		}
	}
}
