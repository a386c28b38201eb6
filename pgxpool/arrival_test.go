package pgxpool

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Two who were woken by two returns do not both take the first connection that is idle for theirs.
func TestArrivalsWaitForTheirOwn(t *testing.T) {
	cfg, err := pgxpool.ParseConfig("")
	if err != nil {
		t.Fatal(err)
	}
	none, err := pgxpool.NewWithConfig(t.Context(), cfg) // connects to nothing: arrive waits for as long as it ever does
	if err != nil {
		t.Fatal(err)
	}
	defer none.Close()

	var a arrivals
	type key struct{}
	outer := context.WithValue(t.Context(), key{}, "the caller's")
	first, second := a.arrive(outer, none), a.arrive(outer, none)
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
		{"one is idle, and the first has his", first.Value(arrivalKey{}).(*arrival).end, 1, true},
		{"one is idle, and the first has said so twice", first.Value(arrivalKey{}).(*arrival).end, 0, false},
	} {
		tt.do()
		if got := a.served(2, tt.idle); got != tt.want {
			t.Errorf("%s: served is %v for the second", tt.when, got)
		}
	}
	second.(*arrival).end()
	if come, through := a.come.Load(), a.through.Load(); come != through {
		t.Errorf("%d came, %d are through", come, through)
	}
}
