package pgxpool

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Two returns wake two callers, which do not both take the first idle connection for theirs.
func TestArrivalsWaitForTheirOwn(t *testing.T) {
	cfg, err := pgxpool.ParseConfig("")
	if err != nil {
		t.Fatal(err)
	}
	// never connects: arrive waits for its longest time
	none, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer none.Close()

	p := new(pool)
	type key struct{}
	outer := context.WithValue(t.Context(), key{}, "the caller's")
	first, second := p.arrive(outer, none), p.arrive(outer, none)
	if first.Value(key{}) != "the caller's" {
		t.Error("the caller's values are lost")
	}
	for _, tt := range []struct {
		when string
		do   func()
		idle int32
		want bool
	}{
		{"nothing is idle", func() {}, 0, false},
		{"one is idle, for the first", func() {}, 1, false},
		{"two are idle", func() {}, 2, true},
		{"one is idle, and the first has its own", p.checkoutAbove(first).endArrival, 1, true},
		{"none is idle, and the first has said so twice", p.checkoutAbove(first).endArrival, 0,
			false},
	} {
		tt.do()
		if got := p.arrivals.served(2, tt.idle); got != tt.want {
			t.Errorf("%s: served is %v for the second", tt.when, got)
		}
	}
	p.checkoutOf(second).endArrival()
	if come, through := p.arrivals.come.Load(), p.arrivals.through.Load(); come != through {
		t.Errorf("%d callers arrived, %d went on", come, through)
	}
}
