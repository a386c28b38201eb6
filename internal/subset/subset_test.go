package subset

import (
	"slices"
	"strconv"
	"testing"
)

func TestOf(t *testing.T) {
	cases := make([]int, 100)
	for i := range cases {
		cases[i] = i
	}
	some := Of(t, 30, cases)
	if want := Length(30, 100); len(some) != want {
		t.Errorf("%d cases, want %d", len(some), want)
	}
	if !slices.IsSorted(some) || len(slices.Compact(slices.Clone(some))) != len(some) {
		t.Errorf("out of order, or twice: %v", some)
	}
	if all := Of(t, 100, cases); !slices.Equal(all, cases) {
		t.Errorf("100 of 100: %v", all)
	}
}

func TestTheSeedRepeatsADraw(t *testing.T) {
	first, second := draw(t, 5, 1000), draw(t, 5, 1000)
	if slices.Equal(first, second) {
		t.Errorf("drawn twice: %v", first)
	}
	delete(draws.of, t.Name())
	if again := draw(t, 5, 1000); !slices.Equal(again, first) {
		t.Errorf("the same seed draws %v, and then %v", first, again)
	}
}

func TestLength(t *testing.T) {
	if n, want := Length(1, 2), map[bool]int{false: 1, true: 2}[Full()]; n != want {
		t.Errorf("%d, want %d", n, want)
	}
}

func TestSometimes(t *testing.T) {
	ran := 0
	for n := range 200 {
		t.Run(strconv.Itoa(n), func(t *testing.T) { // a name of its own draws by itself
			Sometimes(t, 4)
			ran++
		})
	}
	if Full() && ran != 200 || !Full() && (ran < 10 || ran > 100) {
		t.Errorf("ran %d times of 200, want one in four", ran)
	}
}
