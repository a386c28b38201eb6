package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// What stands between the marks of a document is replaced; the rest is its author's.
const (
	markBegin = "<!-- passbuddy bench: begin -->"
	markEnd   = "<!-- passbuddy bench: end -->"
)

// writeMarkdown writes the tables into the document at path, between its marks, or makes a document of them.
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
			return fmt.Errorf("-markdown: %s exists and has no lines %q and %q to write between", path, markBegin, markEnd)
		}
		document = before + section + after
	}
	return os.WriteFile(path, []byte(document), 0o644)
}

func markdown(path, pictureFolder string, pictures []picture, r *report) string {
	var text strings.Builder
	fmt.Fprintf(&text, "\nRun of %s, %.0f minutes.\n\n", r.Started.Format("2006-01-02 15:04 MST"), r.Seconds/60)
	fmt.Fprintf(&text, "- Machine: %s.\n", r.Machine)
	fmt.Fprintf(&text, "- Cap %d; rounds: %d; %gs measured in each cell after %gs of warm-up; queries in %s.\n",
		r.Settings.Capacity, r.Settings.Rounds, r.Settings.DurationSeconds, r.Settings.WarmupSeconds, r.Settings.execModeText())
	if caution := r.Machine.caution(); caution != "" {
		fmt.Fprintf(&text, "- %s\n", caution)
	}
	if !r.Complete {
		text.WriteString("- The run is not complete: some cells have fewer rounds, or none.\n")
	}
	if len(r.Targets) > 0 {
		text.WriteString("\n### Targets\n\n")
		rows := [][]string{{"what", "want", "median", "lowest..highest", "", ""}}
		for _, t := range r.Targets {
			rows = append(rows, t.row())
		}
		writeMarkdownTable(&text, rows)
	}
	about := "" // the picture's section
	for _, group := range r.groups() {
		if key := pictureName(group[0]); key != about {
			about = key
			for _, p := range pictures {
				if p.name == key {
					fmt.Fprintf(&text, "\n### %s\n\n![%[1]s](%s)\n", p.title, linkTo(path, filepath.Join(pictureFolder, p.name)))
				}
			}
		}
		fmt.Fprintf(&text, "\n#### %s\n\n", heading(group))
		for _, columns := range columnsFor(group, r.Settings.Capacity) {
			writeMarkdownTable(&text, tableOf(group, columns))
			text.WriteString("\n")
		}
		for _, c := range group {
			if !c.measured() {
				text.WriteString(noteOf(c) + "\n\n")
			}
		}
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

// writeMarkdownTable takes the first row for the head. Numbers are aligned to the right.
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
