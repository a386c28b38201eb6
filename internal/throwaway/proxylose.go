package throwaway

import "slices"

// losing is the remaining work of LoseReplies.
type losing struct {
	left    int // requests to be marked
	pending int // replies to be lost: marked, not yet met
	match   func(request []byte) bool
	lost    chan struct{}
}

// doom is how far LoseReplies has come in cutting a link.
type doom int

const (
	spared doom = iota
	// A request matched and is being forwarded: the server's next bytes may be the answer to it,
	// and wait.
	marked
	passed // the server has the request: its next bytes are taken for the answer
)

// LoseReplies forwards the next n matching requests. As soon as the server answers one, the proxy
// discards the answer and resets the connection. So the client sees a broken connection after its
// request took effect. The channel that LoseReplies returns is closed when the n-th answer is lost;
// an answer is also lost if the client hangs up first. A nil match takes any request, a negative n
// takes all requests. A later call replaces an earlier one, and an n of 0 ends it.
//
// A request is the bytes that the client wrote at once: a pipeline is one, and beyond 32 KiB it is
// several. On a connection with TLS match sees only ciphertext.
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

// mark notes that a request which matches is about to be forwarded. The caller holds mu.
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

// passed notes that the bytes read from the client have been written to the server.
func (p *Proxy) passed(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.doomed == marked {
		l.doomed = passed
		p.flowing.Broadcast()
	}
}

// lose cuts a link whose server has sent bytes after it received a request. The caller holds mu.
func (p *Proxy) lose(l *link) {
	l.sever()
	p.flowing.Broadcast()
	p.ended(l)
}

// ended counts the answer of a doomed link as lost, because no more of it will come. The caller
// holds mu.
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
