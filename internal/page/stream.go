package page

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	// writeTimeout ends the stream of a viewer that takes nothing.
	writeTimeout = 10 * time.Second
	// keepAlive is how often a stream without news has a comment, so that proxies keep it open.
	keepAlive = 15 * time.Second
)

// A hello tells the page whom it shows, and what it may do.
type hello struct {
	Semaphore string  `json:"semaphore"`
	Control   bool    `json:"control"`
	Names     bool    `json:"names"` // the page asks for the operator's name
	Interval  float64 `json:"interval_seconds"`
	Build     string  `json:"build"`
}

// serveEvents sends the state of the fleet to one viewer until it leaves.
func (p *Page) serveEvents(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodHead {
		return
	}
	viewer, past, ok := p.feed.join()
	if !ok {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "page: too many viewers, or the server is ending",
			http.StatusServiceUnavailable)
		return
	}
	defer p.feed.leave(viewer)

	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would collect events for minutes
	s := newStream(w, r)
	defer s.close()
	// The server's ReadTimeout is for requests, and would end this one.
	_ = s.http.SetReadDeadline(time.Time{})

	// 2 s: how long a browser waits before it connects again
	first := append(frame("retry: 2000\n\n"), encodeFrame("hello", p.hello())...)
	if s.send(first, past) != nil {
		return
	}
	quiet := time.NewTicker(keepAlive)
	defer quiet.Stop()
	for {
		var err error
		select {
		case <-r.Context().Done():
			return
		case <-p.ctx.Done():
			return
		case <-viewer.wake:
			err = s.send(p.feed.take(viewer)...)
			quiet.Reset(keepAlive)
		case <-quiet.C:
			err = s.send(frame(": the feed has no news\n\n"))
		}
		if err != nil {
			return
		}
	}
}

func (p *Page) hello() hello {
	return hello{
		Semaphore: p.opts.Semaphore, Control: p.guard != nil,
		Names:    p.guard != nil && p.guard.operator == nil,
		Interval: p.opts.Interval.Seconds(), Build: build,
	}
}

// A stream writes frames to one viewer, compressed if it takes that: the state of a large fleet
// compresses to a tenth.
type stream struct {
	http *http.ResponseController
	to   io.Writer
	zip  *gzip.Writer // nil: not compressed
}

func newStream(w http.ResponseWriter, r *http.Request) *stream {
	s := &stream{http: http.NewResponseController(w), to: w}
	w.Header().Add("Vary", "Accept-Encoding")
	if acceptsGzip(r) {
		w.Header().Set("Content-Encoding", "gzip")
		s.zip, _ = gzip.NewWriterLevel(w, gzip.BestSpeed)
		s.to = s.zip
	}
	return s
}

func acceptsGzip(r *http.Request) bool {
	for _, part := range strings.Split(r.Header.Get("Accept-Encoding"), ",") {
		name, weight, _ := strings.Cut(strings.TrimSpace(part), ";")
		if strings.TrimSpace(name) == "gzip" {
			return strings.Trim(weight, " q=.0") != "" || weight == ""
		}
	}
	return false
}

// send writes frames and flushes them, within writeTimeout.
func (s *stream) send(frames ...frame) error {
	deadline := time.Now().Add(writeTimeout)
	err := s.http.SetWriteDeadline(deadline)
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	for _, f := range frames {
		if _, err := s.to.Write(f); err != nil {
			return err
		}
	}
	if s.zip != nil {
		if err := s.zip.Flush(); err != nil {
			return err
		}
	}
	return s.http.Flush()
}

// close ends a compressed stream as its readers expect it.
func (s *stream) close() {
	if s.zip != nil {
		_ = s.zip.Close()
	}
}

// serveStatus serves the state once, as `passbuddy status --json` prints it. Readers share an
// answer that is fresh, so that they cannot make Redis slow.
func (p *Page) serveStatus(w http.ResponseWriter, r *http.Request) {
	// An error may be of long ago: ask again.
	body, _ := p.feed.last()
	if body == nil {
		var err error
		if body, err = p.once(r.Context()); err != nil {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "page: "+cleanError(err, p.opts.Timeout), http.StatusBadGateway)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body[:len(body):len(body)], '\n'))
}

// once joins the feed as a viewer for one answer. It is bounded by twice the timeout: an answer can
// be late that was asked for before this call.
func (p *Page) once(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*p.opts.Timeout)
	defer cancel()
	viewer, _, ok := p.feed.join()
	if !ok {
		return nil, errors.New("too many viewers, or the server is ending")
	}
	defer p.feed.leave(viewer)
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.ctx.Done():
			return nil, errors.New("the server is ending")
		case <-viewer.wake:
			if body, err := p.feed.last(); body != nil || err != nil {
				return body, err
			}
		}
	}
}
