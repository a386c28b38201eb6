package throwaway

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// Proxy passes TCP connections on to a server and misbehaves when told to. It listens on the loopback interface.
// Its methods may be called from several goroutines.
type Proxy struct {
	target   string
	listener net.Listener
	pumps    sync.WaitGroup

	mu          sync.Mutex
	flowing     *sync.Cond // on mu; signalled when stalled or closed changes, or a link is cut
	links       map[*link]struct{}
	stalled     bool
	severed     bool
	dropReplies bool
	closed      bool
}

// link is a client's connection and the one to the server that belongs to it. Its fields are guarded by Proxy.mu.
type link struct {
	client, server net.Conn // server is nil until dialled
	cut            bool
	lossy          bool // a reply of this link was dropped
}

// StartProxy starts a proxy to target, a host:port. Close ends it.
func StartProxy(target string) (*Proxy, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("throwaway: proxy: %w", err)
	}
	p := &Proxy{target: target, listener: listener, links: make(map[*link]struct{})}
	p.flowing = sync.NewCond(&p.mu)
	p.pumps.Go(p.accept)
	return p, nil
}

// Addr is the host:port to connect to instead of the server's.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Stall holds back all bytes, both ways, until Resume. Connections stay open, and new ones are accepted: to a client
// this is a server, or a network, that has gone silent.
func (p *Proxy) Stall() { p.set(func() { p.stalled = true }) }

// Resume lets the bytes that Stall held back flow again.
func (p *Proxy) Resume() { p.set(func() { p.stalled = false }) }

// Cut resets all connections, and each new one as soon as it is accepted, until Heal. The port stays ours meanwhile,
// so a client sees a reset where a server that is down would refuse.
func (p *Proxy) Cut() {
	p.set(func() {
		p.severed = true
		for l := range p.links {
			l.sever()
		}
	})
}

// Heal accepts connections again after Cut.
func (p *Proxy) Heal() { p.set(func() { p.severed = false }) }

// DropReplies, given true, throws away what the server answers while requests go on to reach it: the outcome of a
// request becomes ambiguous to the client. Given false, it resets the connections that lost something, for their
// next reply would be taken for the one that is missing.
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

// Close resets all connections and stops listening. It returns when every goroutine of the proxy has ended.
func (p *Proxy) Close() error {
	var err error
	p.set(func() {
		if p.closed {
			return
		}
		p.closed = true
		err = p.listener.Close()
		for l := range p.links {
			l.sever()
		}
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

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client went away before it was accepted
		}
		l := &link{client: client}
		p.mu.Lock()
		if p.severed || p.closed {
			l.sever()
		} else {
			p.links[l] = struct{}{}
			p.pumps.Go(func() { p.serve(l) })
		}
		p.mu.Unlock()
	}
}

// serve runs a link until both directions have ended.
func (p *Proxy) serve(l *link) {
	defer p.set(func() {
		l.close()
		delete(p.links, l)
	})
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	p.mu.Lock()
	l.server = server
	cut := l.cut
	p.mu.Unlock()
	if cut { // between accept and here, when there was no server side to reset yet
		return
	}
	var requests sync.WaitGroup
	requests.Go(func() { p.pump(l, l.client, server, false) })
	p.pump(l, server, l.client, true)
	requests.Wait()
}

// pump copies from src to dst. The end of src is passed on as the end of dst, so that a server's orderly close is
// seen as such; an error ends the link.
func (p *Proxy) pump(l *link, src, dst net.Conn, replies bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		pass, alive := p.gate(l, replies, n)
		if !alive {
			return
		}
		if pass && n > 0 {
			if _, writeErr := dst.Write(buf[:n]); writeErr != nil {
				err = writeErr
			}
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

// gate waits while the proxy is stalled. It says whether n bytes that were read may pass, and whether the link lives.
func (p *Proxy) gate(l *link, replies bool, n int) (pass, alive bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.stalled && !l.cut {
		p.flowing.Wait()
	}
	if replies && p.dropReplies && n > 0 {
		l.lossy = true
		return false, !l.cut
	}
	return true, !l.cut
}

// sever resets both sides: with linger 0, closing discards what is unsent. The caller holds Proxy.mu.
func (l *link) sever() {
	l.cut = true
	for _, conn := range []net.Conn{l.client, l.server} {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
	}
	l.close()
}

// close closes both sides; what was already written still arrives. The caller holds Proxy.mu.
func (l *link) close() {
	_ = l.client.Close()
	if l.server != nil {
		_ = l.server.Close()
	}
}
