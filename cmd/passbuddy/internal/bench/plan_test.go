package bench

import (
	"slices"
	"strings"
	"testing"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

func TestPools(t *testing.T) {
	for _, c := range []struct {
		shape    string
		strategy strategy
		control  bool
		want     []int
	}{
		{"4x50", static, false, []int{5, 5, 5, 5}},
		{"16x12", static, false, []int{2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
		{"1x200+7x2", static, false, []int{3, 3, 3, 3, 2, 2, 2, 2}},
		// the same as beside the greedy one
		{"1x200+7x2", static, true, []int{3, 3, 3, 2, 2, 2, 2}},
		{"1x200+2x2", perConn, false, []int{200, 2, 2}},
		{"1x200+2x2", bouncerTx, true, []int{2, 2}},
		{"2x9", bare, false, []int{9, 9}},
	} {
		sp := spec{scenario: scenario{shape: mustShape(c.shape)}, strategy: c.strategy,
			control: c.control, capacity: 20}
		if got := sp.pools(); !slices.Equal(got, c.want) {
			t.Errorf("%s %s, control %v: pools of %v, want %v", c.shape, c.strategy.name, c.control,
				got, c.want)
		}
	}
}

func TestCellsThatCannotBeRun(t *testing.T) {
	for _, c := range []struct {
		shape    string
		strategy strategy
		missing  bool
		want     string
	}{
		{"40x5", static, false, "impossible"}, {"20x5", static, false, ""},
		{"40x5", perConn, true, ""},
		{"4x50", bouncerTx, true, "not installed"}, {"4x50", bouncerS, true, "not installed"},
		{"4x50", bouncerS, false, ""},
	} {
		got := spec{scenario: scenario{shape: mustShape(c.shape)}, strategy: c.strategy,
			capacity: 20}.impossible(c.missing)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s %s, PgBouncer missing %v: %q, want %q", c.shape, c.strategy.name,
				c.missing, got, c.want)
		}
	}
}

func TestExecModeForPgBouncer(t *testing.T) {
	for version, want := range map[string]string{
		"": "cache_statement", "1.18.0": "exec", "1.20.1": "exec", "1.21.0": "cache_statement",
		"1.24": "cache_statement", "2.0": "cache_statement", "of today": "exec",
	} {
		if got := execModeFor(version); got != want {
			t.Errorf("PgBouncer %q: %s, want %s", version, got, want)
		}
	}
}

// A strategy with an integration of its own runs through that one, beside the others.
func TestStrategiesWithTheirOwnIntegration(t *testing.T) {
	o := parse(t, "-tables", "open", "-match", "2 ms.*even.*10 %")
	cells := newCells(o, &servers{pgBouncerVersion: "1.21.0"})
	for _, c := range cells {
		want := fleet.Pgxpool
		if c.Strategy == perConnSQL.name {
			want = fleet.SQL
		}
		if c.Integration != want || string(c.spec.integration()) != want {
			t.Errorf("%s runs through %s", c.Strategy, c.Integration)
		}
	}
	if groups := (&report{Cells: cells}).groups(); len(groups) != 1 || len(groups[0]) != 5 {
		t.Errorf("%d groups of %d cells, want one", len(groups), len(cells))
	}
}
