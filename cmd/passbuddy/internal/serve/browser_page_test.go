package serve

import (
	"fmt"
	"maps"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"github.com/passbuddy/passbuddy/internal/page"
	"github.com/passbuddy/passbuddy/internal/page/incident"
	"github.com/passbuddy/passbuddy/internal/subset"
)

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
