package demo

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

func testOptions() Options {
	return Options{processes: 8, goroutines: 40, capacity: 20, duration: 10 * time.Second,
		query: "select 1 where 'a' < 'b' & c", scope: fleet.ScopeConnection,
		integration: fleet.Pgxpool, svg: "x.svg"}
}

// testResult returns n samples over ten seconds, all low except the one in the middle.
func testResult(name string, n, low, peak int) *result {
	r := &result{name: name, took: 10 * time.Second, peak: peak, wait: fleet.NewLatency(),
		total: fleet.NewLatency()}
	for i := range n {
		backends := low
		if i == n/2 {
			backends = peak
		}
		r.samples = append(r.samples, sample{time.Duration(i) * 10 * time.Second / time.Duration(n),
			backends})
	}
	for i := range 40 {
		r.progress = append(r.progress, progressPoint{time.Duration(i) * 250 * time.Millisecond,
			fleet.Counts{Operations: int64(i), Refused: int64(7 * i)}})
	}
	return r
}

type svgElement struct {
	name   string
	attrs  map[string]string
	inside string
}

// parseSVG fails the test unless document is well-formed, and returns its elements with the text
// directly in them.
func parseSVG(t *testing.T, document []byte) []svgElement {
	t.Helper()
	var elements []svgElement
	decoder := xml.NewDecoder(bytes.NewReader(document))
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return elements
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, document)
		}
		switch token := token.(type) {
		case xml.StartElement:
			e := svgElement{name: token.Name.Local, attrs: make(map[string]string)}
			for _, a := range token.Attr {
				e.attrs[a.Name.Local] = a.Value
			}
			elements = append(elements, e)
		case xml.CharData:
			if len(elements) > 0 {
				elements[len(elements)-1].inside += string(token)
			}
		}
	}
}

func drawChart(t *testing.T, o Options, limit int, results ...*result) []svgElement {
	t.Helper()
	var document bytes.Buffer
	if err := newChart(o, limit, results).write(&document); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"NaN", "Inf", "%!"} {
		if strings.Contains(document.String(), bad) {
			t.Errorf("the picture contains %s", bad)
		}
	}
	return parseSVG(t, document.Bytes())
}

func hasText(elements []svgElement, part string) bool {
	for _, e := range elements {
		if e.name == "text" && strings.Contains(e.inside, part) {
			return true
		}
	}
	return false
}

func TestChartShowsBothRunsAndTheCap(t *testing.T) {
	elements := drawChart(t, testOptions(), 22, testResult("without PassBuddy", 2000, 22, 22),
		testResult("with PassBuddy", 2000, 20, 20))
	for _, text := range []string{
		"cap 20", "server's limit 22", "without PassBuddy: peak 22", "with PassBuddy: peak 20",
		"backends", "failed operations per second", "seconds since the start of the run",
		"'a' < 'b' & c",
	} {
		if !hasText(elements, text) {
			t.Errorf("no text %q", text)
		}
	}
	curves, dashed := 0, 0
	for _, e := range elements {
		if e.name == "polyline" {
			curves++
		}
		if e.name == "line" && e.attrs["stroke-dasharray"] != "" {
			dashed++
		}
	}
	if curves != 4 || dashed != 2 {
		t.Errorf("%d curves and %d lines across, want 4 and 2", curves, dashed)
	}
}

// One sample in thousands must show even if the picture has fewer columns than samples.
func TestChartLosesNoPeak(t *testing.T) {
	o := testOptions()
	elements := drawChart(t, o, 0, testResult("without PassBuddy", 50_000, 3, 27))
	highest := math.Inf(1)
	for _, e := range elements {
		if e.name != "polyline" {
			continue
		}
		for _, xy := range strings.Fields(e.attrs["points"]) {
			_, text, _ := strings.Cut(xy, ",")
			y, err := strconv.ParseFloat(text, 64)
			if err != nil {
				t.Fatal(err)
			}
			highest = min(highest, y)
		}
		break // the first is that of the backends
	}
	want := panel{top: upperTop, base: upperBase, yMax: 27 * 1.12}.y(27)
	if math.Abs(highest-want) > 0.1 {
		t.Errorf("the curve reaches up to y = %v, want %v", highest, want)
	}
}

func TestChartOfAlmostNothing(t *testing.T) {
	o := testOptions()
	o.duration, o.scope, o.capacity = 100*time.Millisecond, fleet.ScopeCheckout, 1
	drawChart(t, o, 0, &result{name: "without PassBuddy"},
		&result{name: "with PassBuddy", samples: []sample{{0, 0}}})
}
