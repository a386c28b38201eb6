package passbuddytest_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// Each block of code in docs/TESTING.md is in guide_test.go, whole functions and types, as it is
// there; and the other way round.
func TestGuide(t *testing.T) {
	text, err := os.ReadFile("../docs/TESTING.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("guide_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, code, found := strings.Cut(string(source), "docs/TESTING.md.\n")
	if !found {
		t.Fatal("guide_test.go does not say where its code is shown")
	}
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 5 {
		t.Errorf("%d blocks of code, want at least 5", len(blocks))
	}
	for _, b := range blocks {
		if !strings.Contains(code, "\n"+b[1]) {
			t.Errorf("guide_test.go has not, as it is:\n%s", b[1])
		}
		code = strings.Replace(code, "\n"+b[1], "\n", 1)
	}
	if rest := strings.TrimSpace(code); rest != "" {
		t.Errorf("docs/TESTING.md does not show:\n%s", rest)
	}
}

// The guide and the package's documentation name each method.
func TestGuideNamesMethods(t *testing.T) {
	text, err := os.ReadFile("../docs/TESTING.md")
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile("../api/passbuddytest.txt")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`func \(f \*Fleet\) (\w+)`).FindAllStringSubmatch(string(list), -1)
	if len(names) < 12 {
		t.Errorf("%d methods, want at least 12", len(names))
	}
	for _, name := range names {
		if !strings.Contains(string(text), "`"+name[1]+"(") {
			t.Errorf("docs/TESTING.md does not name %s", name[1])
		}
	}
}
