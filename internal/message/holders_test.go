package message

import (
	"testing"
	"time"
)

func TestHolders(t *testing.T) {
	const s = time.Second
	for want, pools := range map[string][]PoolFigures{
		"": {{InUse: 5, OldestUse: 50 * s}},
		"2 of 20 permits are held by hijacked connections, the oldest for 5s": {
			{InUse: 5, Hijacked: 1, OldestUse: 2 * s}, {Hijacked: 1, OldestUse: 5 * s}, {OldestUse: 9 * s}},
		// Those in use for long are the hijacked ones.
		"3 of 20 permits are held by hijacked connections, the oldest for 4m10s": {
			{LongUse: 2, Hijacked: 3, OldestUse: 250 * s}},
		"4 of 20 permits are held by connections in use for over a minute, the oldest for 1m5s": {
			{LongUse: 4, OldestUse: 65 * s}},
		"5 of 20 permits are held by hijacked connections (2) and by others in use for over a minute (3), the oldest for 1h2m0s": {
			{LongUse: 4, Hijacked: 2, OldestUse: 62 * 60 * s}, {LongUse: 1, OldestUse: 60 * s}},
		// Written by hand.
		"1000000 of 20 permits are held by hijacked connections": {
			{LongUse: -1 << 63, Hijacked: 1<<63 - 1}, {LongUse: -7, Hijacked: -1, OldestUse: 90 * s}},
	} {
		var h Holders
		for _, p := range pools {
			h.Add(p)
		}
		if got := h.Of(20); got != want {
			t.Errorf("%+v:\ngot  %q\nwant %q", pools, got, want)
		}
	}
}

func TestOut(t *testing.T) {
	const s = time.Second
	for name, c := range map[string]struct {
		pools []PoolFigures
		want  Out
	}{
		"nobody waits for long": {[]PoolFigures{{InUse: 1, NewestUse: 20 * s, Waiting: 1, OldestWait: s - 1}}, Out{}},
		"one pool": {
			[]PoolFigures{{Name: "a", InUse: 2, NewestUse: 11 * s, OldestUse: 14 * s, Waiting: 3, OldestWait: 12 * s}},
			Out{"a: 2 for 11s to 14s", "a: 3 for 12s", 11 * s, 12 * s}},
		"two pools": {
			[]PoolFigures{{Name: "a", InUse: 1, NewestUse: 5 * s, OldestUse: 5 * s},
				{Name: "b", InUse: 1, NewestUse: 7 * s, OldestUse: 7 * s, Waiting: 1, OldestWait: 4 * s},
				{Name: "c", Waiting: 1, OldestWait: 6 * s}},
			Out{"a: 1 for 5s to 5s, b: 1 for 7s to 7s", "b: 1 for 4s, c: 1 for 6s", 5 * s, 6 * s}},
		"one is being opened": {
			[]PoolFigures{{Name: "a", InUse: 1, NewestUse: 5 * s, OldestUse: 5 * s, Waiting: 1, OldestWait: 6 * s}, {Opening: 1}},
			Out{"a: 1 for 5s to 5s", "a: 1 for 6s", 0, 6 * s}},
		"all are hijacked": {
			[]PoolFigures{{Name: "a", InUse: 1, Hijacked: 1, NewestUse: 5 * s, OldestUse: 5 * s, Waiting: 1, OldestWait: 6 * s}},
			Out{"a: 1 for 5s to 5s", "a: 1 for 6s", 0, 6 * s}},
		"nothing is in use": {[]PoolFigures{{Name: "a", Waiting: 1, OldestWait: 6 * s}}, Out{"", "a: 1 for 6s", 0, 6 * s}},
	} {
		if got := NewOut(c.pools, s); got != c.want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, c.want)
		}
	}
}

// Of many pools the last stands for the others: NewestUse is that of those with connections in use.
func TestOthersAddUp(t *testing.T) {
	pools := make([]PoolFigures, 20)
	for i := range pools {
		pools[i] = PoolFigures{Permits: 2, InUse: 2, NewestUse: time.Duration(100 - i), LongUse: 1, Hijacked: 1}
	}
	pools[19].InUse, pools[19].NewestUse = 0, 0
	got := ParseInfo(SessionInfo{Pools: pools}.Encode()).Pools
	last := got[len(got)-1]
	if len(got) != 16 || last.LongUse != 5 || last.Hijacked != 5 || last.NewestUse != 82 {
		t.Errorf("%d pools, the last %+v", len(got), last)
	}
}
