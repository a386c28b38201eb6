package serve

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"github.com/passbuddy/passbuddy/internal/page"
	"github.com/passbuddy/passbuddy/internal/page/incident"
	"github.com/passbuddy/passbuddy/semaphore"
)

// An actor records what the page does.
type actor struct {
	mu    sync.Mutex
	calls []string
}

func (a *actor) did(format string, args ...any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, fmt.Sprintf(format, args...))
	return nil
}

func (a *actor) made() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.calls, "; ")
}

func (a *actor) SetCapacity(_ context.Context, n int) error { return a.did("capacity %d", n) }
func (a *actor) Resume(context.Context) error               { return a.did("resume") }
func (a *actor) Pause(_ context.Context, o semaphore.PauseOptions) error {
	return a.did("pause %v %v %v %s", o.Drain, o.Timeout, o.For, o.Reason)
}
func (a *actor) Evict(_ context.Context, _ string, o semaphore.EvictOptions) error {
	return a.did("evict %v %v", o.Force, o.Timeout)
}

// The verbs need the token and the name of the semaphore, typed; and the token is nowhere else.
func TestBrowserControl(t *testing.T) {
	a := &actor{}
	control := &page.Control{Token: token, As: func(string) (page.Actor, error) { return a, nil }}
	b := open(t, serveScene(t, incident.New(incident.Scenes["paused"], 0), control), desktop, "light")
	b.ready()
	b.until(`!document.querySelector('#verbs').hidden`)
	fill := func(label, text string) {
		t.Helper()
		found := eval[bool](b, fmt.Sprintf(`(() => {
			const field = [...document.querySelectorAll('#act label')].find((l) => l.innerText.startsWith(%q));
			field?.querySelector('input').select();
			return Boolean(field);
		})()`, label))
		if !found {
			t.Fatalf("the dialog has no field %q", label)
		}
		b.press(text)
	}
	const ready = `!document.querySelector('#act .danger').disabled`

	b.press("C")
	b.until(`document.querySelector('#act').open`)
	fill("New capacity", "60")
	fill("Type ", "Orders")
	if eval[bool](b, ready) {
		t.Error("another name confirms")
	}
	fill("Token", "wrong")
	fill("Type ", "orders")
	b.until(ready)
	b.press(kb.Enter)
	b.until(`document.querySelector('.answer-line')?.innerText === 'the token is wrong'`)
	if got := a.made(); got != "" {
		t.Fatalf("with a wrong token it did %s", got)
	}
	// The refusal is an error in the browser's console, as it should be.
	b.mu.Lock()
	b.errors = slices.DeleteFunc(b.errors, func(e string) bool { return strings.Contains(e, "401") })
	b.mu.Unlock()
	fill("Token", token)
	b.press(kb.Enter)
	b.until(`!document.querySelector('#act').open`)
	b.until(`document.querySelector('#notices').innerText.includes('Set the capacity to 60: done')`)

	// The token is remembered for the next verb.
	b.press("P")
	b.until(`document.querySelector('#act').open`)
	b.run(click("#act .check input"))
	fill("Give up", "30")
	fill("Resume by itself", "600")
	fill("Reason", "failover")
	fill("Type ", "orders")
	b.press(kb.Enter)
	b.until(`!document.querySelector('#act').open`)
	b.press("R")
	b.until(`document.querySelector('#act').open`)
	fill("Type ", "orders")
	b.press(kb.Enter)
	b.until(`!document.querySelector('#act').open`)
	b.press("j")
	b.until(`document.activeElement.matches('button.open')`)
	b.press("E")
	b.until(`document.querySelector('#act').open`)
	fill("Type ", "orders")
	b.press(kb.Enter)
	b.until(`!document.querySelector('#act').open`)
	want := "capacity 60; pause true 30s 10m0s failover; resume; evict false 10s"
	if got := a.made(); got != want {
		t.Errorf("it did %s, want %s", got, want)
	}
	if eval[bool](b, fmt.Sprintf(`[document.documentElement.outerHTML, location.href, document.cookie,
		JSON.stringify({ ...localStorage }), JSON.stringify({ ...sessionStorage }),
		...[...document.querySelectorAll('input')].map((i) => i.value)].join().includes(%q)`, token)) {
		t.Error("the token stays in the page or in the browser's storage")
	}
	b.clean()
}
