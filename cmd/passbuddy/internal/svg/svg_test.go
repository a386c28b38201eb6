package svg

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

func TestNiceStep(t *testing.T) {
	for _, c := range []struct {
		top  float64
		n    int
		want float64
	}{{10, 10, 1}, {25, 6, 5}, {24.64, 6, 5}, {358, 6, 100}, {0, 5, 1}, {0.1, 10, 0.01},
		{1e6, 3, 5e5}} {
		if got := NiceStep(c.top, c.n); math.Abs(got-c.want) > c.want*1e-9 {
			t.Errorf("NiceStep(%v, %d) is %v, want %v", c.top, c.n, got, c.want)
		}
	}
}

func TestDocumentEscapes(t *testing.T) {
	d := New(10, 10, "a < b & c")
	d.Text(1, 2, "start", Ink, "<script>")
	d.Heading(1, 2, "x & y")
	var out bytes.Buffer
	if _, err := d.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	text := ""
	for decoder := xml.NewDecoder(bytes.NewReader(out.Bytes())); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, out.Bytes())
		}
		if chars, ok := token.(xml.CharData); ok {
			text += string(chars)
		}
	}
	for _, want := range []string{"a < b & c", "<script>", "x & y"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %q", want, text)
		}
	}
}
