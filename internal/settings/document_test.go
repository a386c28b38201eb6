package settings

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// docs/CONFIGURATION.md has each setting, in this order, as it is in the code, and a line about it.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/CONFIGURATION.md")
	if err != nil {
		t.Fatal(err)
	}
	var got [][]string
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 6 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`"+prefix) {
			continue
		}
		var row []string
		for _, cell := range cells[1:5] {
			row = append(row, strings.TrimSpace(cell))
		}
		got = append(got, row)
	}
	if len(got) != len(All) {
		t.Errorf("the table has %d settings, the code %d", len(got), len(All))
	}
	for i, set := range All {
		variable := "`" + set.Variable() + "`"
		if set.Fallback() != "" {
			variable += ", else `" + set.Fallback() + "`"
		}
		want := []string{"`" + set.Key() + "`", variable, set.Values, set.Default}
		if i >= len(got) || !slices.Equal(got[i], want) {
			t.Errorf("row %d should be | %s |", i+1, strings.Join(want, " | "))
		}
		if !strings.Contains(string(text), "**"+set.name+"**") {
			t.Errorf("the list below the table has nothing about %s", set.name)
		}
	}
}
