package throwaway

import "slices"

// losing is what LoseReplies has still to do.
type losing struct {
	left    int // requests to be marked
	pending int // replies to be lost: marked, not yet met
	match   func(request []byte) bool
	lost    chan struct{}
}

// doom is how far a link has come on its way to being cut by LoseReplies.
type doom int

const (
	spared doom = iota
	// a request matched and is being passed on: what the server says now may be the answer to it,
	// and waits
	marked
	passed // the server has the request: the next thing that it says is taken for the answer
)

// LoseReplies lets the next n requests that match reach the server, and throws the answer away and
// resets the connection as soon as the server answers: the client sees a broken connection after
// its request was carried out. What it returns is closed when the n-th answer is lost, which it
// also is if the client hangs up first. A nil match takes any request, a negative n all that come.
// A later call replaces an earlier one, and n of 0 ends it.
//
// A request is what the client wrote at once: a pipeline is one, and beyond 32 KiB it is several.
// On a connection with TLS there is nothing for match to see.
func (p *Proxy) LoseReplies(n int, match func(request []byte) bool) (lost <-chan struct{}) {
	next := &losing{left: n, match: match, lost: make(chan struct{})}
	p.set(func() {
		p.losing = next
		for l := range p.links {
			l.doomed = spared
		}
		next.done()
	})
	return next.lost
}

// mark notes that a request which matches is about to be passed on. The caller holds mu.
func (p *Proxy) mark(l *link, request []byte) {
	if p.losing == nil || p.losing.left == 0 || l.doomed != spared {
		return
	}
	if p.losing.match != nil && !p.losing.match(slices.Clone(request)) {
		return
	}
	p.losing.left--
	p.losing.pending++
	l.doomed = marked
}

// passed notes that what was read from the client has been written to the server.
func (p *Proxy) passed(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.doomed == marked {
		l.doomed = passed
		p.flowing.Broadcast()
	}
}

// lose cuts a link whose server has said something after it was passed a request. The caller holds
// mu.
func (p *Proxy) lose(l *link) {
	l.sever()
	p.flowing.Broadcast()
	p.ended(l)
}

// ended counts a doomed link as having lost its answer: no more of it will come. The caller holds
// mu.
func (p *Proxy) ended(l *link) {
	if l.doomed == spared {
		return
	}
	l.doomed = spared
	p.losing.pending--
	p.losing.done()
}

func (s *losing) done() {
	if s.left == 0 && s.pending == 0 {
		close(s.lost)
	}
}
