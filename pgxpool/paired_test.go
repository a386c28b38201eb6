package pgxpool_test

import (
	"context"
	"fmt"
	"sort"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

)

func TestPaired(t *testing.T) {
	f := newFleet(t, 10)
	bare, _ := pgxpool.NewWithConfig(context.Background(), f.config(""))
	defer bare.Close()
	cc := f.config(""); cc.ConnConfig.Tracer = &emptyTracer{}; cc.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) { return true, nil }; pass, _ := pgxpool.NewWithConfig(context.Background(), cc); defer pass.Close()
	ctx := context.Background()
	run := func(p *pgxpool.Pool) float64 {
		const n = 3000
		t0 := time.Now()
		for range n {
			c, err := p.Acquire(ctx)
			if err != nil {
				t.Fatal(err)
			}
			c.Release()
		}
		return float64(time.Since(t0).Nanoseconds()) / n
	}
	run(bare)
	run(pass)
	var r, b, p []float64
	for range 1500 {
		x, y := run(bare), run(pass)
		b, p, r = append(b, x), append(p, y), append(r, y/x)
	}
	sort.Float64s(r)
	sort.Float64s(b)
	sort.Float64s(p)
	q := func(s []float64, f float64) float64 { return s[int(f*float64(len(s)-1))] }
	for _, f := range []float64{0.02, 0.25, 0.5} {
		fmt.Printf("q%.2f bare %.1f pass %.1f  ratio-of-q %.3f  q-of-ratio %.3f\n", f, q(b, f), q(p, f), q(p, f)/q(b, f), q(r, f))
	}
}
