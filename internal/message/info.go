package message

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// A session tells operators SessionInfo with each heartbeat, as JSON.
type SessionInfo struct {
	Owner   string `json:"owner"`
	Min     int    `json:"min,omitempty"`
	Max     int    `json:"max,omitempty"`
	Weight  int    `json:"weight,omitempty"`
	Host    string `json:"host,omitempty"`
	PID     int    `json:"pid,omitempty"`
	Program string `json:"program,omitempty"`
	Version string `json:"version,omitempty"` // of this library
	Started int64  `json:"started,omitempty"` // Unix time, by the process's clock
	TTL     int64  `json:"ttl,omitempty"`     // ms
	// WaitReplicas is the session's own.
	WaitReplicas int `json:"wait_replicas,omitempty"`

	RoundTrip time.Duration `json:"rtt,omitempty"`
	Lost      int64         `json:"lost,omitempty"`
	Outages   int64         `json:"outages,omitempty"`
	Pools     []PoolFigures `json:"pools,omitempty"`
}

// PoolFigures are semaphore.PoolStats, which documents them.
type PoolFigures struct {
	Name        string        `json:"name,omitempty"`
	Permits     int           `json:"permits,omitempty"`
	InUse       int           `json:"in_use,omitempty"`
	Idle        int           `json:"idle,omitempty"`
	Opening     int           `json:"opening,omitempty"`
	Closing     int           `json:"closing,omitempty"`
	Waiting     int           `json:"waiting,omitempty"`
	OldestWait  time.Duration `json:"oldest_wait,omitempty"`
	OldestUse   time.Duration `json:"oldest_use,omitempty"`
	NewestUse   time.Duration `json:"newest_use,omitempty"`
	LongUse     int           `json:"long_use,omitempty"`
	Hijacked    int           `json:"hijacked,omitempty"`
	Waits       int64         `json:"waits,omitempty"`
	WaitTime    time.Duration `json:"wait_time,omitempty"`
	Timeouts    int64         `json:"timeouts,omitempty"`
	Canceled    int64         `json:"canceled,omitempty"`
	Unavailable int64         `json:"unavailable,omitempty"`
	Opened      int64         `json:"opened,omitempty"`
	OpenTime    time.Duration `json:"open_time,omitempty"`
	Failed      int64         `json:"failed,omitempty"`
	Recalled    int64         `json:"recalled,omitempty"`
	Lost        int64         `json:"lost,omitempty"`
}

// Add adds what can be added up. Of ages it keeps the longer, and of NewestUse the shorter.
func (f *PoolFigures) Add(g PoolFigures) {
	if f.InUse == 0 || g.InUse > 0 && g.NewestUse < f.NewestUse {
		f.NewestUse = g.NewestUse
	}
	f.Permits += g.Permits
	f.InUse += g.InUse
	f.Idle += g.Idle
	f.Opening += g.Opening
	f.Closing += g.Closing
	f.Waiting += g.Waiting
	f.OldestWait = max(f.OldestWait, g.OldestWait)
	f.OldestUse = max(f.OldestUse, g.OldestUse)
	f.LongUse += g.LongUse
	f.Hijacked += g.Hijacked
	f.Waits += g.Waits
	f.WaitTime += g.WaitTime
	f.Timeouts += g.Timeouts
	f.Canceled += g.Canceled
	f.Unavailable += g.Unavailable
	f.Opened += g.Opened
	f.OpenTime += g.OpenTime
	f.Failed += g.Failed
	f.Recalled += g.Recalled
	f.Lost += g.Lost
}

// maxPoolsShown bounds what one session writes into Redis.
const maxPoolsShown = 16

// Encode returns i as JSON. Of many pools it shows the largest, and the sum of the others.
func (i SessionInfo) Encode() string {
	if len(i.Pools) > maxPoolsShown {
		pools := slices.Clone(i.Pools)
		slices.SortStableFunc(pools, func(a, b PoolFigures) int {
			return cmp.Compare(b.Permits+b.Waiting, a.Permits+a.Waiting)
		})
		rest := PoolFigures{Name: fmt.Sprintf("%d others", len(pools)-maxPoolsShown+1)}
		for _, p := range pools[maxPoolsShown-1:] {
			rest.Add(p)
		}
		i.Pools = append(pools[:maxPoolsShown-1], rest)
	}
	b, err := json.Marshal(i)
	if err != nil {
		panic("bug: figures that JSON cannot hold: " + err.Error())
	}
	return string(b)
}

// ParseInfo reads what Encode wrote. A session of another version, or a hand, may have written
// anything: what cannot be read is left out.
func ParseInfo(text string) (i SessionInfo) {
	_ = json.Unmarshal([]byte(text), &i)
	return i
}
