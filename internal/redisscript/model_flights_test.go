package redisscript

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The part of the model that is a session and its requests: what it sends, and makes of the answers.

// A flight is an exchange under way.
type flight struct {
	x     Exchange
	wants []*want
	drops []dropping
	sent  int64
}

func (p *peer) settle(w *want) {
	p.wants = slices.DeleteFunc(p.wants, func(other *want) bool { return other == w })
}

// withdraw takes a request back.
func (p *peer) withdraw(w *want) {
	p.settle(w)
	switch {
	case !w.sent || w.extends:
	case w.kind == Share:
		p.drop(w.ids[:1]...)
		p.drop(w.ids[1:]...)
	default:
		p.drop(w.ids...)
	}
}

func (p *peer) wantOf(id string) *want {
	for _, w := range p.wants {
		if slices.Contains(w.ids, id) {
			return w
		}
	}
	return nil
}

// fly sends what is to be sent.
func (t *trial) fly(p *peer, f fate) {
	t.land(p)
	fl := p.board(t.now)
	if fl == nil {
		return
	}
	if p.cut && f != strayed {
		f = requestLost
	}
	switch f {
	case requestLost:
		t.say("%s%s", shown{fl.x}, fates[f])
		p.failed(fl)
	case replyLost:
		_, _ = t.exchange(fl.x)
		p.failed(fl)
	case slow:
		t.say("%s%s", shown{fl.x}, fates[f])
		p.flight = fl
	case strayed:
		t.say("%s%s", shown{fl.x}, fates[f])
		x := fl.x
		t.strays = append(t.strays, stray{x: &x})
		p.failed(fl)
	case doubled:
		if _, err := t.exchange(fl.x); err == nil && fl.x.Offered == 0 {
			t.twice(func() { _, _ = t.exchange(fl.x) })
		}
		t.arrive(p, fl)
	default:
		t.arrive(p, fl)
	}
}

// board makes an exchange of what is to be sent.
func (p *peer) board(now int64) *flight {
	fl := &flight{sent: now, drops: p.drops}
	x := Exchange{Expected: p.expected(now), Session: p.session, Epoch: p.epoch, TTLMillis: p.ttl, MostWaiting: p.most}
	p.drops = nil
	for _, d := range fl.drops {
		if d.plain && p.min == 0 {
			x.Release = append(x.Release, d.ids[0])
		} else {
			x.Drop = append(x.Drop, Request(p.ttl, d.ids...))
		}
	}
	for _, w := range p.wants {
		if !w.out {
			continue
		}
		w.out, w.sent = false, true
		fl.wants = append(fl.wants, w)
		switch alone := p.min == 0 && len(w.ids) == 1; {
		case alone && w.kind == Wait:
			x.Waits = append(x.Waits, w.ids[0])
		case alone && w.kind == Try && w.pool == "":
			x.Tries = append(x.Tries, w.ids[0])
		default:
			kind := w.kind
			if kind == Share && len(w.ids)%2 == 0 && len(p.heldOf(w.pool)) == 0 {
				kind = Join
			}
			x.Ask = append(x.Ask, Ask{kind, Request(p.ttl, w.ids...)})
		}
	}
	x.Offered, x.Offerer = p.offered, p.offerer
	x.MoveMicros = int64(p.made%3) * 7000
	p.offered, p.offerer = 0, ""
	fl.x = x
	if len(fl.drops)+len(fl.wants)+x.Offered == 0 {
		return nil
	}
	return fl
}

// land lets the flight arrive that is under way.
func (t *trial) land(p *peer) {
	fl := p.flight
	p.flight = nil
	switch {
	case fl == nil:
	case p.cut || t.now-fl.sent > p.ttl/4: // it has given up
		_, _ = t.exchange(fl.x)
		p.failed(fl)
	default:
		t.arrive(p, fl)
	}
}

// arrive runs an exchange and takes its answer.
func (t *trial) arrive(p *peer, fl *flight) {
	got, err := t.exchange(fl.x)
	if errors.Is(err, ErrGone) {
		t.beat(p, arrives)
		fl.sent, fl.x.Epoch, fl.x.Expected = t.now, p.epoch, p.expected(t.now)
		got, err = t.exchange(fl.x)
	}
	if err != nil {
		t.failf("%s renewed, and is still refused: %v", p.session, err)
	}
	if fl.x.Epoch != p.epoch { // a heartbeat that crossed it found that Redis forgot
		p.failed(fl)
		return
	}
	if got.Now > 0 {
		p.anchorLocal, p.anchorRedis = fl.sent, got.Now
	}
	if got.All {
		for _, w := range fl.wants {
			got.Granted = append(got.Granted, w.ids...)
		}
	}
	t.granted(p, got.Granted, fl.sent)
	for _, id := range append(got.Refused, got.Crowded...) {
		if w := p.wantOf(id); w != nil {
			if _, held := p.held[id]; w.extends && held {
				t.lose(p, id)
			}
			p.settle(w)
			if len(w.ids) > 1 {
				p.drop(w.ids...)
			}
		}
	}
	if got.Promised.Recalled > 0 {
		p.recall(fl.x.Offerer, got.Promised)
	}
	if len(p.drops) > 0 { // grants that crossed a withdrawal
		t.fly(p, arrives)
	}
}

func (p *peer) failed(fl *flight) {
	p.drops = append(fl.drops, p.drops...)
	for _, w := range fl.wants {
		if !slices.Contains(p.wants, w) {
			continue
		}
		if w.kind == Wait || w.kind == Share {
			w.out = true
			continue
		}
		p.settle(w)
		if !w.extends {
			p.drop(w.ids...)
		}
	}
}

// granted takes grants that count from since.
func (t *trial) granted(p *peer, ids []string, since int64) {
	until := p.trustedSince(since)
	for _, id := range ids {
		w := p.wantOf(id)
		if _, held := p.held[id]; held {
			p.held[id] = max(p.held[id], until)
			if w != nil {
				p.settle(w)
			}
			continue
		}
		switch {
		case w == nil:
			p.drop(id)
			continue
		case w.extends:
			p.settle(w)
			continue
		case until <= t.now:
			w.out = true
			continue
		}
		for _, id := range w.ids {
			if w.kind != Share || slices.Contains(ids, id) {
				p.held[id] = until
			}
		}
		p.settle(w)
	}
}

// deliver puts pushes into the sessions' inboxes.
func (t *trial) deliver(pushes []push) {
	for _, m := range pushes {
		for _, p := range t.peers {
			if p != nil && p.session == m.session && !p.cut && !p.deaf {
				p.inbox = append(p.inbox, m.text)
			}
		}
	}
}

// hear handles the pushes that are there.
func (t *trial) hear(p *peer) {
	for len(p.inbox) > 0 && p.alive {
		text := p.inbox[0]
		p.inbox = p.inbox[1:]
		t.say("%s hears %s", p.session, text)
		switch f := strings.Fields(text); f[0] {
		case "g":
			if f[1] != p.epoch {
				p.repeat()
				break
			}
			at, _ := strconv.ParseInt(f[2], 10, 64)
			t.granted(p, f[3:], min(t.now, p.anchorLocal+at-p.anchorRedis-1))
		case "b":
			var told Tally
			_, _ = fmt.Sscan(f[3], &told.Recalled)
			_, _ = fmt.Sscan(f[4], &told.Withdrawn)
			if f[1] == p.epoch {
				p.recall(f[2], told)
			}
		case "r":
			p.repeat()
		case "f":
			var quarantine []string
			for at := 1; at < len(f); at += 3 {
				quarantine = append(quarantine, f[at], f[at+1]+" "+f[at+2])
			}
			t.endBackends(p, quarantine)
		case "s":
			t.look(p, f[1], f[2:])
		case "l":
			t.beat(p, arrives)
		}
		t.fly(p, arrives)
	}
}
