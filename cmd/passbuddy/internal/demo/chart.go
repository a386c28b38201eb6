package demo

import (
	"fmt"
	"io"
	"math"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/show"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/svg"
)

// The picture, in SVG user units: two panels over one time axis, backends above and failed
// operations below.
const (
	chartWidth  = 1024
	chartHeight = 648

	plotLeft   = 84
	plotRight  = 862 // the names of the lines across are to the right
	upperTop   = 152
	upperBase  = 440
	lowerTop   = 490
	lowerBase  = 582
	axisLabelY = 626

	labelGap = 18 // least distance between two labels, so that they do not overlap
)

// seriesColors are colours that colour-blind readers can distinguish: without PassBuddy, with it.
var seriesColors = []string{"#d55e00", "#0072b2"}

// chart holds the data of the picture.
type chart struct {
	opts    Options
	limit   int // connections that the server has for the fleet, 0 if unknown
	results []*result

	xMax    float64 // seconds
	svg     *svg.Document
	xStep   float64
	failMax float64
}

func newChart(o Options, limit int, results []*result) *chart {
	c := &chart{opts: o, limit: limit, results: results, xMax: o.duration.Seconds()}
	if o.scope == fleet.ScopeCheckout {
		c.limit = 0 // far above the cap, and not what that run is about
	}
	for _, r := range results {
		for _, p := range failureRates(r.progress) {
			c.failMax = max(c.failMax, p.y)
		}
	}
	c.xStep = svg.NiceStep(c.xMax, 10)
	return c
}

// write writes the picture as an SVG document.
func (c *chart) write(w io.Writer) error {
	c.svg = svg.New(chartWidth, chartHeight,
		"Postgres backends over time, without PassBuddy and with it")
	c.heading()
	c.upperPanel()
	c.lowerPanel()
	c.svg.Text(float64(plotLeft+plotRight)/2, axisLabelY, "middle", svg.Muted,
		"seconds since the start of the run")
	_, err := c.svg.WriteTo(w)
	return err
}

// heading draws the title, the settings of the run, and the legend with each run's figures.
func (c *chart) heading() {
	what := "Postgres backends"
	if c.opts.scope == fleet.ScopeCheckout {
		what = "Busy Postgres backends"
	}
	c.svg.Heading(plotLeft, 38, fmt.Sprintf("%s of a fleet of %d processes x %d goroutines, cap %d",
		what, c.opts.processes, c.opts.goroutines, c.opts.capacity))
	c.svg.Text(plotLeft, 62, "start", svg.Muted,
		show.Shorten(fmt.Sprintf("each repeats: %.90s (through %s)",
			c.opts.query, integrationText(c.opts.integration))))
	for i, r := range c.results {
		y := 88 + 22*i
		c.svg.Printf(`<line x1="%d" y1="%d" x2="%d" y2="%[2]d" stroke="%[4]s" stroke-width="4"/>`,
			plotLeft, y-5, plotLeft+34, seriesColors[i])
		c.svg.Text(plotLeft+44, float64(y), "start", svg.Ink,
			fmt.Sprintf("%s: peak %d, %s operations/s, %s operations failed",
				r.name, r.peak, show.Thousands(rate(r.counts.Operations, r.took)),
				show.Thousands(r.counts.Errors())))
	}
}

// upperPanel shows the backends, and across them the cap and the server's limit.
func (c *chart) upperPanel() {
	top := max(c.opts.capacity, c.limit)
	for _, r := range c.results {
		top = max(top, r.peak)
	}
	p := panel{c, upperTop, upperBase, float64(top) * 1.12}
	p.axes("backends", max(svg.NiceStep(p.yMax, 6), 1))
	for i, r := range c.results {
		var points []point
		for _, s := range r.samples {
			// later samples, of the fleet's end, count for the peak only
			if s.at <= c.opts.duration {
				points = append(points, point{s.at.Seconds(), float64(s.backends)})
			}
		}
		p.curve(points, seriesColors[i])
	}
	capY := p.across(float64(c.opts.capacity), svg.Ink, "9 6")
	c.svg.Printf(`<text x="%d" y="%.1f" font-weight="bold" class="cap">cap %d</text>`, plotRight+8,
		capY+5, c.opts.capacity)
	if c.limit > 0 && c.limit != c.opts.capacity {
		limitY := p.across(float64(c.limit), svg.Muted, "2 4")
		if math.Abs(limitY-capY) < labelGap {
			limitY = capY - labelGap
		}
		c.svg.Text(plotRight+8, limitY+5, "start", svg.Muted,
			fmt.Sprintf("server's limit %d", c.limit))
	}
}

// lowerPanel shows the failed operations per second.
func (c *chart) lowerPanel() {
	p := panel{c, lowerTop, lowerBase, max(c.failMax*1.12, 1)}
	p.axes("failed operations per second", max(svg.NiceStep(p.yMax, 3), 1))
	for i, r := range c.results {
		p.curve(failureRates(r.progress), seriesColors[i])
	}
	for x := 0.0; x <= c.xMax+1e-9; x += c.xStep {
		c.svg.Text(p.x(x), lowerBase+22, "middle", svg.Muted, svg.FormatTick(x, c.xStep))
	}
}

// point is a point of a curve: seconds and a value.
type point struct{ x, y float64 }

// failureRates returns how many operations per second failed between one progress point and the
// next.
func failureRates(progress []progressPoint) []point {
	var points []point
	for i := 1; i < len(progress); i++ {
		from, to := progress[i-1], progress[i]
		if to.at > from.at {
			failed := to.counts.Errors() - from.counts.Errors()
			points = append(points, point{(from.at + (to.at-from.at)/2).Seconds(),
				float64(failed) / (to.at - from.at).Seconds()})
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
		p.svg.Printf(`<line x1="%.1f" y1="%.1f" x2="%.1[1]f" y2="%.1[3]f" stroke="%[4]s"/>`, p.x(x),
			p.top, p.base, svg.Grid)
	}
	for y := 0.0; y <= p.yMax; y += step {
		p.svg.Printf(`<line x1="%d" y1="%.1f" x2="%d" y2="%.1[2]f" stroke="%[4]s"/>`, plotLeft,
			p.y(y), plotRight, svg.Grid)
		p.svg.Text(plotLeft-10, p.y(y)+5, "end", svg.Muted, svg.FormatTick(y, step))
	}
	p.svg.Printf(`<line x1="%d" y1="%.1f" x2="%d" y2="%.1[2]f" stroke="%[4]s"/>`, plotLeft, p.base,
		plotRight, svg.Muted)
	p.svg.Text(plotLeft, p.top-9, "start", svg.Muted, label)
}

// across draws a line over the whole width at value, and returns its height.
func (p panel) across(value float64, color, dashes string) float64 {
	y := p.y(value)
	p.svg.Printf(
		`<line x1="%d" y1="%.1f" x2="%d" y2="%.1[2]f" stroke="%[4]s" `+
			`stroke-width="2" stroke-dasharray="%[5]s"/>`,
		plotLeft, y, plotRight, color, dashes)
	return y
}

// curve draws points in order of time. A column of the picture with several points shows the lowest
// and the highest of them, so that no peak is lost.
func (p panel) curve(points []point, color string) {
	if len(points) == 0 {
		return
	}
	p.svg.Printf(
		`<polyline fill="none" stroke="%s" stroke-width="2" stroke-linejoin="round" points="`,
		color)
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
				p.svg.Printf("%.0f,%.1f ", column, p.y(value))
			}
			previous = value
		}
	}
	p.svg.Printf(`"/>`)
}
