package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strconv"
)

// The picture, in SVG user units: two panels over one time axis, backends above and failed operations below.
const (
	chartWidth  = 1024
	chartHeight = 648

	plotLeft   = 84
	plotRight  = 862 // to the right are the names of the lines across
	upperTop   = 152
	upperBase  = 440
	lowerTop   = 490
	lowerBase  = 582
	axisLabelY = 626

	labelGap = 18 // least distance between two labels, so that they do not overlap
)

const (
	inkColor   = "#1f2328"
	mutedColor = "#59636e"
	gridColor  = "#e4e7eb"
)

// seriesColors are told apart by colour-blind readers too: without PassBuddy, with it.
var seriesColors = []string{"#d55e00", "#0072b2"}

// chart is what the picture shows.
type chart struct {
	opts    options
	limit   int // connections that the server has for the fleet, 0 if unknown
	results []*result

	xMax    float64 // seconds
	svg     bytes.Buffer
	xStep   float64
	failMax float64
}

func newChart(o options, limit int, results []*result) *chart {
	c := &chart{opts: o, limit: limit, results: results, xMax: o.duration.Seconds()}
	if o.scope == scopeCheckout {
		c.limit = 0 // far away, and not what that run is about
	}
	for _, r := range results {
		for _, p := range failureRates(r.progress) {
			c.failMax = max(c.failMax, p.y)
		}
	}
	c.xStep = niceStep(c.xMax, 10)
	return c
}

// write writes the picture as an SVG document.
func (c *chart) write(w io.Writer) error {
	c.printf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%[1]d" height="%[2]d" role="img" `+
		`font-family="Helvetica, Arial, 'DejaVu Sans', sans-serif" font-size="15" fill="%[3]s">`, chartWidth, chartHeight, inkColor)
	c.printf(`<title>Postgres backends over time, without PassBuddy and with it</title>`)
	c.printf(`<rect width="100%%" height="100%%" fill="#ffffff"/>`)
	c.heading()
	c.upperPanel()
	c.lowerPanel()
	c.text(float64(plotLeft+plotRight)/2, axisLabelY, "middle", mutedColor, "seconds since the start of the run")
	c.printf("</svg>")
	_, err := w.Write(c.svg.Bytes())
	return err
}

// heading is the title, what was run, and the legend with each run's figures.
func (c *chart) heading() {
	what := "Postgres backends"
	if c.opts.scope == scopeCheckout {
		what = "Busy Postgres backends"
	}
	c.printf(`<text x="%d" y="38" font-size="21" font-weight="bold">%s of a fleet of %d processes x %d goroutines, cap %d</text>`,
		plotLeft, what, c.opts.processes, c.opts.goroutines, c.opts.capacity)
	c.text(plotLeft, 62, "start", mutedColor, shorten(fmt.Sprintf("each repeats: %.90s (through %s)",
		c.opts.query, integrationText(c.opts.integration))))
	for i, r := range c.results {
		y := 88 + 22*i
		c.printf(`<line x1="%d" y1="%d" x2="%d" y2="%[2]d" stroke="%[4]s" stroke-width="4"/>`, plotLeft, y-5, plotLeft+34, seriesColors[i])
		c.text(plotLeft+44, float64(y), "start", inkColor, fmt.Sprintf("%s: peak %d, %s operations/s, %s operations failed",
			r.name, r.peak, thousands(rate(r.counts.Operations, r.took)), thousands(r.counts.errors())))
	}
}

// upperPanel shows the backends, and across them the cap and the server's limit.
func (c *chart) upperPanel() {
	top := max(c.opts.capacity, c.limit)
	for _, r := range c.results {
		top = max(top, r.peak)
	}
	p := panel{c, upperTop, upperBase, float64(top) * 1.12}
	p.axes("backends", max(niceStep(p.yMax, 6), 1))
	for i, r := range c.results {
		var points []point
		for _, s := range r.samples {
			if s.at <= c.opts.duration { // what comes after, the fleet's end, counts for the peak only
				points = append(points, point{s.at.Seconds(), float64(s.backends)})
			}
		}
		p.curve(points, seriesColors[i])
	}
	capY := p.across(float64(c.opts.capacity), inkColor, "9 6")
	c.printf(`<text x="%d" y="%.1f" font-weight="bold" class="cap">cap %d</text>`, plotRight+8, capY+5, c.opts.capacity)
	if c.limit > 0 && c.limit != c.opts.capacity {
		limitY := p.across(float64(c.limit), mutedColor, "2 4")
		if math.Abs(limitY-capY) < labelGap {
			limitY = capY - labelGap
		}
		c.text(plotRight+8, limitY+5, "start", mutedColor, fmt.Sprintf("server's limit %d", c.limit))
	}
}

// lowerPanel shows the failed operations per second.
func (c *chart) lowerPanel() {
	p := panel{c, lowerTop, lowerBase, max(c.failMax*1.12, 1)}
	p.axes("failed operations per second", max(niceStep(p.yMax, 3), 1))
	for i, r := range c.results {
		p.curve(failureRates(r.progress), seriesColors[i])
	}
	for x := 0.0; x <= c.xMax+1e-9; x += c.xStep {
		c.text(p.x(x), lowerBase+22, "middle", mutedColor, formatTick(x, c.xStep))
	}
}

// point is a point of a curve: seconds and a value.
type point struct{ x, y float64 }

// failureRates is how many operations per second failed between one progress point and the next.
func failureRates(progress []progressPoint) []point {
	var points []point
	for i := 1; i < len(progress); i++ {
		from, to := progress[i-1], progress[i]
		if to.at > from.at {
			failed := to.counts.errors() - from.counts.errors()
			points = append(points, point{(from.at + (to.at-from.at)/2).Seconds(), float64(failed) / (to.at - from.at).Seconds()})
		}
	}
	return points
}

// panel is a part of the chart with a value axis of its own, from 0.
type panel struct {
	*chart
	top, base float64
	yMax      float64
}

func (p panel) x(seconds float64) float64 {
	return plotLeft + (plotRight-plotLeft)*seconds/p.xMax
}

func (p panel) y(value float64) float64 { return p.base - (p.base-p.top)*value/p.yMax }

func (p panel) axes(label string, step float64) {
	for x := 0.0; x <= p.xMax+1e-9; x += p.xStep {
		p.printf(`<line x1="%.1f" y1="%.1f" x2="%.1[1]f" y2="%.1[3]f" stroke="%[4]s"/>`, p.x(x), p.top, p.base, gridColor)
	}
	for y := 0.0; y <= p.yMax; y += step {
		p.printf(`<line x1="%d" y1="%.1f" x2="%d" y2="%.1[2]f" stroke="%[4]s"/>`, plotLeft, p.y(y), plotRight, gridColor)
		p.text(plotLeft-10, p.y(y)+5, "end", mutedColor, formatTick(y, step))
	}
	p.printf(`<line x1="%d" y1="%.1f" x2="%d" y2="%.1[2]f" stroke="%[4]s"/>`, plotLeft, p.base, plotRight, mutedColor)
	p.text(plotLeft, p.top-9, "start", mutedColor, label)
}

// across draws a line over the whole width at value, and returns its height.
func (p panel) across(value float64, color, dashes string) float64 {
	y := p.y(value)
	p.printf(`<line x1="%d" y1="%.1f" x2="%d" y2="%.1[2]f" stroke="%[4]s" stroke-width="2" stroke-dasharray="%[5]s"/>`,
		plotLeft, y, plotRight, color, dashes)
	return y
}

// curve draws points that are in order of time. A column of the picture that holds several shows the lowest and the
// highest of them, so that no peak is lost.
func (p panel) curve(points []point, color string) {
	if len(points) == 0 {
		return
	}
	p.printf(`<polyline fill="none" stroke="%s" stroke-width="2" stroke-linejoin="round" points="`, color)
	for i := 0; i < len(points); {
		column := math.Floor(p.x(points[i].x))
		first, low, high := points[i].y, points[i].y, points[i].y
		last := first
		for ; i < len(points) && math.Floor(p.x(points[i].x)) == column; i++ {
			last = points[i].y
			low, high = min(low, last), max(high, last)
		}
		previous := math.NaN() // equals nothing
		for _, value := range []float64{first, low, high, last} {
			if value != previous {
				p.printf("%.0f,%.1f ", column, p.y(value))
			}
			previous = value
		}
	}
	p.printf(`"/>`)
}

func (c *chart) text(x, y float64, anchor, color, s string) {
	c.printf(`<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">`, x, y, anchor, color)
	_ = xml.EscapeText(&c.svg, []byte(s)) // a bytes.Buffer does not fail
	c.printf("</text>\n")
}

func (c *chart) printf(format string, args ...any) { fmt.Fprintf(&c.svg, format, args...) }

// niceStep returns a step of 1, 2 or 5 times a power of ten that cuts the way to top into at most n parts.
func niceStep(top float64, n int) float64 {
	if top <= 0 {
		return 1
	}
	rough := top / float64(n)
	power := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, m := range []float64{1, 2, 5} {
		if m*power >= rough {
			return m * power
		}
	}
	return 10 * power
}

func formatTick(value, step float64) string {
	if step >= 1 {
		return thousands(int64(math.Round(value)))
	}
	return strconv.FormatFloat(value, 'f', int(math.Ceil(-math.Log10(step))), 64)
}
