package throwaway

import "net"

// Forget drops all bytes of the existing connections from now on, and hides from each side that the
// other one ends. A NAT or a firewall that has lost its table does the same. New connections are
// served.
func (p *Proxy) Forget() {
	p.set(func() {
		for l := range p.links {
			l.forgotten = true
		}
	})
}

// Orphan resets the clients' sides of the existing connections, and leaves the servers' sides as
// they are. The servers hear nothing of it. New connections are served.
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
