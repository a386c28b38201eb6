package page

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

const token = "correct-horse-battery-staple"

// An actor records what is asked of it.
type actor struct {
	mu    sync.Mutex
	calls []string
	by    []string
	err   error
	wait  bool // until ctx ends
}

func (a *actor) did(ctx context.Context, format string, args ...any) error {
	a.mu.Lock()
	a.calls = append(a.calls, fmt.Sprintf(format, args...))
	wait, err := a.wait, a.err
	a.mu.Unlock()
	if wait {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (a *actor) SetCapacity(ctx context.Context, n int) error {
	return a.did(ctx, "capacity %d", n)
}

func (a *actor) Pause(ctx context.Context, o semaphore.PauseOptions) error {
	return a.did(ctx, "pause drain=%v timeout=%v for=%v reason=%q", o.Drain, o.Timeout, o.For,
		o.Reason)
}

func (a *actor) Resume(ctx context.Context) error { return a.did(ctx, "resume") }

func (a *actor) Evict(ctx context.Context, session string, o semaphore.EvictOptions) error {
	return a.did(ctx, "evict %s force=%v timeout=%v reason=%q", session, o.Force, o.Timeout,
		o.Reason)
}

func (a *actor) made() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls
}

// A controlled is a page that lets its viewers act, on an actor that records it.
type controlled struct {
	*Page
	actor *actor
	log   *bytes.Buffer // read it when no action runs
}

func newControlled(t *testing.T, operator func(*http.Request) string) controlled {
	t.Helper()
	c := controlled{actor: &actor{}, log: &bytes.Buffer{}}
	c.Page = newPage(t, func(o *Options) {
		o.Logger = slog.New(slog.NewTextHandler(c.log, nil))
		o.Control = &Control{Token: token, Operator: operator, As: func(by string) (Actor, error) {
			c.actor.by = append(c.actor.by, by)
			return c.actor, nil
		}}
	})
	return c
}

// verbArgs are good arguments of each verb, and what they do.
var verbArgs = map[string]struct{ args, does string }{
	"capacity": {`"capacity":60`, "capacity 60"},
	"pause": {
		`"drain":true,"timeout_seconds":30,"for_seconds":600,"reason":"failover"`,
		`pause drain=true timeout=30s for=10m0s reason="failover"`,
	},
	"resume": {``, "resume"},
	"evict": {
		`"session":"s1","force":true,"timeout_seconds":1.5,"reason":"stuck"`,
		`evict s1 force=true timeout=1.5s reason="stuck"`,
	},
}

func verbBody(verb, more string) string {
	parts := []string{`"confirm":"orders"`}
	for _, part := range []string{verbArgs[verb].args, more} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// post is a request of the page's own script.
func post(verb, body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/control/"+verb, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(controlHeader, "1")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	return r
}

func do(t *testing.T, h http.Handler, r *http.Request) (int, reply) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var out reply
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatalf("%s: %d: %v", r.URL, w.Code, err)
	}
	return w.Code, out
}

func TestVerbs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no real time, in which a slow machine misses a bound
		if len(verbs) != len(verbArgs) {
			t.Fatal("a verb is not tested")
		}
		for verb, want := range verbArgs {
			c := newControlled(t, nil)
			status, out := do(t, c, post(verb, verbBody(verb, `"operator":"ana"`)))
			if status != http.StatusOK || out.Pending {
				t.Errorf("%s: %d %+v", verb, status, out)
			}
			if got := c.actor.made(); !reflect.DeepEqual(got, []string{want.does}) {
				t.Errorf("%s did %q", verb, got)
			}
			if !reflect.DeepEqual(c.actor.by, []string{"ana@192.0.2.1"}) {
				t.Errorf("%s was done by %q", verb, c.actor.by)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			line := c.log.String()
			for _, part := range []string{
				"verb=" + verb, "operator=ana@192.0.2.1", "remote=192.0.2.1:1234", "semaphore=orders",
				"took=",
			} {
				if !strings.Contains(line, part) {
					t.Errorf("%s: the log lacks %s: %s", verb, part, line)
				}
			}
			if strings.Contains(line, token) {
				t.Errorf("%s: the token is in the log", verb)
			}
		}
	})
}

// Each verb is refused for each reason, and does nothing; and each refusal is logged.
func TestVerbsAreRefused(t *testing.T) {
	for verb := range verbs {
		for name, test := range map[string]struct {
			change func(*http.Request)
			body   string
			status int
		}{
			"no token": {
				func(r *http.Request) { r.Header.Del("Authorization") }, "",
				http.StatusUnauthorized,
			},
			"an empty token": {
				func(r *http.Request) { r.Header.Set("Authorization", "Bearer ") }, "",
				http.StatusUnauthorized,
			},
			"a wrong token": {
				func(r *http.Request) { r.Header.Set("Authorization", "Bearer wrong") }, "",
				http.StatusUnauthorized,
			},
			"a longer token": {
				func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token+"x") }, "",
				http.StatusUnauthorized,
			},
			"a shorter token": {
				func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token[1:]) }, "",
				http.StatusUnauthorized,
			},
			"the token as a password": {
				func(r *http.Request) { r.SetBasicAuth("operator", token) }, "",
				http.StatusUnauthorized,
			},
			"the token in the address": {
				func(r *http.Request) {
					r.Header.Del("Authorization")
					r.URL.RawQuery = "token=" + token
				}, "", http.StatusUnauthorized,
			},
			"no header of ours": {
				func(r *http.Request) { r.Header.Del(controlHeader) }, "", http.StatusForbidden,
			},
			"another site": {
				func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, "",
				http.StatusForbidden,
			},
			"another origin": {
				func(r *http.Request) {
					r.Header.Del("Sec-Fetch-Site")
					r.Header.Set("Origin", "https://evil.example")
				}, "", http.StatusForbidden,
			},
			"GET": {func(r *http.Request) { r.Method = http.MethodGet }, "", http.StatusMethodNotAllowed},
			"PUT": {func(r *http.Request) { r.Method = http.MethodPut }, "", http.StatusMethodNotAllowed},
			"a form": {
				func(r *http.Request) {
					r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				}, "", http.StatusUnsupportedMediaType,
			},
			"plain text": {
				func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, "",
				http.StatusUnsupportedMediaType,
			},
			"no confirmation":      {nil, strings.Replace(verbBody(verb, ""), "orders", "", 1), http.StatusBadRequest},
			"another confirmation": {nil, strings.Replace(verbBody(verb, ""), "orders", "Orders", 1), http.StatusBadRequest},
			"an unknown argument":  {nil, verbBody(verb, `"dry_run":true`), http.StatusBadRequest},
			"two bodies":           {nil, verbBody(verb, "") + "{}", http.StatusBadRequest},
			"no JSON":              {nil, "confirm=orders", http.StatusBadRequest},
			"a long body":          {nil, verbBody(verb, `"operator":"`+strings.Repeat("x", maxBody)+`"`), http.StatusRequestEntityTooLarge},
		} {
			t.Run(verb+", "+name, func(t *testing.T) {
				c := newControlled(t, nil)
				c.guard.delay = time.Millisecond
				body := test.body
				if body == "" {
					body = verbBody(verb, "")
				}
				r := post(verb, body)
				if test.change != nil {
					test.change(r)
				}
				status, out := do(t, c, r)
				if status != test.status {
					t.Errorf("%d %q, want %d", status, out.Text, test.status)
				}
				if got := c.actor.made(); len(got) != 0 {
					t.Errorf("it did %q", got)
				}
				line := c.log.String()
				if !strings.Contains(line, "refused") || !strings.Contains(line, "verb="+verb) {
					t.Errorf("the log: %q", line)
				}
				if strings.Contains(line, token) || strings.Contains(out.Text, token) {
					t.Error("the token is told")
				}
			})
		}
	}
}

// A page without Control knows no verb.
func TestReadOnly(t *testing.T) {
	p := newPage(t, nil)
	for verb := range verbs {
		if status, _ := do(t, p, post(verb, verbBody(verb, ""))); status != http.StatusForbidden {
			t.Errorf("%s: %d", verb, status)
		}
	}
	c := newControlled(t, nil)
	if status, _ := do(t, c, post("flush", "{}")); status != http.StatusNotFound {
		t.Errorf("an unknown verb: %d", status)
	}
}

// A wrong token is answered late, a right one at once.
func TestGuessingIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControlled(t, nil)
		r := post("resume", verbBody("resume", ""))
		r.Header.Set("Authorization", "Bearer wrong")
		begun := time.Now()
		do(t, c, r)
		if took := time.Since(begun); took < wrongTokenDelay {
			t.Errorf("a wrong token took %v", took)
		}
		begun = time.Now()
		do(t, c, post("resume", verbBody("resume", "")))
		if took := time.Since(begun); took != 0 {
			t.Errorf("a right token took %v", took)
		}
	})
}

func TestArgumentsAreChecked(t *testing.T) {
	for _, test := range []struct{ verb, body, want string }{
		{"capacity", `{"confirm":"orders"}`, "capacity must be"},
		{"capacity", `{"confirm":"orders","capacity":-1}`, "capacity must be"},
		{"capacity", `{"confirm":"orders","capacity":1.5}`, "capacity"},
		{"pause", `{"confirm":"orders","drain":true}`, "timeout_seconds"},
		{"pause", `{"confirm":"orders","timeout_seconds":3}`, "for_seconds"},
		{"pause", `{"confirm":"orders","for_seconds":-3}`, "seconds"},
		{"pause", `{"confirm":"orders","for_seconds":1e300}`, "seconds"},
		{"evict", `{"confirm":"orders"}`, "session"},
	} {
		c := newControlled(t, nil)
		status, out := do(t, c, post(test.verb, test.body))
		if status != http.StatusBadRequest || !strings.Contains(out.Text, test.want) {
			t.Errorf("%s %s: %d %q", test.verb, test.body, status, out.Text)
		}
		if got := c.actor.made(); len(got) != 0 {
			t.Errorf("%s did %q", test.verb, got)
		}
	}
}

// The operator is whom the embedding program names, and always has the remote host.
func TestOperator(t *testing.T) {
	c := newControlled(t, func(r *http.Request) string { return r.Header.Get("X-User") })
	r := post("resume", verbBody("resume", `"operator":"somebody else"`))
	r.Header.Set("X-User", "bo\nb")
	do(t, c, r)
	do(t, c, post("resume", verbBody("resume", "")))
	if !reflect.DeepEqual(c.actor.by, []string{"bo b@192.0.2.1", "page@192.0.2.1"}) {
		t.Errorf("done by %q", c.actor.by)
	}
}

func TestFailureIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControlled(t, nil)
		c.actor.err = errors.New("semaphore: Redis is away")
		status, out := do(t, c, post("resume", verbBody("resume", "")))
		if status != http.StatusBadGateway || !strings.Contains(out.Text, "Redis is away") {
			t.Errorf("%d %q", status, out.Text)
		}
	})
}

// An action that takes long outlives its request. All viewers are told of its end, which Close
// brings about, too.
func TestLongAction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControlled(t, nil)
		c.actor.wait = true
		end := watch(c)
		status, out := do(t, c, post("pause", verbBody("pause", "")))
		if status != http.StatusAccepted || !out.Pending {
			t.Errorf("%d %+v", status, out)
		}
		for range maxActions - 1 {
			do(t, c, post("pause", verbBody("pause", "")))
		}
		if status, _ := do(t, c, post("pause", verbBody("pause", ""))); status != http.StatusServiceUnavailable {
			t.Errorf("action %d at once: %d", maxActions+1, status)
		}
		c.actor.mu.Lock()
		c.actor.wait = false
		c.actor.mu.Unlock()
		time.Sleep(time.Second)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if body := end(); !strings.Contains(c.log.String(), "context canceled") ||
			strings.Contains(body, token) {
			t.Errorf("the log: %s", c.log)
		}
	})
}

// The end of an action is told to all who look.
func TestNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControlled(t, nil)
		ends := []func() string{watch(c), watch(c)}
		synctest.Wait()
		do(t, c, post("capacity", verbBody("capacity", "")))
		synctest.Wait()
		for _, end := range ends {
			if body := end(); !strings.Contains(body, `{"text":"Set the capacity to 60: done","fine":true}`) {
				t.Errorf("a viewer received %s", body)
			}
		}
	})
}
