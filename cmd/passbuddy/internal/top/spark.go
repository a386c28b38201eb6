package top

import "strings"

// eighths are blocks of one to eight eighths of a line's height.
var eighths = []rune("▁▂▃▄▅▆▇█")

// sparkline shows the last n values as blocks. most is the value of a full block, unless a value is
// larger. A value above 0 shows at least one eighth, and 0 a space.
func sparkline(values []float64, most float64, n int) string {
	values = values[max(0, len(values)-n):]
	for _, v := range values {
		most = max(most, v)
	}
	var b strings.Builder
	b.WriteString(strings.Repeat(" ", max(0, n-len(values))))
	for _, v := range values {
		if v <= 0 || most <= 0 {
			b.WriteByte(' ')
			continue
		}
		b.WriteRune(eighths[min(len(eighths)-1, int(v/most*float64(len(eighths))))])
	}
	return b.String()
}
