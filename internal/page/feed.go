package page

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/passbuddy/passbuddy/internal/status"
)

// A frame is one server-sent event, encoded once for all viewers.
type frame []byte

// A feed asks for the state of the fleet while viewers are connected, and gives it to all of them.
type feed struct {
	ctx               context.Context // ends with the Page
	source            func(context.Context) (status.Document, error)
	interval, timeout time.Duration
	polls             sync.WaitGroup

	// Guarded by mu.
	mu      sync.Mutex
	closed  bool
	polling bool // a goroutine runs poll: never two
	viewers map[*viewer]struct{}
	history history
	latest  frame     // of the last answer, or nil
	body    []byte    // the last answer as a JSON document, or nil
	heard   time.Time // when it came
	failed  error     // what the last call of Source returned
}

// A viewer is one open stream. The feed's mutex guards its frames.
type viewer struct {
	wake    chan struct{} // has room for one: a hint that there are frames
	state   frame         // the newest state, or nil if it was taken. A slow viewer misses others.
	notices []frame       // in order; none is missed but beyond maxNotices
}

const (
	// maxNotices bounds what is kept for a viewer that has stalled.
	maxNotices = 16
	// maxRest bounds the pause that a slow answer causes. The page takes 10 s for an outage.
	maxRest = 5 * time.Second
)

func newFeed(ctx context.Context, source func(context.Context) (status.Document, error),
	interval, timeout time.Duration,
) *feed {
	return &feed{
		ctx: ctx, source: source, interval: interval, timeout: timeout,
		viewers: make(map[*viewer]struct{}),
	}
}

// join adds a viewer, and starts the polls if it is the first one. It returns what the viewer needs
// to begin with: the recent past and, if it is fresh, the last state. It returns false if there are
// too many viewers, or the feed has ended.
func (f *feed) join() (*viewer, frame, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.ctx.Err() != nil || len(f.viewers) >= maxViewers {
		return nil, nil, false
	}
	v := &viewer{wake: make(chan struct{}, 1)}
	f.viewers[v] = struct{}{}
	if f.latest != nil && time.Since(f.heard) < 2*f.interval {
		v.state = f.latest
		v.hint()
	}
	if !f.polling {
		f.polling, f.failed = true, nil
		f.polls.Add(1)
		go f.poll()
	}
	return v, encodeFrame("history", f.history.columns()), true
}

// leave removes a viewer. After the last one the polls end, at the latest an interval later.
func (f *feed) leave(v *viewer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.viewers, v)
}

// take returns the frames that a viewer has not been sent yet.
func (f *feed) take(v *viewer) []frame {
	f.mu.Lock()
	defer f.mu.Unlock()
	frames := v.notices
	if v.state != nil {
		frames = append(frames, v.state)
	}
	v.notices, v.state = nil, nil
	return frames
}

// hint wakes a viewer's goroutine. It does not block: a wake-up that is pending suffices.
func (v *viewer) hint() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// tell sends a notice to all viewers.
func (f *feed) tell(notice frame) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for v := range f.viewers {
		if len(v.notices) < maxNotices {
			v.notices = append(v.notices, notice)
			v.hint()
		}
	}
}

// wait returns when no poll runs any more. The feed's ctx must have ended.
func (f *feed) wait() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.polls.Wait()
}

// wanted reports whether to ask again. If not, the caller's goroutine counts as ended: the decision
// and the mark are one step under the mutex, so a viewer that joins finds a poll that goes on, or
// starts one.
func (f *feed) wanted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.ctx.Err() != nil || len(f.viewers) == 0 {
		f.polling = false
		return false
	}
	return true
}

// An answer holds the results of Source.
type answer struct {
	document status.Document
	err      error
}

// poll asks until no viewer is left. Viewers get a frame in each interval, also while an answer is
// late: they must not take old figures for new ones.
func (f *feed) poll() {
	defer f.polls.Done()
	clock := time.NewTicker(f.interval)
	defer clock.Stop()
	answered := time.Now() // or when we began to ask
	for f.wanted() {
		begun := time.Now()
		clock.Reset(f.interval) // and forget a tick that we did not wait for
		answers := f.ask()
		for waiting := true; waiting; {
			select {
			case <-f.ctx.Done():
				// wanted says so too. The call of Source ends with its ctx.
				waiting = false
			case <-clock.C:
				f.publishSilence(silence{Seconds: time.Since(answered).Seconds()})
			case a := <-answers:
				waiting = false
				if a.err == nil {
					answered = time.Now()
				}
				f.publish(a, answered)
			}
		}
		took := time.Since(begun)
		pause := f.interval - took
		if answered.After(begun) {
			// A fleet whose state takes long to read is asked less often.
			pause = max(pause, min(9*took, maxRest))
		}
		f.rest(pause)
	}
}

// rest waits until it is time to ask again.
func (f *feed) rest(span time.Duration) {
	pause := time.NewTimer(max(span, 0))
	defer pause.Stop()
	select {
	case <-f.ctx.Done():
	case <-pause.C:
	}
}

// ask calls Source in a goroutine of its own: a Source that forgets its ctx must not silence the
// feed. The feed does not ask again before it has returned.
func (f *feed) ask() <-chan answer {
	answers := make(chan answer, 1)
	go func() {
		ctx, cancel := context.WithTimeout(f.ctx, f.timeout)
		defer cancel()
		document, err := f.source(ctx)
		answers <- answer{document, err}
	}()
	return answers
}

// publish gives an answer to all viewers, or says why there is none.
func (f *feed) publish(a answer, answered time.Time) {
	var body []byte
	if a.err == nil {
		body, a.err = json.Marshal(a.document)
	}
	f.mu.Lock()
	f.failed = a.err
	f.mu.Unlock()
	if a.err != nil {
		f.publishSilence(silence{
			Error: cleanError(a.err, f.timeout), Seconds: time.Since(answered).Seconds(),
			Findings: a.document.Findings,
		})
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.history.add(sampleOf(a.document))
	f.latest, f.body, f.heard = rawFrame("status", body), body, time.Now()
	f.give(f.latest)
}

// A silence tells viewers that the figures which they see are old.
type silence struct {
	Error   string  `json:"error"`   // empty: the answer is only late
	Seconds float64 `json:"seconds"` // since the last answer, or since the feed began to ask
	// Findings need no Redis. A late answer has none.
	Findings []status.Finding `json:"findings,omitempty"`
}

func (f *feed) publishSilence(s silence) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.give(encodeFrame("silence", s))
}

// give makes a frame the newest state of all viewers. The caller holds the mutex.
func (f *feed) give(state frame) {
	for v := range f.viewers {
		v.state = state
		v.hint()
	}
}

// last returns the last answer as JSON if it is younger than two intervals. Otherwise it returns the
// error of the last call of Source; both are nil while that has not returned.
func (f *feed) last() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.heard) < 2*f.interval {
		return f.body, nil
	}
	return nil, f.failed
}

func encodeFrame(event string, data any) frame {
	body, err := json.Marshal(data)
	if err != nil {
		panic("bug: an event that JSON cannot hold: " + err.Error())
	}
	return rawFrame(event, body)
}

// rawFrame makes an event of a JSON text, which has no line break of its own.
func rawFrame(event string, body []byte) frame {
	out := make([]byte, 0, len(event)+len(body)+20)
	out = append(append(out, "event: "...), event...)
	out = append(append(out, "\ndata: "...), body...)
	return append(out, "\n\n"...)
}

// cleanError makes an error fit to be shown: one line of at most 300 bytes.
func cleanError(err error, timeout time.Duration) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %v", timeout)
	}
	return cleanText(err.Error(), 300)
}

// cleanText removes control characters, and cuts a text at a number of bytes.
func cleanText(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s)
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}
