package serve

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	cdplog "github.com/chromedp/cdproto/log"
	cdppage "github.com/chromedp/cdproto/page"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/passbuddy/passbuddy/internal/page"
	"github.com/passbuddy/passbuddy/internal/page/incident"
	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/semaphore"
)

var images = flag.String("images", "", "write the pictures of the page into this folder")

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

// visible is the text that one sees without scrolling, below an element.
func visible(b *tab, selector string) string {
	return eval[string](b, fmt.Sprintf(`(() => {
		const seen = [];
		const walker = document.createTreeWalker(document.querySelector(%q), NodeFilter.SHOW_TEXT);
		for (let node = walker.nextNode(); node; node = walker.nextNode()) {
			const box = node.parentElement.getBoundingClientRect();
			if (!node.parentElement.checkVisibility() || box.width < 2) continue;
			if (box.top >= 0 && box.bottom <= innerHeight && box.right <= innerWidth + 1) seen.push(node.textContent.trim());
		}
		return seen.filter(Boolean).join(' ');
	})()`, selector))
}

// On the first screen of each incident the culprit is named: by the findings, and by the answers to
// the five questions alone.
func TestBrowserNamesTheCulprit(t *testing.T) {
	culprits := map[string]string{
		"others": "rails-reporting", "stuck": "batch-export-0", "deploy": "12 × joined",
		"mismatch": "cron-mailer-1", "paused": "ana@10.8.0.4",
	}
	for _, v := range subset.Of(t, 5, onEachDevice(slices.Sorted(maps.Keys(culprits)))) {
		t.Run(v.scene+" "+v.device.name, func(t *testing.T) {
			b := open(t, scene(t, v.scene), v.device, "light")
			b.ready()
			answers := visible(b, "#answers")
			if culprit := culprits[v.scene]; !strings.Contains(answers, culprit) {
				t.Errorf("the answers do not name %s: %s", culprit, answers)
			}
			for _, question := range []string{"Is it us?", "Why this capacity?", "Who holds?", "Who waits?", "What changed?"} {
				if !strings.Contains(answers, question) {
					t.Errorf("%q is not on the first screen: %s", question, answers)
				}
			}
			b.clean()
		})
	}
	t.Run("stalled", func(t *testing.T) {
		b := open(t, scene(t, "stalled"), desktop, "light")
		b.until(`document.querySelector('#connection').innerText.includes('Redis has not answered')`)
		b.until(`document.querySelector('#live-text').innerText.includes('silent')`)
		if title := eval[string](b, `document.querySelector('.headline').textContent`); title == "" {
			t.Error("the old figures are gone")
		}
		b.until(`document.querySelector('#finding-list').innerText.includes('passbuddy doctor')`)
		b.clean()
	})
}

// Names from Redis and Postgres stay text, whatever they are.
func TestBrowserHostileNames(t *testing.T) {
	b := open(t, scene(t, "hostile"), desktop, "light")
	b.ready()
	b.run(click("button.open"))
	b.until(`document.querySelector('.opened:not([hidden]) .facts div')`)
	if title := eval[string](b, "document.title"); strings.Contains(title, "owned") {
		t.Error("a name ran as a script")
	}
	if n := eval[int](b, "document.querySelectorAll('main img, main script').length"); n != 0 {
		t.Errorf("names became %d elements", n)
	}
	if n := eval[int](b, "document.querySelectorAll('script').length"); n != 3 {
		t.Errorf("there are %d scripts", n)
	}
	if s := eval[string](b, "document.body.innerText"); !strings.Contains(s, "<img src=x") || strings.ContainsRune(s, '\u202e') {
		t.Error("the name is not shown as it is, or turns the text around it")
	}
	if eval[bool](b, "document.documentElement.scrollWidth > innerWidth") {
		t.Error("a long name makes the page wider than the screen")
	}
	b.clean()
}

// Everything can be done with the keyboard alone.
func TestBrowserKeyboard(t *testing.T) {
	b := open(t, scene(t, "deploy"), desktop, "light")
	b.ready()
	b.press("/")
	b.until(`document.activeElement.id === 'filter'`)
	b.press("web-8e21aa")
	b.until(`document.querySelectorAll('button.open').length === 12`)
	if hash := eval[string](b, "location.hash"); hash != "#filter=web-8e21aa" {
		t.Errorf("the address is %q", hash)
	}
	b.press(kb.Escape)
	b.until(`document.querySelectorAll('button.open').length === 24`)
	b.press("j")
	b.until(`document.activeElement === document.querySelectorAll('button.open')[0]`)
	b.press("j")
	b.press(kb.Enter)
	b.until(`document.querySelectorAll('button.open[aria-expanded=true]').length === 1`)
	b.until(`document.querySelector('.opened:not([hidden])').innerText.includes('db-primary:5432/orders')`)
	b.press("s")
	b.until(`document.querySelector('th[aria-sort] button').textContent.startsWith('In use')`)
	b.press("r")
	b.until(`document.querySelector('th[aria-sort=ascending]') !== null`)
	b.press("?")
	b.until(`document.querySelector('#help').open`)
	b.press(kb.Escape)
	b.until(`!document.querySelector('#help').open`)
	for key, id := range map[string]string{"1": "postgres", "2": "capacity", "3": "processes", "4": "queue", "5": "events"} {
		b.press(key)
		b.until(`document.activeElement.id === '` + id + `'`)
	}
	b.press("h")
	b.until(`document.querySelector('#live-text').innerText.startsWith('Held')`)
	frozen := eval[string](b, "document.querySelector('#answers').innerText")
	b.until(`/Held at .*, [2-9]/.test(document.querySelector('#live-text').innerText)`)
	if eval[string](b, "document.querySelector('#answers').innerText") != frozen {
		t.Error("the figures move while the page is held")
	}
	b.press("h")
	b.until(`document.querySelector('#live-text').innerText.startsWith('Live')`)
	for _, theme := range []string{"light", "dark", "system"} {
		b.press("t")
		b.until(`document.querySelector('#theme').innerText === 'Theme: ` + theme + `'`)
	}
	b.clean()
}

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

// The page says when its server has gone.
func TestBrowserLosesItsServer(t *testing.T) {
	play := incident.New(incident.Scenes["calm"], 0)
	p, err := page.New(page.Options{Source: play.Source, Semaphore: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(p)
	b := open(t, server.URL, desktop, "light")
	b.ready()
	_ = p.Close()
	server.CloseClientConnections()
	server.Close()
	b.until(`document.querySelector('#connection').innerText.includes('lost its server')`)
	if eval[bool](b, `document.querySelector('#answer-holds .headline').innerText === ''`) {
		t.Error("the last figures are gone")
	}
}

// axeVersion is the accessibility checker. npm fetches it, and it is not part of the repository.
const axeVersion = "4.14.1"

var axe = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	folder := filepath.Join(cache, "passbuddy-tests", "axe-core-"+axeVersion)
	file := filepath.Join(folder, "package", "axe.min.js")
	if content, err := os.ReadFile(file); err == nil {
		return string(content), nil
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, command := range [][]string{
		{"npm", "pack", "--silent", "axe-core@" + axeVersion},
		{"tar", "-xzf", "axe-core-" + axeVersion + ".tgz", "package/axe.min.js"},
	} {
		run := exec.CommandContext(ctx, command[0], command[1:]...)
		run.Dir = folder
		if out, err := run.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%v: %w: %s", command, err, out)
		}
	}
	content, err := os.ReadFile(file)
	return string(content), err
})

// axe-core finds nothing serious, in light and dark, at each size.
func TestBrowserIsAccessible(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	script, err := axe()
	if err != nil {
		t.Skipf("axe-core cannot be fetched: %v", err)
	}
	control := &page.Control{Token: token, As: func(string) (page.Actor, error) { return &actor{}, nil }}
	views := append(onEachDevice([]string{"stuck"}), view{"paused", desktop}, view{"stalled", desktop})
	for _, v := range subset.Of(t, 2, views) {
		for _, scheme := range []string{"light", "dark"} {
			t.Run(strings.Join([]string{v.scene, scheme, v.device.name}, " "), func(t *testing.T) {
				url := serveScene(t, incident.New(incident.Scenes[v.scene], 0), control)
				// The checker is not of this page, whose policy would refuse it.
				b := open(t, url, v.device, scheme, call(cdppage.SetBypassCSP, cdppage.SetBypassCSPParams{Enabled: true}))
				b.ready()
				if v.scene == "stalled" {
					b.until(`!document.querySelector('#connection').hidden`)
				}
				b.run(click("button.open"), click("#charts summary"))
				eval[chromedp.Void](b, script)
				check(b, "the page")
				b.run(click("#help-open"))
				check(b, "the help")
				b.press(kb.Escape)
				if v.scene != "stalled" {
					eval[chromedp.Void](b, `document.querySelector('#verb-pause').click()`)
					b.until(`document.querySelector('#act').open`)
					check(b, "the dialog")
				}
			})
		}
	}
}

// check runs axe-core.
func check(b *tab, what string) {
	b.t.Helper()
	type violation struct {
		ID, Impact, Help string
		Nodes            []struct {
			HTML           string
			FailureSummary string
		}
	}
	text := eval[string](b, `axe.run(document, { resultTypes: ['violations'] })
		.then((r) => JSON.stringify(r.violations))`)
	var found []violation
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		b.t.Fatal(err)
	}
	for _, v := range found {
		node := v.Nodes[0]
		line := fmt.Sprintf("%s: %s (%s): %s\n%s\n%s", what, v.ID, v.Impact, v.Help, node.HTML, node.FailureSummary)
		if v.Impact == "serious" || v.Impact == "critical" {
			b.t.Error(line)
		} else {
			b.t.Log(line)
		}
	}
}

// widest names what reaches beyond the screen, but for what scrolls by itself.
const widest = `[...document.querySelectorAll('body, body *')]
	.filter((e) => e.scrollWidth + e.getBoundingClientRect().left > screen.width + 1
		&& !e.parentElement.closest('.scroll'))
	.map((e) => e.tagName + '#' + e.id + '.' + e.className + ' ' + e.scrollWidth + ' ' +
		Math.round(e.getBoundingClientRect().right)).join('; ')`

// Nothing is wider than the screen, and a thousand processes do not stop the page.
func TestBrowserFits(t *testing.T) {
	scenes := []string{"calm", "others", "deploy", "large", "empty", "hostile"}
	for _, v := range subset.Of(t, 5, onEachDevice(scenes)) {
		t.Run(v.scene+" "+v.device.name, func(t *testing.T) {
			b := open(t, scene(t, v.scene), v.device, "light")
			b.ready()
			if wide := eval[int](b, "document.documentElement.scrollWidth"); wide > int(v.device.width) {
				t.Errorf("the page is %d wide on a screen of %d: %s", wide, v.device.width,
					eval[string](b, widest))
			}
			b.clean()
		})
	}
}

// pictures are those of the documentation.
var pictures = []struct {
	scene, device, scheme string
}{
	{"calm", "desktop", "light"}, {"stuck", "desktop", "dark"}, {"others", "desktop", "light"},
	{"deploy", "desktop", "dark"}, {"mismatch", "desktop", "light"}, {"stalled", "desktop", "dark"},
	{"others", "tablet", "light"}, {"stuck", "tablet", "dark"}, {"stuck", "phone", "light"},
	{"deploy", "phone", "dark"}, {"mismatch", "phone", "dark"}, {"paused", "phone", "light"},
}

// With -images=folder this writes pictures of the page. Each begins before its incident does. Those
// of docs/images then went through pngquant.
func TestBrowserPictures(t *testing.T) {
	if *images == "" {
		t.Skip("writes pictures only with -images")
	}
	for _, picture := range pictures {
		name := fmt.Sprintf("page-%s-%s-%s.png", picture.scene, picture.device, picture.scheme)
		t.Run(name, func(t *testing.T) {
			i := slices.IndexFunc(sizes, func(s size) bool { return s.name == picture.device })
			play := incident.New(incident.Scenes[picture.scene], -240*time.Second)
			b := open(t, serveScene(t, play, nil), sizes[i], picture.scheme)
			b.ready()
			if picture.scene == "stalled" {
				b.until(`/answered for [6-9] s/.test(document.querySelector('#connection').innerText)`)
			}
			for play.Calls() < 255 && picture.scene != "stalled" {
				b.run(chromedp.Sleep(100 * time.Millisecond))
			}
			png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
			if err != nil {
				t.Fatal(err)
			}
			b.clean()
			if err := os.WriteFile(filepath.Join(*images, name), png, 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}
