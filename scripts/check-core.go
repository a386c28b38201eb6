//go:build ignore

// Check-core reports goroutines, channel operations, clocks, locks and I/O in a package that must
// be a value. Its arguments are the package's folder, and the Go files in it, without tests. See
// check-core.sh.
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// pure lists the packages that may be imported, with the names that may be used: all, if there is
// no expression. Any other package is refused, so an author must decide on each new one once.
var pure = map[string]*regexp.Regexp{
	"cmp": nil, "errors": nil, "maps": nil, "slices": nil, "strings": nil, "strconv": nil,
	"math": nil, "math/bits": nil,
	"unicode": nil, "unicode/utf8": nil,
	// Durations, but nothing that reads a clock or waits for it.
	"time": regexp.MustCompile(
		`^(Duration|Nanosecond|Microsecond|Millisecond|Second|Minute|Hour)$`),
	// Text, but nothing that writes or reads it.
	"fmt":           regexp.MustCompile(`^(Errorf|Sprint|Sprintf|Sprintln|Stringer|Formatter|State)$`),
	"encoding/json": regexp.MustCompile(`^(Marshal|Unmarshal)$`),
	"github.com/passbuddy/passbuddy/internal/message": nil,
}

func main() {
	fset := token.NewFileSet()
	failed := false
	refuse := func(at token.Pos, format string, args ...any) {
		failed = true
		fmt.Fprintf(os.Stderr, "check-core: %s: %s\n", fset.Position(at),
			fmt.Sprintf(format, args...))
	}
	var files []*ast.File
	for _, name := range os.Args[2:] {
		f, err := parser.ParseFile(fset, filepath.Join(os.Args[1], name), nil, parser.ParseComments)
		if err != nil {
			fmt.Fprintln(os.Stderr, "check-core:", err)
			os.Exit(1)
		}
		files = append(files, f)
	}
	// Types tell which expressions are channels, and which package a name belongs to. That needs no
	// declaration of another package. So no imported package is read, and errors about missing
	// declarations do not count.
	info := &types.Info{Types: make(map[ast.Expr]types.TypeAndValue),
		Uses: make(map[*ast.Ident]types.Object)}
	conf := types.Config{Importer: unread{}, Error: func(error) {}}
	_, _ = conf.Check("core", fset, files, info)

	for _, f := range files {
		for _, spec := range f.Imports {
			name := strings.Trim(spec.Path.Value, `"`)
			if _, ok := pure[name]; !ok {
				refuse(spec.Pos(), "imports %s", name)
			}
			if spec.Name != nil && (spec.Name.Name == "." || spec.Name.Name == "_") {
				refuse(spec.Pos(), "imports %s as %s", name, spec.Name.Name)
			}
		}
		for _, group := range f.Comments {
			for _, c := range group.List {
				if strings.HasPrefix(c.Text, "//go:linkname") {
					refuse(c.Pos(), "has a linkname")
				}
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				refuse(n.Pos(), "starts a goroutine")
			case *ast.SendStmt:
				refuse(n.Pos(), "sends to a channel")
			case *ast.SelectStmt:
				refuse(n.Pos(), "selects")
			case *ast.UnaryExpr:
				if n.Op == token.ARROW {
					refuse(n.Pos(), "receives from a channel")
				}
			case *ast.RangeStmt:
				if t := info.TypeOf(n.X); t != nil {
					if _, ok := t.Underlying().(*types.Chan); ok {
						refuse(n.Pos(), "receives from a channel")
					}
				}
			case *ast.CallExpr:
				if id, ok := ast.Unparen(n.Fun).(*ast.Ident); ok {
					if _, ok := info.Uses[id].(*types.Builtin); ok {
						switch id.Name {
						case "close":
							refuse(n.Pos(), "closes a channel")
						case "print", "println":
							refuse(n.Pos(), "writes")
						}
					}
				}
			case *ast.SelectorExpr:
				id, ok := n.X.(*ast.Ident)
				if !ok {
					break
				}
				if of, ok := info.Uses[id].(*types.PkgName); ok {
					name := of.Imported().Path()
					if may := pure[name]; may != nil && !may.MatchString(n.Sel.Name) {
						refuse(n.Pos(), "uses %s.%s", name, n.Sel.Name)
					}
				}
			}
			return true
		})
	}
	if failed {
		os.Exit(1)
	}
}

// unread imports packages without their declarations.
type unread struct{}

func (unread) Import(name string) (*types.Package, error) {
	p := types.NewPackage(name, path.Base(name))
	p.MarkComplete()
	return p, nil
}
