package page

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"time"
)

const (
	maxBody = 4096 // bytes of a verb's arguments
	// maxActions bounds the actions that run at once: a drain can take minutes.
	maxActions = 8
	// answerTimeout is how long a request waits for its action. A longer action goes on, and
	// all viewers are told of its end.
	answerTimeout = 3 * time.Second
)

// A reply is the body of every answer to a verb.
type reply struct {
	Text string `json:"text"`
	// Pending is whether the action goes on. A notice tells of its end.
	Pending bool `json:"pending"`
}

// A notice tells all viewers of an action's end.
type notice struct {
	Text string `json:"text"`
	Fine bool   `json:"fine"`
}

// serveControl performs a verb.
func (p *Page) serveControl(w http.ResponseWriter, r *http.Request, name string) {
	answer := func(status int, out reply) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(out)
	}
	refuse := func(status int, why string) {
		p.opts.Logger.Warn("passbuddy: the page refused an action", "semaphore", p.opts.Semaphore,
			"verb", cleanText(name, 40), "remote", r.RemoteAddr, "status", status, "reason", why)
		answer(status, reply{Text: why})
	}
	if p.guard == nil {
		refuse(http.StatusForbidden, "this page is read-only")
		return
	}
	parse, known := verbs[name]
	if !known {
		refuse(http.StatusNotFound, "there is no such verb")
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		refuse(http.StatusMethodNotAllowed, "a verb is a POST")
		return
	}
	if no := p.guard.check(r); no != nil {
		if no.status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer realm="passbuddy"`)
		}
		refuse(no.status, no.text)
		return
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		refuse(http.StatusUnsupportedMediaType, "the body must be application/json")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body exceeds %d bytes", maxBody))
		return
	}
	act, err := parse(body)
	if err != nil {
		refuse(http.StatusBadRequest, cleanText(err.Error(), 300))
		return
	}
	if act.common.Confirm != p.opts.Semaphore {
		refuse(http.StatusBadRequest, "to confirm, type the name of the semaphore")
		return
	}
	operator := p.operator(r, act.common.Operator)
	actor, err := p.guard.as(operator)
	if err != nil {
		refuse(http.StatusInternalServerError, cleanText(err.Error(), 300))
		return
	}
	end, ok := p.begin(name, act, actor, operator, r.RemoteAddr)
	if !ok {
		refuse(http.StatusServiceUnavailable, "too many actions run, or the server is ending")
		return
	}
	patience := time.NewTimer(answerTimeout)
	defer patience.Stop()
	select {
	case n := <-end:
		status := http.StatusOK
		if !n.Fine {
			status = http.StatusBadGateway
		}
		answer(status, reply{Text: n.Text})
	case <-patience.C:
		answer(http.StatusAccepted, reply{Text: act.text + ": it goes on", Pending: true})
	case <-r.Context().Done():
	}
}

// operator names who acts. It always has the remote host: a name that was typed proves nothing.
func (p *Page) operator(r *http.Request, typed string) string {
	name := cleanText(typed, 64)
	if p.guard.operator != nil {
		name = cleanText(p.guard.operator(r), 100)
	}
	if name == "" {
		name = "page"
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	return cleanText(name+"@"+host, 180)
}

// begin starts an action, which does not end with its request: a drain must not stop
// because a laptop closes. It logs the begin and the end, and returns how it ended. It
// returns false if nothing was begun.
func (p *Page) begin(name string, act action, actor Actor, operator, remote string,
) (<-chan notice, bool) {
	if !p.enter() {
		return nil, false
	}
	logger := p.opts.Logger.With("semaphore", p.opts.Semaphore, "verb", name,
		"operator", operator, "remote", remote).With(act.log...)
	logger.Info("passbuddy: the page begins an action")
	end := make(chan notice, 1)
	go func() {
		defer p.leave()
		begun := time.Now()
		err := act.run(p.ctx, actor)
		n := notice{Text: act.text + ": done", Fine: err == nil}
		level, ended := slog.LevelInfo, []any{"took", time.Since(begun).Round(time.Millisecond)}
		if err != nil {
			n.Text = act.text + ": " + describe(err)
			level, ended = slog.LevelWarn, append(ended, "err", err)
		}
		logger.Log(context.Background(), level, "passbuddy: an action of the page ended", ended...)
		p.feed.tell(encodeFrame("notice", n))
		end <- n
	}()
	return end, true
}

// enter counts an action that begins. It returns false if there are too many, or none may begin.
func (p *Page) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.running == maxActions {
		return false
	}
	p.running++
	p.actions.Add(1)
	return true
}

func (p *Page) leave() {
	p.mu.Lock()
	p.running--
	p.mu.Unlock()
	p.actions.Done()
}

func describe(err error) string {
	if errors.Is(err, context.Canceled) {
		return "cut, because the server ended"
	}
	return cleanText(err.Error(), 300)
}
