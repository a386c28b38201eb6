package throwaway

import (
	"context"
	"errors"
	"net"
	"sync"
)

// Proxies puts a [Proxy] in front of each server that a client dials. Clients of a cluster, or of
// sentinels, learn the servers' addresses from the servers, and so would never dial a proxy. Give
// them Dial as their Dialer instead. The zero value is ready. Its methods may be called from
// several goroutines.
type Proxies struct {
	mu     sync.Mutex
	byAddr map[string]*Proxy
	closed bool
}

// To returns the proxy in front of the server at addr, and starts it at the first use.
func (p *Proxies) To(addr string) (*Proxy, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, net.ErrClosed
	}
	if proxy := p.byAddr[addr]; proxy != nil {
		return proxy, nil
	}
	proxy, err := StartProxy(addr)
	if err != nil {
		return nil, err
	}
	if p.byAddr == nil {
		p.byAddr = make(map[string]*Proxy)
	}
	p.byAddr[addr] = proxy
	return proxy, nil
}

// Dial connects to the server at addr through its proxy. It has the type of redis.Options.Dialer,
// which with TLS has to do the handshake too; for that, wrap it.
func (p *Proxies) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	proxy, err := p.To(addr)
	if err != nil {
		return nil, err
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, network, proxy.Addr())
}

// Close closes all proxies.
func (p *Proxies) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for _, proxy := range p.byAddr {
		errs = append(errs, proxy.Close())
	}
	p.byAddr = nil
	return errors.Join(errs...)
}
