package bench

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"strings"
	"testing"
	"time"
)

func parse(t *testing.T, args ...string) Options {
	t.Helper()
	o, err := ParseOptions(args, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// planText returns a plan in short: one line for each scenario.
func planText(plan []scenario) string {
	var lines []string
	for _, s := range plan {
		lines = append(lines,
			strings.Join([]string{string(s.integration), s.workload.name, s.shape.name,
				names(s.strategies)}, " "))
	}
	return strings.Join(lines, "\n")
}

func TestOptionDefaults(t *testing.T) {
	o := parse(t)
	if o.capacity != 20 || o.rounds != 2 || o.duration != 2300*time.Millisecond ||
		o.warmup != 2*time.Second ||
		o.execMode != "best" || o.json != "passbuddy-bench.json" || o.svg != "passbuddy-bench" ||
		o.markdown != "" {
		t.Errorf("cap %d, %d rounds of %v after %v, mode %s", o.capacity, o.rounds, o.duration,
			o.warmup, o.execMode)
	}
	plan := planText(o.plan)
	everything := names(allStrategies)
	for _, line := range []string{
		"pgxpool select1 4x50 " + everything, "pgxpool select1 16x12 " + everything,
		"pgxpool select1 20x10 " + everything,
		"pgxpool select1 40x5 " + everything, "pgxpool select1 uneven " + everything,
		"pgxpool 5ms 40x5 " + everything,
		"pgxpool tx uneven " + everything,
		"sql select1 4x50 static,pgbouncer-tx,passbuddy,passbuddy-checkout",
	} {
		if !strings.Contains(plan+"\n", line+"\n") {
			t.Errorf("the full plan lacks %q:\n%s", line, plan)
		}
	}
}

func TestPlans(t *testing.T) {
	everything := names(allStrategies)
	for args, want := range map[string]string{
		"-quick": "pgxpool select1 4x50 " + everything +
			"\nsql select1 4x50 " + everything,
		"-quick -strategies static": "pgxpool select1 4x50 static\nsql select1 4x50 static",
		"-workloads tx -shapes 3x7": "pgxpool tx 3x7 " + everything,
		"-quick -workloads 5ms,select1 -shapes 4x50": "pgxpool 5ms 4x50 " + everything +
			"\npgxpool select1 4x50 " + everything,
		"-integration sql -workloads tx -strategies passbuddy,static": "sql tx 4x50 passbuddy,static\n" +
			"sql tx 16x12 passbuddy,static\n" +
			"sql tx 40x5 passbuddy,static\nsql tx uneven passbuddy,static",
		"-integration sql,sql -workloads tx -shapes 1x9+2x3 -strategies bare,bare": "sql tx " +
			"1x9+2x3 bare",
	} {
		if got := planText(parse(t, strings.Fields(args)...).plan); got != want {
			t.Errorf("%s: the plan is\n%s\nwant\n%s", args, got, want)
		}
	}
	if o := parse(t, "-quick"); o.rounds != 2 || o.duration != 1500*time.Millisecond {
		t.Errorf("-quick: %d rounds of %v", o.rounds, o.duration)
	}
	if o := parse(t, "-quick", "-rounds", "5", "-duration", "1s"); o.rounds != 5 ||
		o.duration != time.Second {
		t.Errorf("-quick with others: %d rounds of %v", o.rounds, o.duration)
	}
}

func TestOptionsRefused(t *testing.T) {
	for _, args := range []string{
		"-cap 0", "-cap -1", "-cap 5000", "-cap many", "-rounds 0", "-rounds -3", "-duration 0s",
		"-duration 99ms", "-duration 2h", "-duration 5",
		"-warmup -1s", "-warmup 2m", "-exec-mode fast", "-integration gorm",
		"-integration pgxpool,", "-strategies pgbouncer", "-strategies static,,bare",
		"-workloads select2", "-tables fast", "-tables open -shapes 4x50",
		"-strategies bare -tables cold", "-match [", "-match nothing-like-it", "-shapes 4",
		"-shapes 4x", "-shapes 0x5", "-shapes 4x-1", "-shapes 1000x2", "-shapes 4x5000",
		"-shapes 1x2+3x4+5x6", "-shapes 4x50,odd",
		"-quick=perhaps",
	} {
		name, _, _ := strings.Cut(args, " ")
		name, _, _ = strings.Cut(name, "=")
		if _, err := ParseOptions(strings.Fields(args), io.Discard); err == nil ||
			!strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v does not name %s", args, err, name)
		}
	}
	if _, err := ParseOptions([]string{"now"}, io.Discard); err == nil ||
		!strings.Contains(err.Error(), `"now"`) {
		t.Errorf("with an extra argument: %v", err)
	}
}

func TestOptionHelp(t *testing.T) {
	var help bytes.Buffer
	if _, err := ParseOptions([]string{"-h"}, &help); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
	for _, name := range []string{"-tables", "-match", "-integration", "-strategies", "-workloads",
		"-shapes", "-duration", "-rounds", "-warmup", "-cap", "-exec-mode",
		"-json", "-svg", "-markdown", "-quick"} {
		if !strings.Contains(help.String(), "  "+name) {
			t.Errorf("help does not mention %s", name)
		}
	}
}
