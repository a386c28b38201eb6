package page

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/passbuddy/passbuddy/internal/page/incident"
	"github.com/passbuddy/passbuddy/internal/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newPage returns a page of a calm fleet, or as change wants it.
func newPage(t *testing.T, change func(*Options)) *Page {
	t.Helper()
	opts := Options{
		Source: incident.New(incident.Scenes["calm"], 0).Source, Semaphore: "orders",
		Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&opts)
	}
	p, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func get(h http.Handler, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
	return w
}

func TestOptionsAreChecked(t *testing.T) {
	source := incident.New(incident.Scenes["calm"], 0).Source
	as := func(string) (Actor, error) { return nil, errors.New("nobody acts here") }
	for name, opts := range map[string]Options{
		"Source":           {Semaphore: "orders"},
		"Semaphore":        {Source: source},
		"Interval":         {Source: source, Semaphore: "orders", Interval: 1},
		"Timeout":          {Source: source, Semaphore: "orders", Timeout: -1},
		"Token":            {Source: source, Semaphore: "orders", Control: &Control{As: as}},
		"not visible":      {Source: source, Semaphore: "orders", Control: &Control{As: as, Token: " x"}},
		"visible ASCII":    {Source: source, Semaphore: "orders", Control: &Control{As: as, Token: "ü"}},
		"Control.As is mi": {Source: source, Semaphore: "orders", Control: &Control{Token: "x"}},
	} {
		if _, err := New(opts); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("New without a good %s: %v", name, err)
		}
	}
}

// Every reply is protected: also those that refuse.
func TestHeaders(t *testing.T) {
	p := newPage(t, nil)
	for _, target := range []string{
		"/", "/assets/app.js", "/assets/page.css", "/status.json", "/nothing", "/assets/nothing",
		"/control/pause",
	} {
		w := get(p, target)
		h := w.Header()
		csp := h.Get("Content-Security-Policy")
		for _, want := range []string{
			"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'",
			"base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'",
		} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: the policy lacks %s", target, want)
			}
		}
		if strings.Contains(csp, "unsafe") {
			t.Errorf("%s: the policy has an exception: %s", target, csp)
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
			"Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
		} {
			if got := h.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", target, name, got, want)
			}
		}
		if h.Get("Content-Type") == "" {
			t.Errorf("%s: no content type", target)
		}
	}
}

// The page has no script or style in itself, and no address but relative ones.
func TestThePageIsSelfContained(t *testing.T) {
	p := newPage(t, nil)
	html := get(p, "/").Body.String()
	for what, pattern := range map[string]string{
		"an inline script":  `<script[^>]*>[^<]`,
		"a style":           `<style|\sstyle=`,
		"an inline handler": `\son[a-z]+=`,
		"another host":      `(?i)(src|href)="(https?:)?//`,
		"an absolute path":  `(src|href|action)="/`,
	} {
		if found := regexp.MustCompile(pattern).FindString(html); found != "" {
			t.Errorf("index.html has %s: %s", what, found)
		}
	}
	links := regexp.MustCompile(`(?:src|href)="([^"#]+)"`).FindAllStringSubmatch(html, -1)
	if len(links) < 5 {
		t.Fatalf("index.html has only the links %v", links)
	}
	for _, link := range links {
		if w := get(p, "/"+link[1]); w.Code != http.StatusOK {
			t.Errorf("index.html leads to %s: %d", link[1], w.Code)
		}
	}
	imports := regexp.MustCompile(`from '([^']+)'`)
	for name, file := range files {
		if path.Ext(name) != ".js" || name == "uplot.js" {
			continue
		}
		for _, from := range imports.FindAllStringSubmatch(string(file.body), -1) {
			if _, ok := files[strings.TrimPrefix(from[1], "./")]; !ok {
				t.Errorf("%s imports %s, which is not there", name, from[1])
			}
		}
	}
}

// No script of ours can turn text into markup or code. The policy forbids it, too.
func TestScriptsMakeNoMarkup(t *testing.T) {
	banned := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|` +
		`DOMParser|createContextualFragment|setHTML|\beval\b|new Function|srcdoc|` +
		`setTimeout\(['"\x60]|javascript:`)
	for name, file := range files {
		if path.Ext(name) == ".js" {
			if found := banned.Find(file.body); found != nil {
				t.Errorf("%s has %s", name, found)
			}
		}
	}
}

// Below another path, with a prefix that is stripped, the page finds its files.
func TestSubPath(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("/ops/fleet/", http.StripPrefix("/ops/fleet", newPage(t, nil)))
	mux.Handle("/ops/fleet", http.StripPrefix("/ops/fleet", newPage(t, nil)))
	server := httptest.NewServer(mux)
	defer server.Close()
	for _, target := range []string{"/ops/fleet", "/ops/fleet/", "/ops/fleet?a=b"} {
		reply, err := server.Client().Get(server.URL + target)
		if err != nil {
			t.Fatal(err)
		}
		_ = reply.Body.Close()
		if reply.StatusCode != http.StatusOK || reply.Request.URL.Path != "/ops/fleet/" {
			t.Errorf("%s leads to %s: %s", target, reply.Request.URL, reply.Status)
		}
	}
	server.CloseClientConnections()
}

// A path that a hostile link made cannot lead to another host.
func TestRedirectStaysHere(t *testing.T) {
	p := newPage(t, nil)
	for _, uri := range []string{"//evil.example", "/a//evil.example", "/%2f%2fevil.example", "", "/x?u=//e"} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL.Path, r.RequestURI = "", uri
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if to := w.Header().Get("Location"); !strings.HasPrefix(to, "./") {
			t.Errorf("%q redirects to %q", uri, to)
		}
	}
}

func TestMethods(t *testing.T) {
	p := newPage(t, nil)
	for _, target := range []string{"/", "/events", "/status.json", "/assets/app.js"} {
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest(http.MethodPost, target, nil))
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") == "" {
			t.Errorf("POST %s: %d", target, w.Code)
		}
		w = httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest(http.MethodHead, target, nil))
		if w.Code != http.StatusOK {
			t.Errorf("HEAD %s: %d", target, w.Code)
		}
	}
}

// A browser that has a file asks whether it changed, and is told that it did not.
func TestAssetsAreKept(t *testing.T) {
	p := newPage(t, nil)
	first := get(p, "/assets/app.js")
	r := httptest.NewRequest(http.MethodGet, "/assets/app.js", nil)
	r.Header.Set("If-None-Match", first.Header().Get("ETag"))
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	if w.Code != http.StatusNotModified {
		t.Errorf("the second time: %d", w.Code)
	}
}

func TestStatusOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no real time, in which a slow machine misses a bound
		play := incident.New(incident.Scenes["calm"], 0)
		p := newPage(t, func(o *Options) { o.Source = play.Source })
		for range 5 {
			w := get(p, "/status.json")
			if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"semaphore":"orders"`) {
				t.Fatalf("%d: %s", w.Code, w.Body)
			}
		}
		if n := play.Calls(); n > 2 {
			t.Errorf("five readers asked Redis %d times", n)
		}

		p = newPage(t, func(o *Options) {
			o.Source = func(context.Context) (status.Document, error) {
				return status.Document{}, errors.New("dial tcp 127.0.0.1:1: connection refused\nx")
			}
		})
		w := get(p, "/status.json")
		if w.Code != http.StatusBadGateway || strings.Count(w.Body.String(), "\n") != 1 {
			t.Errorf("without Redis: %d: %s", w.Code, w.Body)
		}
	})
}
