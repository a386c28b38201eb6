package allotment_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// A pool that was idle for long has left its session. A connection that it opens while Redis is
// away is counted in all the same once Redis is back, and ends with the session.
func TestAnIdlePoolFallsBackAndIsCountedIn(t *testing.T) {
	for _, closes := range []bool{false, true} {
		inFleet(t, 1, func(t *testing.T, fl *fleet) {
			fl.over = 1
			p := fl.start(allotment.Options{FallbackConns: 1})
			time.Sleep(time.Minute)
			fl.redis.SetError("LOADING Redis is away")
			time.Sleep(10 * time.Second)
			if err := p.use(t.Context(), time.Millisecond); err != nil {
				t.Fatal(err)
			}
			if f := p.Figures(); f.Idle != 1 || fl.held() != 0 {
				t.Fatalf("bug in the test: %+v, %d permits in Redis", f, fl.held())
			}
			time.Sleep(10 * time.Second)
			fl.redis.SetError("")
			if closes { // before anybody has heard that Redis is back
				_ = p.sem.Close()
				time.Sleep(time.Second)
				synctest.Wait()
				if n, _, _ := fl.witness(); n != 0 {
					t.Errorf("%d backends live after the session was closed, want none", n)
				}
				return
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if n, _, _ := fl.witness(); n != fl.held() {
				t.Errorf("%d backends, %d permits in Redis", n, fl.held())
			}
		})
	}
}
