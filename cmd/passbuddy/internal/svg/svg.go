// Package svg writes pictures in the common style of the demo and the benchmarks.
package svg

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/show"
)

const (
	Ink   = "#1f2328"
	Muted = "#59636e"
	Grid  = "#e4e7eb"
)

// Document is a picture under construction.
type Document struct{ buffer bytes.Buffer }

// New begins a picture of the given size, in user units, with a white background. Its title serves
// readers who cannot see it.
func New(width, height int, title string) *Document {
	d := &Document{}
	d.Printf(
		`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" `+
			`width="%[1]d" height="%[2]d" role="img" `+
			`font-family="Helvetica, Arial, 'DejaVu Sans', sans-serif" `+
			`font-size="15" fill="%[3]s">`,
		width, height, Ink)
	d.Printf(`<title>`)
	d.escape(title)
	d.Printf(`</title><rect width="100%%" height="100%%" fill="#ffffff"/>`)
	return d
}

// WriteTo ends the picture and writes it.
func (d *Document) WriteTo(w io.Writer) (int64, error) {
	d.Printf("</svg>\n")
	return d.buffer.WriteTo(w)
}

// Printf adds elements. Text from outside must go through Text, which escapes it.
func (d *Document) Printf(format string, args ...any) { fmt.Fprintf(&d.buffer, format, args...) }

// Text adds a line of text. The anchor is start, middle or end.
func (d *Document) Text(x, y float64, anchor, color, s string) {
	d.Printf(`<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">`, x, y, anchor, color)
	d.escape(s)
	d.Printf("</text>\n")
}

// Heading adds a line of text in large letters.
func (d *Document) Heading(x, y float64, s string) {
	d.Printf(`<text x="%.1f" y="%.1f" font-size="21" font-weight="bold">`, x, y)
	d.escape(s)
	d.Printf("</text>\n")
}

// Line adds a straight line of width 1.
func (d *Document) Line(x1, y1, x2, y2 float64, color string) {
	d.Printf(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`, x1, y1, x2, y2, color)
}

func (d *Document) escape(s string) {
	_ = xml.EscapeText(&d.buffer, []byte(s)) // a bytes.Buffer does not fail
}

// NiceStep returns a step of 1, 2 or 5 times a power of ten that divides the range from 0 to top
// into at most n parts.
func NiceStep(top float64, n int) float64 {
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

// FormatTick formats the value of a tick of an axis whose ticks are a step apart.
func FormatTick(value, step float64) string {
	if step >= 1 {
		return show.Thousands(int64(math.Round(value)))
	}
	return strconv.FormatFloat(value, 'f', int(math.Ceil(-math.Log10(step))), 64)
}
