package throwaway

import "net"

// Forget drops what either side of the connections that exist says from now on, and tells neither
// when the other ends: as a NAT or a firewall that has lost its table. New ones are served.
func (p *Proxy) Forget() {
	p.set(func() {
		for l := range p.links {
			l.forgotten = true
		}
	})
}

// Orphan resets the clients' sides of the connections that exist, and leaves the servers' as they
// are, which hear nothing of it. New ones are served.
func (p *Proxy) Orphan() {
	p.Forget()
	p.set(func() {
		for l := range p.links {
			if tcp, ok := l.client.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0)
			}
			_ = l.client.Close()
		}
	})
}

func (p *Proxy) hasForgotten(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return l.forgotten
}
