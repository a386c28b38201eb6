package page

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/page/incident"
	"github.com/passbuddy/passbuddy/internal/status"
)

// watch opens a stream, and returns what ends it and tells what it received.
func watch(p http.Handler, headers ...string) (leave func() string) {
	ctx, cancel := context.WithCancel(context.Background())
	r := httptest.NewRequest(http.MethodGet, "/events", nil).WithContext(ctx)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.ServeHTTP(w, r)
	}()
	return sync.OnceValue(func() string {
		cancel()
		<-done
		return w.Body.String()
	})
}

func count(s, event string) int { return strings.Count(s, "event: "+event+"\n") }

// However many look, Redis is asked once in each interval; and not at all when nobody looks.
func TestViewersShareOnePoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		play := incident.New(incident.Scenes["calm"], 0)
		p := newPage(t, func(o *Options) { o.Source = play.Source })
		time.Sleep(time.Minute)
		if n := play.Calls(); n != 0 {
			t.Fatalf("%d calls before anybody looked", n)
		}
		var leave []func() string
		for range 20 {
			leave = append(leave, watch(p))
		}
		time.Sleep(10*time.Second + 500*time.Millisecond)
		if n := play.Calls(); n != 11 {
			t.Errorf("20 viewers for 10 s: %d calls, want 11", n)
		}
		for i, end := range leave {
			body := end()
			if count(body, "hello") != 1 || count(body, "history") != 1 || count(body, "status") != 11 {
				t.Errorf("viewer %d received %d hellos, %d histories, %d states", i,
					count(body, "hello"), count(body, "history"), count(body, "status"))
			}
		}
		calls := play.Calls()
		time.Sleep(time.Minute)
		if n := play.Calls(); n != calls {
			t.Errorf("%d calls after all had left", n-calls)
		}

		// A viewer who comes later has the past.
		end := watch(p)
		time.Sleep(1500 * time.Millisecond)
		if body := end(); count(body, "status") != 2 || !strings.Contains(body, `"at":[`) ||
			strings.Contains(body, `"at":[]`) {
			t.Errorf("the next viewer received %s", body)
		}
	})
}

// A Redis that answers late, or never, is told of in each interval. It is not asked again meanwhile.
func TestSilenceIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		play := incident.New(incident.Scenes["stalled"], 3*time.Second)
		p := newPage(t, func(o *Options) { o.Source = play.Source })
		end := watch(p)
		time.Sleep(10*time.Second + 500*time.Millisecond)
		body := end()
		if n := count(body, "status"); n != 1 {
			t.Errorf("%d states, want the one before the stall", n)
		}
		if n := count(body, "silence"); n < 8 {
			t.Errorf("%d news of the silence in 10 s", n)
		}
		if !strings.Contains(body, `"error":"no answer within 2s"`) {
			t.Errorf("the timeout is not told: %s", body)
		}
	})
}

// A Source that forgets its ctx blocks neither the viewers nor Close, and is not called twice.
func TestSourceThatForgetsItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		release := make(chan struct{})
		p := newPage(t, func(o *Options) {
			o.Source = func(context.Context) (status.Document, error) {
				calls.Add(1)
				<-release
				return status.Document{}, errors.New("late")
			}
		})
		end := watch(p)
		time.Sleep(10*time.Second + 500*time.Millisecond)
		if body := end(); count(body, "silence") < 9 {
			t.Errorf("the viewer received %s", body)
		}
		if n := calls.Load(); n != 1 {
			t.Errorf("%d calls at once", n)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		close(release)
	})
}

// A large fleet, whose state takes long to read, is asked less often.
func TestSlowAnswersAreAskedForLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		p := newPage(t, func(o *Options) {
			o.Source = func(context.Context) (status.Document, error) {
				calls.Add(1)
				time.Sleep(400 * time.Millisecond)
				return status.Document{}, nil
			}
		})
		end := watch(p)
		time.Sleep(39 * time.Second)
		end()
		if n := calls.Load(); n != 10 {
			t.Errorf("%d calls of 400 ms in 39 s, want a tenth of the time", n)
		}
	})
}

// Close ends the streams. Later requests are refused.
func TestCloseEndsStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPage(t, nil)
		ends := []func() string{watch(p), watch(p)}
		time.Sleep(3 * time.Second)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		synctest.Wait() // the streams' goroutines have ended, or the bubble would not come to rest
		for _, end := range ends {
			end()
		}
		if w := get(p, "/events"); w.Code != http.StatusServiceUnavailable {
			t.Errorf("after Close: %d", w.Code)
		}
	})
}

func TestViewersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPage(t, nil)
		var ends []func() string
		for range maxViewers {
			ends = append(ends, watch(p))
		}
		synctest.Wait()
		if w := get(p, "/events"); w.Code != http.StatusServiceUnavailable {
			t.Errorf("viewer %d: %d", maxViewers+1, w.Code)
		}
		for _, end := range ends {
			end()
		}
	})
}

// A name with line breaks cannot forge an event, and markup is escaped in the JSON, too.
func TestHostileNamesStayData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPage(t, func(o *Options) {
			o.Source = func(context.Context) (status.Document, error) {
				d, err := incident.Scenes["hostile"](0)
				d.Processes[0].Owner = "x\n\nevent: hello\ndata: {}\n\n" + incident.Hostile
				return d, err
			}
		})
		end := watch(p)
		time.Sleep(500 * time.Millisecond)
		body := end()
		if count(body, "hello") != 1 || count(body, "status") != 1 {
			t.Errorf("a name made an event: %s", body)
		}
		if strings.Contains(body, "<") {
			t.Error("markup is not escaped")
		}
	})
}

func TestStreamsAreCompressed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPage(t, func(o *Options) {
			o.Source = incident.New(incident.Scenes["large"], 0).Source
		})
		end := watch(p, "Accept-Encoding", "br, gzip;q=0.8")
		time.Sleep(500 * time.Millisecond)
		body := end()
		r, err := gzip.NewReader(bytes.NewReader([]byte(body)))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(r)
		if err != nil || count(string(plain), "status") != 1 {
			t.Errorf("%d bytes: %v", len(plain), err)
		}
		if len(body) > len(plain)/4 {
			t.Errorf("%d bytes became %d", len(plain), len(body))
		}
	})
	for header, want := range map[string]bool{
		"": false, "gzip": true, "gzip;q=0": false, "gzip; q=0.0": false, "br": false,
		"gzip;q=0.5, br": true,
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Accept-Encoding", header)
		if got := acceptsGzip(r); got != want {
			t.Errorf("Accept-Encoding %q: %v", header, got)
		}
	}
}

func TestHistoryIsBounded(t *testing.T) {
	var h history
	start := time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC)
	for i := range 5000 {
		h.add(sample{at: start.Add(time.Duration(i) * time.Second), held: i})
	}
	n := len(h.samples)
	if n == 0 || n > historyMost || h.samples[n-1].held != 4999 ||
		h.samples[n-1].at.Sub(h.samples[0].at) > historySpan {
		t.Errorf("%d samples, from %v to %v", n, h.samples[0].at, h.samples[n-1].at)
	}
	h.add(sample{at: start}) // the clock was set back
	if len(h.samples) != 1 {
		t.Errorf("%d samples after the clock was set back", len(h.samples))
	}
}

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"a\nb\x00c": "a b c", "héllo": "h", "\xff": " ",
	} {
		most := 300
		if in == "héllo" {
			most = 2 // in the middle of the é
		}
		if got := cleanText(in, most); got != want {
			t.Errorf("cleanText(%q) = %q, want %q", in, got, want)
		}
	}
}
