package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unicode/utf8"
)

// writeMarkdown replaces the text between the marks of a document and leaves the rest alone.
const (
	markBegin = "<!-- passbuddy bench: begin -->"
	markEnd   = "<!-- passbuddy bench: end -->"
)

// writeMarkdown writes the tables into the document at path, between its marks, or creates the
// document.
func writeMarkdown(path, pictureFolder string, pictures []picture, r *report) error {
	section := markBegin + "\n" + markdown(path, pictureFolder, pictures, r) + markEnd
	document := section + "\n"
	existing, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		before, rest, found := strings.Cut(string(existing), markBegin)
		_, after, closed := strings.Cut(rest, markEnd)
		if !found || !closed {
			return fmt.Errorf("-markdown: %s exists and has no lines %q and %q to write between",
				path, markBegin, markEnd)
		}
		document = before + section + after
	}
	return os.WriteFile(path, []byte(document), 0o644)
}

func markdown(path, pictureFolder string, pictures []picture, r *report) string {
	var text strings.Builder
	fmt.Fprintf(&text, "\nRun of %s, %.0f minutes.\n\n", r.Started.Format("2006-01-02 15:04 MST"),
		r.Seconds/60)
	fmt.Fprintf(&text, "- Machine: %s.\n", r.Machine)
	fmt.Fprintf(&text, "- Cap %d; queries in %s.\n", r.Settings.Capacity, r.Settings.execModeText())
	for _, t := range allTables {
		if r.shows(t) {
			fmt.Fprintf(&text, "- %s\n", r.Settings.Tables[t.name].text(t))
		}
	}
	for _, caution := range r.Machine.cautions() {
		fmt.Fprintf(&text, "- %s\n", strings.ReplaceAll(wrap(caution), "\n", "\n  "))
	}
	if !r.Complete {
		text.WriteString("- The run is not complete: some cells have fewer rounds, or none.\n")
	}
	link := func(p picture) string { return linkTo(path, filepath.Join(pictureFolder, p.name)) }
	targets := sync.OnceFunc(func() { writeTargets(&text, r.Targets) })
	var last *table
	about := "" // the picture's section
	for _, s := range r.sections() {
		if s.table != openTable { // which comes first
			targets()
		}
		if s.table != last {
			last = s.table
			if explained := s.table.about(); explained != "" {
				fmt.Fprintf(&text, "\n### Table %s\n\n%s\n", s.table.name, wrap(explained))
			}
		}
		if key := pictureName(s.groups[0][0]); s.table == saturatedTable && key != about {
			about = key
			for _, p := range pictures {
				if p.name == key {
					fmt.Fprintf(&text, "\n### %s\n\n![%[1]s](%s)\n", p.title, link(p))
				}
			}
		}
		fmt.Fprintf(&text, "\n#### %s\n\n", s.title)
		for _, columns := range s.columns(r.Settings.Capacity) {
			writeMarkdownTable(&text, tableOf(s.cells(), columns))
			text.WriteString("\n")
		}
		for _, note := range s.notes() {
			text.WriteString(note + "\n\n")
		}
		for _, group := range s.groups {
			for _, p := range pictures {
				if group[0].spec.scenario.drawn() && p.name == timelineName(group[0]) {
					fmt.Fprintf(&text, "![%s](%s)\n\n", p.title, link(p))
				}
			}
		}
	}
	targets()
	return text.String()
}

func writeTargets(text *strings.Builder, targets []target) {
	if len(targets) == 0 {
		return
	}
	text.WriteString("\n### Targets\n\n")
	rows := [][]string{{"what", "want", "median", "lowest..highest", "", ""}}
	for _, t := range targets {
		rows = append(rows, t.row())
	}
	writeMarkdownTable(text, rows)
}

// columnLimit is the maximum length of the document's lines of text, less the indent of a list.
const columnLimit = 98

// wrap breaks a paragraph into lines.
func wrap(paragraph string) string {
	var text strings.Builder
	column := 0
	for word := range strings.FieldsSeq(paragraph) {
		n := utf8.RuneCountInString(word)
		switch {
		case column == 0:
		case column+1+n > columnLimit:
			text.WriteByte('\n')
			column = 0
		default:
			text.WriteByte(' ')
			column++
		}
		text.WriteString(word)
		column += n
	}
	return text.String()
}

func linkTo(document, file string) string {
	from, err1 := filepath.Abs(filepath.Dir(document))
	to, err2 := filepath.Abs(file)
	rel, err3 := filepath.Rel(from, to)
	if errors.Join(err1, err2, err3) != nil {
		return filepath.ToSlash(file)
	}
	return filepath.ToSlash(rel)
}

// writeMarkdownTable uses the first row as the head, and aligns numbers to the right.
func writeMarkdownTable(text *strings.Builder, rows [][]string) {
	for i, row := range rows {
		escaped := make([]string, len(row))
		for j, cell := range row {
			escaped[j] = strings.ReplaceAll(cell, "|", "\\|")
		}
		fmt.Fprintf(text, "| %s |\n", strings.Join(escaped, " | "))
		if i == 0 {
			text.WriteString("|---|" + strings.Repeat("---:|", len(row)-1) + "\n")
		}
	}
}
