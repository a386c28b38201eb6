package throwaway

import (
	"io"
	"net"
	"sync"
)

// Proxy forwards TCP connections to a server and injects faults on request. It listens on the
// loopback interface. Its methods may be called from several goroutines.
type Proxy struct {
	addr  string
	pumps sync.WaitGroup

	mu sync.Mutex
	// flowing is a condition on mu. It is signalled when stalled, late or closed changes, or a link
	// is cut or its doom advances.
	flowing     *sync.Cond
	target      string
	listener    net.Listener // nil while connections are refused
	links       map[*link]struct{}
	stalled     bool
	late        bool // replies are stalled, requests are not
	severed     bool
	dropReplies bool
	losing      *losing // nil unless LoseReplies is active
	closed      bool
}

// link is a client's connection and its connection to the server. Its fields are guarded by
// Proxy.mu.
type link struct {
	client, server net.Conn // server is nil until dialled
	cut            bool
	forgotten      bool // see Forget
	lossy          bool // a reply of this link was dropped
	doomed         doom
}

// StartProxy starts a proxy to target, a host:port. Close ends it.
func StartProxy(target string) (*Proxy, error) {
	p := &Proxy{target: target, links: make(map[*link]struct{})}
	p.flowing = sync.NewCond(&p.mu)
	var err error
	for range portAttempts {
		var port int
		// Not any port: it must still be free after Refuse.
		if port, err = freePort(); err != nil {
			return nil, err
		}
		p.addr = loopback(port)
		if err = p.Accept(); err == nil {
			return p, nil
		}
	}
	return nil, err
}

// Addr is the host:port to connect to instead of the server's.
func (p *Proxy) Addr() string { return p.addr }

// Retarget forwards new connections to another server. Existing ones stay with theirs, unless
// Reset.
func (p *Proxy) Retarget(target string) { p.set(func() { p.target = target }) }

// Stall holds back all bytes, both ways, until Resume. Connections stay open, and new ones are
// accepted. To a client this is a server, or a network, that has gone silent.
func (p *Proxy) Stall() { p.set(func() { p.stalled = true }) }

// StallReplies holds back the server's replies until Resume, while requests still reach the server.
// So requests take effect long before the client learns of it.
func (p *Proxy) StallReplies() { p.set(func() { p.late = true }) }

// Resume lets the bytes that Stall or StallReplies held back flow again.
func (p *Proxy) Resume() { p.set(func() { p.stalled, p.late = false, false }) }

// Reset resets the existing connections. New ones are served.
func (p *Proxy) Reset() { p.set(p.severAll) }

// Cut resets all connections, and each new one as soon as it is accepted, until Heal. The port
// stays ours meanwhile, so a client sees a reset. A server that is down would refuse: for that, see
// Refuse.
func (p *Proxy) Cut() {
	p.set(func() {
		p.severed = true
		p.severAll()
	})
}

// severAll resets every link. The caller holds mu.
func (p *Proxy) severAll() {
	for l := range p.links {
		l.sever()
	}
}

// Heal accepts connections again after Cut.
func (p *Proxy) Heal() { p.set(func() { p.severed = false }) }

// DropReplies, given true, discards the server's replies while requests still reach the server. So
// the outcome of a request becomes ambiguous to the client. Given false, it resets the connections
// that lost a reply, because their next reply would be taken for the missing one.
func (p *Proxy) DropReplies(drop bool) {
	p.set(func() {
		p.dropReplies = drop
		if drop {
			return
		}
		for l := range p.links {
			if l.lossy {
				l.sever()
			}
		}
	})
}

// Close resets all connections and stops listening. It returns when every goroutine of the proxy
// has ended.
func (p *Proxy) Close() error {
	var err error
	p.set(func() {
		if p.closed {
			return
		}
		p.closed = true
		if p.listener != nil {
			err = p.listener.Close()
		}
		p.severAll()
	})
	p.pumps.Wait()
	return err
}

func (p *Proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	p.flowing.Broadcast()
}

// serve runs a link until both directions have ended.
func (p *Proxy) serve(l *link) {
	defer p.set(func() {
		l.close()
		p.ended(l)
		delete(p.links, l)
	})
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	p.mu.Lock()
	l.server = server
	cut := l.cut
	p.mu.Unlock()
	if cut { // Cut came after accept, when there was no server side to reset yet.
		return
	}
	var requests sync.WaitGroup
	requests.Go(func() { p.pump(l, l.client, server, false) })
	p.pump(l, server, l.client, true)
	requests.Wait()
}

// pump copies from src to dst. It forwards the end of src as the end of dst, so that the other side
// sees a server's orderly close. An error ends the link.
func (p *Proxy) pump(l *link, src, dst net.Conn, replies bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		pass, alive := p.gate(l, replies, buf[:n])
		if !alive {
			return
		}
		if p.hasForgotten(l) {
			if err != nil {
				return
			}
			continue
		}
		if pass && n > 0 {
			if _, writeErr := dst.Write(buf[:n]); writeErr != nil {
				err = writeErr
			}
		}
		if !replies {
			p.passed(l)
		}
		if err == io.EOF {
			_ = dst.(*net.TCPConn).CloseWrite()
			return
		}
		if err != nil {
			p.set(l.sever)
			return
		}
	}
}

// gate waits while the proxy is stalled. It returns whether to forward the bytes that were read,
// and whether the link lives.
func (p *Proxy) gate(l *link, replies bool, bytes []byte) (pass, alive bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// A fast server answers before the other pump has noted that it forwarded the request.
	for (p.stalled || replies && (p.late || l.doomed == marked)) && !l.cut {
		p.flowing.Wait()
	}
	if len(bytes) == 0 || l.cut || l.forgotten {
		return true, !l.cut
	}
	if !replies {
		p.mark(l, bytes)
		return true, true
	}
	if l.doomed != spared {
		p.lose(l)
		return false, false
	}
	if p.dropReplies {
		l.lossy = true
		return false, true
	}
	return true, true
}

// sever resets both sides: with linger 0, closing discards what is unsent. The caller holds
// Proxy.mu.
func (l *link) sever() {
	l.cut = true
	for _, conn := range []net.Conn{l.client, l.server} {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
	}
	l.close()
}

// close closes both sides; bytes that were already written still arrive. The caller holds Proxy.mu.
func (l *link) close() {
	_ = l.client.Close()
	if l.server != nil {
		_ = l.server.Close()
	}
}
