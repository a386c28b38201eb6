package serve

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	cdplog "github.com/chromedp/cdproto/log"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/passbuddy/passbuddy/internal/page"
	"github.com/passbuddy/passbuddy/internal/page/incident"
)

// browser starts Chromium once for all tests of the page.
var browser = sync.OnceValues(func() (context.Context, error) {
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		return nil, nil
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path),
		chromedp.Flag("hide-scrollbars", true))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, _ := chromedp.NewContext(allocator)
	stopBrowser = func() {
		_ = chromedp.Cancel(ctx)
		stop()
	}
	return ctx, chromedp.Do(ctx)
})

var stopBrowser = func() {}

func TestMain(m *testing.M) {
	code := m.Run()
	stopBrowser()
	os.Exit(code)
}

// A step is what a tab does, for no result.
type step = chromedp.Action[chromedp.Void]

// call is a command of the browser's protocol as a step.
func call[P, R any](command cdp.Command[P, R], params P) step {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, command, params)
		return err
	})
}

// click clicks the first element of a selector.
func click(selector string) step { return chromedp.Click(chromedp.CSS(selector)) }

// A size is that of a device.
type size struct {
	name          string
	width, height int64
	scale         float64
	mobile        bool
}

var sizes = []size{
	{"phone", 390, 844, 2, true}, {"tablet", 820, 1180, 1, true}, {"desktop", 1440, 900, 1, false},
}

var desktop = sizes[2]

// A view is a scene on a device.
type view struct {
	scene  string
	device size
}

func onEachDevice(scenes []string) (views []view) {
	for _, scene := range scenes {
		for _, device := range sizes {
			views = append(views, view{scene, device})
		}
	}
	return views
}

// A tab shows the page. It fails the test at its end if the console had an error.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu     sync.Mutex
	errors []string
}

// open opens a tab of a device, in a colour scheme.
func open(t *testing.T, url string, device size, scheme string, before ...step) *tab {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a browser")
	}
	parent, err := browser()
	if err != nil {
		t.Fatal(err)
	}
	if parent == nil {
		t.Skip("there is no Chromium here: apt-get install chromium")
	}
	ctx, cancel := chromedp.NewContext(parent)
	ctx, stop := context.WithTimeout(ctx, 4*time.Minute)
	tab := &tab{t: t, ctx: ctx}
	t.Cleanup(func() {
		stop()
		cancel()
	})
	if err := chromedp.Listen(ctx, tab.listen); err != nil {
		t.Fatal(err)
	}
	tab.run(before...)
	tab.run(
		call(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
			Width: device.width, Height: device.height, DeviceScaleFactor: device.scale,
			Mobile: device.mobile,
		}),
		call(emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "UTC"}),
		call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		}),
		chromedp.Navigate(url),
	)
	return tab
}

func (b *tab) listen(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *cdpruntime.EventExceptionThrown:
		b.errors = append(b.errors, fmt.Sprint(e.ExceptionDetails.Text, e.ExceptionDetails.Exception))
	case *cdpruntime.EventConsoleAPICalled:
		if e.Type == cdpruntime.ConsoleAPICalledTypeError || e.Type == cdpruntime.ConsoleAPICalledTypeWarning {
			b.errors = append(b.errors, fmt.Sprint("console: ", string(e.Args[0].Value)))
		}
	case *cdplog.EventEntryAdded:
		if e.Entry.Level == cdplog.EntryLevelError || e.Entry.Level == cdplog.EntryLevelWarning {
			b.errors = append(b.errors, e.Entry.Text+" "+e.Entry.URL)
		}
	}
}

// clean fails the test if the console had an error.
func (b *tab) clean() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.errors {
		b.t.Errorf("the console has: %s", e)
	}
}

func (b *tab) run(steps ...step) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatalf("the browser: %v", err)
	}
}

// eval evaluates an expression in the page.
func eval[T any](b *tab, expression string) T {
	b.t.Helper()
	out, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%.300s: %v", expression, err)
	}
	return out
}

// until waits until an expression is true in the page. It looks from outside, because the page's
// policy forbids to build functions in it.
func (b *tab) until(expression string) {
	b.t.Helper()
	deadline := time.Now().Add(45 * time.Second)
	for !eval[bool](b, "Boolean("+expression+")") {
		if time.Now().After(deadline) {
			b.t.Fatalf("%s is never true; the focus is on %s, the page says: %.2000s", expression,
				eval[string](b, "document.activeElement.outerHTML.slice(0, 300)"),
				eval[string](b, "document.body.innerText"))
		}
		b.run(chromedp.Sleep(30 * time.Millisecond))
	}
}

// ready waits until the page shows a state.
func (b *tab) ready() {
	b.t.Helper()
	b.until(`document.querySelector('#answer-changed .headline')?.textContent.length > 0`)
}

// press types keys as a keyboard does: a key whose keydown the page takes writes no character.
func (b *tab) press(keys string) {
	b.t.Helper()
	for _, r := range keys {
		events := kb.Encode(r)
		down, up := events[0], events[len(events)-1]
		if len(events) == 3 {
			down.Text, down.UnmodifiedText = events[1].Text, events[1].UnmodifiedText
		}
		b.run(call(input.DispatchKeyEvent, *down), call(input.DispatchKeyEvent, *up))
	}
}

// serveScene serves the page of a scene, below a path.
func serveScene(t *testing.T, play *incident.Play, control *page.Control) string {
	t.Helper()
	p, err := page.New(page.Options{
		Source: play.Source, Semaphore: "orders", Control: control, Interval: 100 * time.Millisecond,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/ops/fleet/", http.StripPrefix("/ops/fleet", p))
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		_ = p.Close()
		server.CloseClientConnections()
		server.Close()
	})
	return server.URL + "/ops/fleet/"
}

func scene(t *testing.T, name string) string {
	return serveScene(t, incident.New(incident.Scenes[name], 0), nil)
}
