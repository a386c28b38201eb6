package bench

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/svg"
)

// A timeline's picture, in SVG user units: panels over one time axis, with a line for each
// strategy.
const (
	lineLeft   = 84.0
	lineRight  = 1080.0
	panelTop   = 136.0
	panelTall  = 170.0
	panelSpace = 52.0
)

// lineColors are colours that colour-blind readers can distinguish.
var lineColors = []string{ourColor, rivalColor, "#009e73", "#cc79a7", "#56b4e9", paleColor}

func timelineName(c *cell) string {
	name := "cold-" + c.Shape
	if change := c.spec.scenario.change; change != nil {
		name = change.name
	}
	return "timeline-" + strings.ReplaceAll(name, " ", "-") + ".svg"
}

// curve is one strategy's timeline, of the first round that has one.
type curve struct {
	c     *cell
	color string
	*timeline
}

// drawTimelines draws a picture for each scenario that has timelines.
func drawTimelines(r *report) (pictures []picture) {
	for _, group := range r.groups() {
		if !group[0].spec.scenario.drawn() {
			continue
		}
		var curves []curve
		for i, c := range group {
			for _, m := range c.Rounds {
				if m.Timeline != nil && len(m.Timeline.Operations) > 0 {
					curves = append(curves, curve{c, lineColors[i%len(lineColors)], m.Timeline})
					break
				}
			}
		}
		if len(curves) > 0 {
			pictures = append(pictures, drawTimeline(r, curves))
		}
	}
	return pictures
}

// panel is one part of the picture, with a value axis of its own from 0.
type panel struct {
	*svg.Document
	top, bottom float64
	xMax, yMax  float64 // seconds, and the value at the top
}

func (p panel) x(seconds float64) float64 { return lineLeft + (lineRight-lineLeft)*seconds/p.xMax }
func (p panel) y(value float64) float64   { return p.bottom - (p.bottom-p.top)*value/p.yMax }

// drawTimeline draws the panels of all curves: backends, permits on their way, operations per
// second.
func drawTimeline(r *report, curves []curve) picture {
	sc := curves[0].c.spec.scenario
	title := sc.heading()
	capacity := float64(r.Settings.Capacity)
	type part struct {
		label  string
		values func(curve) []float64
		least  float64 // of the axis's top
		cap    bool
	}
	parts := []part{
		{"backends (mean of 100 ms)",
			func(c curve) []float64 { return c.Backends }, capacity, true},
		{"permits on their way: held, less backends (mean of 100 ms)",
			func(c curve) []float64 { return c.OnTheirWay }, 2, false},
		{"operations per second",
			func(c curve) []float64 { return c.rates() }, 1, false},
	}
	height := panelTop + float64(len(parts))*(panelTall+panelSpace) + 14
	d := svg.New(chartWidth, int(height), "Timeline: "+title)
	d.Heading(lineLeft, 38, fmt.Sprintf("%s %s, cap %d", sc.lead(), sc.row(), r.Settings.Capacity))
	d.Text(lineLeft, 98, "start", svg.Muted, sc.section())
	legend(d, curves)
	p := panel{Document: d, top: panelTop}
	for _, c := range curves {
		p.xMax = max(p.xMax, float64(len(c.Operations))*timelineWidth.Seconds())
	}
	for _, part := range parts {
		p.bottom, p.yMax = p.top+panelTall, part.least
		for _, c := range curves {
			for _, v := range part.values(c) {
				p.yMax = max(p.yMax, v)
			}
		}
		p.yMax *= 1.1
		p.axes(part.label)
		for _, at := range curves[0].Changes {
			p.Printf(`<line x1="%.1f" y1="%.1f" x2="%.1[1]f" y2="%.1[3]f" stroke="%[4]s" `+
				`stroke-dasharray="2 4" class="change"/>`, p.x(at/1000), p.top, p.bottom, svg.Muted)
		}
		if part.cap {
			p.Printf(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1[2]f" stroke="%[4]s" `+
				`stroke-width="2" stroke-dasharray="9 6" class="cap"/>`,
				lineLeft, p.y(capacity), lineRight, svg.Ink)
		}
		for _, c := range curves {
			p.line(part.values(c), c.color)
		}
		p.top = p.bottom + panelSpace
	}
	d.Text((lineLeft+lineRight)/2, height-8, "middle", svg.Muted,
		"seconds of the measured time; dotted: a process joins, leaves or is replaced")
	var document bytes.Buffer
	_, _ = d.WriteTo(&document) // a bytes.Buffer does not fail
	return picture{timelineName(curves[0].c), title, document.Bytes()}
}

// rates returns the operations per second of each bin.
func (t *timeline) rates() (rates []float64) {
	for _, n := range t.Operations {
		rates = append(rates, float64(n)*float64(time.Second/timelineWidth))
	}
	return rates
}

func legend(d *svg.Document, curves []curve) {
	x := lineLeft
	for _, c := range curves {
		d.Printf(`<line x1="%.1f" y1="69" x2="%.1f" y2="69" stroke="%s" stroke-width="4"/>`,
			x, x+34, c.color)
		d.Text(x+42, 74, "start", svg.Ink, c.c.title())
		x += 320
	}
}

func (p panel) axes(label string) {
	step := svg.NiceStep(p.yMax, 4)
	for v := 0.0; v <= p.yMax; v += step {
		p.Line(lineLeft, p.y(v), lineRight, p.y(v), svg.Grid)
		p.Text(lineLeft-10, p.y(v)+5, "end", svg.Muted, svg.FormatTick(v, step))
	}
	step = svg.NiceStep(p.xMax, 10)
	for s := 0.0; s <= p.xMax+1e-9; s += step {
		p.Line(p.x(s), p.top, p.x(s), p.bottom, svg.Grid)
		p.Text(p.x(s), p.bottom+18, "middle", svg.Muted, svg.FormatTick(s, step))
	}
	p.Text(lineLeft, p.top-9, "start", svg.Muted, label)
}

// line draws the values, each in the middle of its bin. A bin without a value interrupts it.
func (p panel) line(values []float64, color string) {
	open := false
	end := func() {
		if open {
			p.Printf(`"/>`)
		}
		open = false
	}
	for i, v := range values {
		if v < 0 {
			end()
			continue
		}
		if !open {
			p.Printf(`<polyline fill="none" stroke="%s" stroke-width="2" `+
				`stroke-linejoin="round" points="`, color)
			open = true
		}
		p.Printf("%.1f,%.1f ", p.x((float64(i)+0.5)*timelineWidth.Seconds()), p.y(v))
	}
	end()
}
