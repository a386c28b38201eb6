package throwaway

import (
	"errors"
	"fmt"
	"net"
)

// Refuse stops listening until Accept, so new connections are refused as if the server were down.
// Existing ones stay, unless Reset.
func (p *Proxy) Refuse() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener == nil || p.closed {
		return nil
	}
	err := p.listener.Close()
	p.listener = nil
	return err
}

// Accept listens again after Refuse, at the same address.
func (p *Proxy) Accept() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil || p.closed {
		return nil
	}
	listener, err := net.Listen("tcp4", p.addr)
	if err != nil {
		return fmt.Errorf("throwaway: proxy: %w", err)
	}
	p.listener = listener
	p.pumps.Go(func() { p.accept(listener) })
	return nil
}

func (p *Proxy) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // The client left before it was accepted.
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
