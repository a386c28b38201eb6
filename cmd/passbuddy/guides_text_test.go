package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// Every error text of docs/TROUBLESHOOTING.md is in the code.
func TestTroubleshootingQuotesErrors(t *testing.T) {
	known := literals(t)
	found := 0
	inTexts := false
	for line := range strings.Lines(read(t, docs+"TROUBLESHOOTING.md")) {
		cell, isRow := strings.CutPrefix(line, "| ")
		cell, _, _ = strings.Cut(cell, " |")
		switch {
		case strings.HasPrefix(line, "|--"):
		case !isRow:
			inTexts = false
		case cell == "text":
			inTexts = true
		case inTexts && strings.HasPrefix(cell, "`"):
			found++
			text, _, closed := strings.Cut(cell[1:], "`")
			if !closed {
				t.Errorf("the text %s has no end", cell)
			}
			for _, part := range strings.Split(text, "...") {
				// An error and its cause are texts of their own.
				if !known(part) && !knownInParts(known, part) {
					t.Errorf("%q: the code says %q nowhere", text, part)
				}
			}
		}
	}
	if found < 30 {
		t.Errorf("%d texts: the test sees too few", found)
	}
}

func knownInParts(known func(string) bool, text string) bool {
	for _, part := range strings.Split(text, ": ") {
		if !known(part) {
			return false
		}
	}
	return true
}

// literals reads the strings of the repository's code, tests aside. It returns whether one of them
// has a text, however that begins and ends.
func literals(t *testing.T) func(string) bool {
	var all strings.Builder
	verb := regexp.MustCompile(`%[-+# 0]*[0-9.]*[a-zA-Z]`)
	must(t, filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && (strings.HasPrefix(e.Name(), ".") && e.Name() != "../.." && len(e.Name()) > 2 ||
			e.Name() == "examples"):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			x, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			text, ok := folded(x)
			if ok {
				all.WriteString(verb.ReplaceAllString(text, "\x00") + "\x00")
			}
			return !ok
		})
		return nil
	}))
	return func(text string) bool {
		return strings.Contains(all.String(), strings.Trim(text, " :;,"))
	}
}

// folded is the text of a literal, or of a sum of literals.
func folded(x ast.Expr) (string, bool) {
	switch x := x.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(x.Value)
		return text, err == nil && x.Kind == token.STRING
	case *ast.BinaryExpr:
		a, isText := folded(x.X)
		b, both := folded(x.Y)
		return a + b, isText && both && x.Op == token.ADD
	}
	return "", false
}

// Every link of the documents leads to a file, and to a heading of it.
func TestLinks(t *testing.T) {
	pages, err := filepath.Glob(docs + "*.md")
	must(t, err)
	for _, name := range []string{"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"} {
		pages = append(pages, "../../"+name)
	}
	link := regexp.MustCompile(`(?m)\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$`)
	for _, page := range pages {
		text := read(t, page)
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target := m[1] + m[2]
			if strings.Contains(target, "://") {
				continue
			}
			file, heading, _ := strings.Cut(target, "#")
			path := page
			if file != "" {
				path = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s links to %s: there is no such file", filepath.Base(page), target)
				continue
			}
			if heading != "" && strings.HasSuffix(path, ".md") && !headings(read(t, path))[heading] {
				t.Errorf("%s links to %s: there is no such heading", filepath.Base(page), target)
			}
		}
	}
	// The index has all pages.
	index := read(t, docs+"README.md")
	for _, page := range pages {
		if name := filepath.Base(page); name != "README.md" && !strings.Contains(index, name+")") {
			t.Errorf("docs/README.md does not link to %s", name)
		}
	}
}

// headings are the anchors of a page, as GitHub makes them.
func headings(text string) map[string]bool {
	all := make(map[string]bool)
	inCode := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "```") {
			inCode = !inCode
		}
		if level := strings.IndexByte(line, ' '); !inCode && level > 0 && strings.Trim(line[:level], "#") == "" {
			slug := strings.ReplaceAll(strings.ToLower(line[level+1:]), " ", "-")
			all[regexp.MustCompile(`[^\p{L}\p{N}_-]`).ReplaceAllString(slug, "")] = true
		}
		for _, m := range regexp.MustCompile(`<a id="?([^">]+)"?>`).FindAllStringSubmatch(line, -1) {
			all[m[1]] = true
		}
	}
	return all
}

// CI on GitHub runs all that .ci/run does, and the targets and scripts that it names exist.
func TestWorkflow(t *testing.T) {
	workflow := read(t, "../../.github/workflows/ci.yml")
	makefile := read(t, "../../Makefile")
	for _, command := range regexp.MustCompile(`(?m)^make \S+$`).FindAllString(read(t, "../../.ci/run"), -1) {
		if !strings.Contains(workflow, "run: "+command+"\n") {
			t.Errorf("the workflow does not run %s, as .ci/run does", command)
		}
	}
	targets := regexp.MustCompile(`run: make (\S+)`).FindAllStringSubmatch(workflow, -1)
	if len(targets) < 4 {
		t.Errorf("%d targets: the test sees too few", len(targets))
	}
	for _, m := range targets {
		if !strings.Contains(makefile, "\n"+m[1]+":") {
			t.Errorf("the workflow runs make %s, which is no target", m[1])
		}
	}
	for _, script := range regexp.MustCompile(`scripts/\S+\.sh`).FindAllString(workflow, -1) {
		_, err := os.Stat("../../" + script)
		must(t, err)
	}
	if !strings.Contains(workflow, throwaway.RedisEnv+"=$program") {
		t.Errorf("the workflow does not set %s", throwaway.RedisEnv)
	}
}
