package bench

import (
	"os"
	"testing"
)

func TestParseStat(t *testing.T) {
	text := "4242 (a) (b 9) S 17 4242 4242 0 -1 4194560 100 200 0 0 11 22 300 4000 20 0 1 0 5 " +
		"1000 10"
	pid, p, err := parseStat([]byte(text))
	if want := (process{parent: 17, own: 33, reaped: 4300}); err != nil || pid != 4242 ||
		p != want {
		t.Errorf("process %d: %+v, %v; want %+v", pid, p, err, want)
	}
	for _, bad := range []string{"", "(", "1 (x", "x (y) S 1", "1 (y) S 1 2 3",
		"1 (y) S x 4242 4242 0 -1 4194560 100 200 0 0 11 22 300 4000 20 0"} {
		if _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestCPUOfEveryPart(t *testing.T) {
	got := cpuParts{fleet: []int{10, 11}, postgres: 20, redis: 30}.sum(map[int]process{
		1: {own: 7}, 10: {parent: 1, own: 100}, 11: {parent: 1, own: 200},
		30: {parent: 1, own: 400},
		20: {parent: 1, own: 1000, reaped: 5000}, 21: {parent: 20, own: 300},
		22: {parent: 20, own: 200},
	})
	if want := (cpuSeconds{known: true, fleet: 3, postgres: 65, redis: 4}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestReadCPU(t *testing.T) {
	// we are a child of what starts us
	parts := cpuParts{fleet: []int{os.Getpid()}, postgres: os.Getppid()}
	before, err := readCPU(parts)
	if err != nil || !before.known {
		t.Fatalf("%+v, %v", before, err)
	}
	if before.redis != 0 || before.pgBouncer != 0 {
		t.Errorf("time of processes that are not there: %+v", before)
	}
	for x := 1.0; ; x *= 1.0000001 { // until the kernel has noticed: its ticks are 10 ms
		after, err := readCPU(parts)
		if err != nil {
			t.Fatal(err)
		}
		if d := after.since(before); d.fleet > 0 {
			if d.postgres < d.fleet-0.001 { // less than a tick: sums of seconds are rounded
				t.Errorf("a parent's time grew by %vs, that of its child by %vs", d.postgres,
					d.fleet)
			}
			return
		}
	}
}
