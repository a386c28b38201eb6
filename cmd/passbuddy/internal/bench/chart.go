package bench

import (
	"bytes"
	"fmt"
	"math"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/svg"
)

// A picture, in SVG user units: a row for each cell, under a line that names the shape. The
// throughput is on the left, the latencies are on the right, on a scale of powers of ten.
const (
	chartWidth = 1120
	chartTop   = 112
	rowHeight  = 24
	headHeight = 34
	chartFoot  = 46

	nameLeft  = 24
	barLeft   = 236
	barRight  = 520
	timeLeft  = 704
	timeRight = 1080
)

const (
	ourColor   = "#0072b2"
	rivalColor = "#d55e00"
	paleColor  = "#9aa4ae"
)

// picture is a document to write.
type picture struct {
	name, title string
	document    []byte
}

func pictureName(c *cell) string { return fmt.Sprintf("%s-%s.svg", c.Integration, c.Workload) }

// drawPictures draws one for each integration and workload of the saturated table, and one for each
// scenario that is about its course.
func drawPictures(r *report) []picture {
	return append(drawTimelines(r), drawBars(r)...)
}

func drawBars(r *report) (pictures []picture) {
	var groups [][]*cell
	flush := func() {
		if len(groups) > 0 {
			pictures = append(pictures, drawPicture(r, groups))
			groups = nil
		}
	}
	for _, group := range r.groups() {
		if group[0].Table != "" {
			continue
		}
		if len(groups) > 0 && pictureName(groups[0][0]) != pictureName(group[0]) {
			flush()
		}
		for _, c := range group {
			if c.measured() {
				groups = append(groups, group)
				break
			}
		}
	}
	flush()
	return pictures
}

// bars is a picture under construction.
type bars struct {
	*svg.Document
	y         float64
	opsMax    float64
	low, high float64 // powers of ten of milliseconds
}

func drawPicture(r *report, groups [][]*cell) picture {
	b := &bars{low: math.Inf(1), high: math.Inf(-1), y: chartTop}
	height := chartTop + chartFoot
	for _, group := range groups {
		height += headHeight
		for _, c := range group {
			height += rowHeight
			b.opsMax = max(b.opsMax, c.Summary[opsPerSecond].Max)
			p50, _, longest := c.latencies()
			if longest.Max > 0 {
				b.low = min(b.low, math.Floor(math.Log10(max(p50.Median, 0.001))))
				b.high = max(b.high, math.Ceil(math.Log10(longest.Max)))
			}
		}
	}
	if b.low >= b.high { // no operation ended, or all took the same time
		b.low, b.high = -1, 3
	}
	b.opsMax = max(b.opsMax, 1) * 1.05

	first := groups[0][0]
	title := fmt.Sprintf("%s through %s", first.spec.scenario.workload.title, through(first))
	b.Document = svg.New(chartWidth, height, "Benchmark: "+title)
	b.Heading(nameLeft, 38, fmt.Sprintf("%s, cap %d", title, r.Settings.Capacity))
	b.Text(nameLeft, 62, "start", svg.Muted,
		fmt.Sprintf(
			"%s, the thin line from the lowest to the highest; served: goroutines with a "+
				"success; %s, %d cores",
			mediansOf(r.rounds()), r.Machine.CPU, r.Machine.Cores))
	b.axes(float64(height - chartFoot))
	for _, group := range groups {
		b.y += headHeight
		b.Printf(`<g font-weight="bold">`)
		b.Text(nameLeft, b.y-10, "start", svg.Ink, group[0].shapeText())
		b.Printf(`</g>`)
		for _, c := range group {
			b.row(c)
		}
	}
	var document bytes.Buffer
	_, _ = b.WriteTo(&document) // a bytes.Buffer does not fail
	return picture{pictureName(first), title, document.Bytes()}
}

func (c *cell) shapeText() string {
	shape := c.spec.scenario.shape
	if shape.uneven() {
		g, m := shape.groups[0], shape.groups[1]
		return fmt.Sprintf(
			"%d greedy process x %d goroutines beside %d modest x %d; latencies are the modest "+
				"ones'", g.Processes, g.Goroutines, m.Processes, m.Goroutines)
	}
	return fmt.Sprintf("%d processes x %d goroutines", shape.groups[0].Processes,
		shape.groups[0].Goroutines)
}

// latencies returns the latencies that matter in the cell: in an uneven shape, the modest
// processes'.
func (c *cell) latencies() (p50, p99, longest spread) {
	prefix := ""
	if c.spec.scenario.shape.uneven() {
		prefix = modestPrefix
	}
	return c.Summary[prefix+latencyP50], c.Summary[prefix+latencyP99], c.Summary[prefix+latencyMax]
}

func (b *bars) axes(base float64) {
	step := svg.NiceStep(b.opsMax, 4)
	for v := 0.0; v <= b.opsMax; v += step {
		b.Line(b.ops(v), chartTop, b.ops(v), base, svg.Grid)
		b.Text(b.ops(v), base+20, "middle", svg.Muted, svg.FormatTick(v, step))
	}
	for p := b.low; p <= b.high; p++ {
		x := b.time(math.Pow(10, p))
		b.Line(x, chartTop, x, base, svg.Grid)
		b.Text(x, base+20, "middle", svg.Muted,
			svg.FormatTick(math.Pow(10, p), min(1, math.Pow(10, p))))
	}
	b.Text(barLeft, chartTop-12, "start", svg.Muted, "operations per second")
	b.Text(timeLeft, chartTop-12, "start", svg.Muted,
		"milliseconds: p50 (dot) to p99 (bar), longest (tick)")
}

func (b *bars) ops(v float64) float64 { return barLeft + (barRight-barLeft)*v/b.opsMax }

func (b *bars) time(ms float64) float64 {
	p := (math.Log10(max(ms, 0.001)) - b.low) / (b.high - b.low)
	return timeLeft + (timeRight-timeLeft)*min(max(p, 0), 1)
}

func (b *bars) row(c *cell) {
	middle := b.y + rowHeight/2
	b.y += rowHeight
	b.Text(nameLeft, middle+5, "start", svg.Ink, c.shortTitle())
	if !c.measured() {
		b.Text(barLeft+6, middle+5, "start", svg.Muted, noteWord(c))
		return
	}
	color := rivalColor
	switch {
	case c.ModestAlone:
		color = paleColor
	case c.spec.strategy.scope != "":
		color = ourColor
	}
	ops := c.Summary[opsPerSecond]
	b.Printf(`<rect x="%d" y="%.1f" width="%.1f" height="14" fill="%s" class="ops"/>`, barLeft,
		middle-7, b.ops(ops.Median)-barLeft, color)
	b.Line(b.ops(ops.Min), middle, b.ops(ops.Max), middle, svg.Ink)
	label := figure(ops.Median)
	if served := c.Summary[goroutinesServed].Median; served < float64(c.Goroutines) {
		// the throughput excludes goroutines that were never served
		label += fmt.Sprintf(", %.0f of %d served", served, c.Goroutines)
	}
	b.Text(b.ops(ops.Max)+6, middle+5, "start", svg.Ink, label)

	p50, p99, longest := c.latencies()
	if longest.Max == 0 {
		return
	}
	b.Printf(`<rect x="%.1f" y="%.1f" width="%.1f" height="8" fill="%s" fill-opacity="0.45"/>`,
		b.time(p50.Median), middle-4, b.time(p99.Median)-b.time(p50.Median), color)
	b.Printf(`<circle cx="%.1f" cy="%.1f" r="5" fill="%s"/>`, b.time(p50.Median), middle, color)
	b.Line(b.time(p99.Median), middle, b.time(longest.Max), middle, color)
	b.Line(b.time(longest.Max), middle-6, b.time(longest.Max), middle+6, color)
}

func (c *cell) shortTitle() string {
	if c.ModestAlone {
		return "  modest ones alone"
	}
	return c.spec.strategy.title
}

func noteWord(c *cell) string {
	if c.Note != "" {
		return c.Note
	}
	return "failed"
}

func through(c *cell) string {
	if c.spec.scenario.integration == fleet.SQL {
		return "database/sql"
	}
	return "pgxpool"
}
