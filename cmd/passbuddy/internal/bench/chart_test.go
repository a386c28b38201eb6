package bench

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
)

// inspect fails the test unless the document is well-formed and free of values such as NaN. It
// returns the text and the number of throughput bars.
func inspect(t *testing.T, document []byte) (text string, bars int) {
	t.Helper()
	for _, bad := range []string{"NaN", "Inf", "%!", `width="-`} {
		if bytes.Contains(document, []byte(bad)) {
			t.Errorf("the picture contains %s", bad)
		}
	}
	for decoder := xml.NewDecoder(bytes.NewReader(document)); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return text, bars
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, document)
		}
		switch token := token.(type) {
		case xml.CharData:
			text += string(token) + "\n"
		case xml.StartElement:
			for _, a := range token.Attr {
				if a.Name.Local == "class" && a.Value == "ops" {
					bars++
				}
				if a.Name.Local == "x" {
					if x, err := strconv.ParseFloat(a.Value, 64); err != nil || x < 0 ||
						x > chartWidth {
						t.Errorf("outside of the picture: x=%q", a.Value)
					}
				}
			}
		}
	}
}

func TestPictures(t *testing.T) {
	r := testReport(t, parse(t))
	pictures := drawBars(r)
	var files []string
	for _, p := range pictures {
		files = append(files, p.name)
		text, bars := inspect(t, p.document)
		want := 0
		for _, c := range r.Cells {
			if c.Table == "" && pictureName(c) == p.name && c.measured() {
				want++
			}
		}
		if bars != want {
			t.Errorf("%s has %d bars for %d cells", p.name, bars, want)
		}
		for _, part := range []string{"cap 20", "PassBuddy", "static split", "a <CPU> & more",
			"operations per second", p.title} {
			if !strings.Contains(text, part) {
				t.Errorf("%s has no text %q", p.name, part)
			}
		}
		if strings.HasPrefix(p.name, "pgxpool") &&
			(!strings.Contains(text, "impossible") ||
				!strings.Contains(text, "modest ones alone")) {
			t.Errorf("%s lacks the note on an impossible cell or the modest processes", p.name)
		}
	}
	if got, want := strings.Join(files, " "),
		"pgxpool-select1.svg pgxpool-5ms.svg pgxpool-tx.svg "+
			"sql-select1.svg sql-5ms.svg sql-tx.svg"; got != want {
		t.Errorf("pictures %s, want %s", got, want)
	}
}

func TestPictureOfAlmostNothing(t *testing.T) {
	r := testReport(t, parse(t, "-quick", "-strategies", "static,original"))
	for _, c := range r.Cells {
		c.Rounds = []measurement{{Round: 1, Values: map[string]float64{opsPerSecond: 0}}}
	}
	r.Cells[0].Rounds[0].Values = map[string]float64{opsPerSecond: 1, latencyP50: 1, latencyP99: 1,
		latencyMax: 1}
	r.Cells[1].Rounds = []measurement{{Round: 1, Error: "failed"}}
	r.finish()
	for _, p := range drawPictures(r) {
		inspect(t, p.document)
	}
	for _, c := range r.Cells {
		c.Rounds = nil
	}
	r.finish()
	if got := drawPictures(r); len(got) != 0 {
		t.Errorf("%d pictures of nothing", len(got))
	}
}
