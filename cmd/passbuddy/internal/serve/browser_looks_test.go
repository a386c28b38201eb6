package serve

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/passbuddy/passbuddy/internal/page"
	"github.com/passbuddy/passbuddy/internal/page/incident"
	"github.com/passbuddy/passbuddy/internal/subset"
)

var images = flag.String("images", "", "write the pictures of the page into this folder")

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
