package fleet

import (
	"testing"
	"time"
)

// Workers that join and leave under load report like the others. Those that left report early.
func TestFleetChangesUnderLoad(t *testing.T) {
	cfg := fleetConfig(t)
	cfg.Graceful = true
	f, err := Start(testContext(t), []Config{cfg, cfg})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Kill()
	from := time.Now()
	span := Span{Begin: from, From: from, Until: from.Add(time.Minute)}
	if err := f.BeginSpan(span); err != nil {
		t.Fatal(err)
	}
	if err := f.Join(testContext(t), cfg, span); err != nil {
		t.Fatal(err)
	}
	if err := f.Leave(0); err != nil {
		t.Fatal(err)
	}
	select {
	case <-f.members[0].ended:
	case <-testContext(t).Done():
		t.Fatal("a worker that was told to leave still runs")
	}
	waitFor(t, "failures of the worker that joined", func() bool {
		return f.members[2].report().Failed > 0
	})
	reports, err := f.Finish()
	if err != nil || len(reports) != 3 {
		t.Fatalf("%d final reports, %v", len(reports), err)
	}
	for i, r := range reports {
		if r.Failed == 0 || len(r.Progress.Bins) != int(time.Minute/BinWidth) {
			t.Errorf("worker %d: %+v", i, r.Counts)
		}
		if r.Connects.Total() == 0 {
			t.Errorf("worker %d counted no connects", i)
		}
	}
	expectEnded(t, f)
	if err := f.Leave(0); err == nil {
		t.Error("Leave accepted a worker that has ended")
	}
}

func TestWorkersThatCannotJoinSayWhy(t *testing.T) {
	f, err := Start(testContext(t), []Config{fleetConfig(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Kill()
	bad := fleetConfig(t)
	bad.PostgresURL = "postgres://%zz"
	if err := f.Join(testContext(t), bad, Span{}); err == nil {
		t.Error("Join accepted a worker without a URL")
	}
}
