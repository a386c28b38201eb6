package examples

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const guide = "../docs/LIBRARIES.md"

var linked = regexp.MustCompile(`\]\((\.\./examples/[^)]+\.go)\)`)

// Each snippet of docs/LIBRARIES.md is a part of the program linked before it.
func TestGuideQuotesPrograms(t *testing.T) {
	text, err := os.ReadFile(guide)
	must(t, err)
	quoted := make(map[string]bool)
	var program string
	var snippet []string
	inside := false
	for n, line := range strings.Split(string(text), "\n") {
		switch {
		case line == "```go":
			inside, snippet = true, nil
		case line == "```" && inside:
			inside = false
			source, err := os.ReadFile(filepath.Join(filepath.Dir(guide), program))
			must(t, err)
			if !quotes(strings.Split(string(source), "\n"), snippet) {
				t.Errorf("%s:%d: the snippet before is not in %s", guide, n+1, program)
			}
			quoted[filepath.Base(filepath.Dir(program))] = true
		case inside:
			snippet = append(snippet, line)
		default:
			for _, m := range linked.FindAllStringSubmatch(line, -1) {
				program = m[1]
			}
		}
	}

	programs, err := filepath.Glob("*/main.go")
	must(t, err)
	for _, p := range programs {
		if name := filepath.Dir(p); !quoted[name] {
			t.Errorf("%s quotes nothing of %s", guide, name)
		}
	}
}

// quotes reports whether the snippet is a run of lines of the source, but for the tabs that all of
// its lines lack.
func quotes(source, snippet []string) bool {
	if len(snippet) == 0 {
		return false
	}
	for i := range len(source) - len(snippet) + 1 {
		indent, ok := strings.CutSuffix(source[i], snippet[0])
		if !ok || strings.Trim(indent, "\t") != "" {
			continue
		}
		same := true
		for k, line := range snippet {
			if line != "" {
				line = indent + line
			}
			same = same && line == source[i+k]
		}
		if same {
			return true
		}
	}
	return false
}

// Each link of the guide to a section or a file leads somewhere.
func TestGuideLinks(t *testing.T) {
	text, err := os.ReadFile(guide)
	must(t, err)
	sections := make(map[string]bool)
	for _, line := range strings.Split(string(text), "\n") {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			slug := strings.ReplaceAll(strings.ToLower(title), " ", "-")
			sections[regexp.MustCompile(`[^a-z0-9_-]`).ReplaceAllString(slug, "")] = true
		}
	}
	for _, m := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(string(text), -1) {
		file, section, _ := strings.Cut(m[1], "#")
		if file == "" && !sections[section] {
			t.Errorf("no section #%s", section)
		}
		if file != "" {
			_, err := os.Stat(filepath.Join(filepath.Dir(guide), file))
			must(t, err)
		}
	}
}
