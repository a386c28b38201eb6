package allotment_test

import (
	"testing"
	"testing/synctest"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// A caller claims the idle connection of a wrapper, and is done with it. The wrapper has it again if
// it has not found out meanwhile. Otherwise the connection is in no wrapper, and that wrapper never
// touches it again.
func TestUnclaim(t *testing.T) {
	for name, test := range map[string]struct {
		meanwhile func(wrapped *allotment.Slot, generation uint32) // nil: nothing
		waits     bool                                             // another caller waits
		unclaims  bool
		parked    int // connections in no wrapper at the end
	}{
		"nothing happens": {unclaims: true},
		"the wrapper is checked out": {meanwhile: func(s *allotment.Slot, generation uint32) {
			if s.Retake(generation) {
				panic("two have one connection")
			}
		}, parked: 1},
		"the wrapper is closed": {meanwhile: func(s *allotment.Slot, generation uint32) {
			if s.LeaveAt(generation) {
				panic("a connection is closed in use")
			}
		}, parked: 1},
		"a wrapper of long ago is closed": {meanwhile: func(s *allotment.Slot, generation uint32) {
			s.LeaveAt(generation - 1)
		}, unclaims: true},
		"a caller waits": {waits: true},
	} {
		t.Run(name, func(t *testing.T) {
			inFleet(t, 1, func(t *testing.T, fl *fleet) {
				p := fl.start(allotment.Options{})
				s := p.hold(t.Context())
				s.Keep()
				p.hold(t.Context()) // claims it, so that there was a generation before
				generation := s.Generation()
				s.Keep()
				for range 2 {
					if p.hold(t.Context()) != s || s.Generation() == generation {
						t.Fatal("the idle connection is not claimed")
					}
					var other *allotment.Slot
					if test.waits {
						go func() { other = p.hold(t.Context()) }()
						synctest.Wait()
					}
					if test.meanwhile != nil {
						test.meanwhile(s, generation)
					}
					if got := s.Unclaim(); got != test.unclaims {
						t.Fatalf("the wrapper has its connection again: %v, want %v", got, test.unclaims)
					}
					if test.unclaims {
						continue
					}
					if !s.Park() {
						t.Fatal("the connection ends")
					}
					if synctest.Wait(); test.waits {
						if other != s {
							t.Fatal("the caller that waits does not have the connection")
						}
						p.release(s)
					}
					if s.Retake(generation) || s.LeaveAt(generation) {
						t.Error("the wrapper takes a connection that it has lost")
					}
					break
				}
				if test.unclaims && !s.Retake(generation) {
					t.Fatal("the wrapper cannot use the connection that it has again")
				}
				if test.unclaims {
					p.release(s)
				}
				if old, _ := p.SweepParked(0); len(old) != test.parked {
					t.Errorf("%d connections are in no wrapper, want %d", len(old), test.parked)
				}
				p.end(s)
			})
		})
	}
}
