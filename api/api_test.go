// Package api lists the exported names of the library, so that a change of them is a change in a
// review.
package api

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/build"
	"go/doc"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the lists anew")

// packages are the library's, by their lists, and where they are.
var packages = map[string]string{
	"semaphore": "../semaphore", "passbuddy": "..", "pgxpool": "../pgxpool",
	"passbuddytest": "../passbuddytest",
	"env":           "../env", "dashboard": "../dashboard", "passbuddyprom": "../passbuddyprom", "passbuddyotel": "../passbuddyotel",
}

// Each exported name has its line in the list of its package.
func TestExportedNames(t *testing.T) {
	for name, dir := range packages {
		t.Run(name, func(t *testing.T) {
			var l list
			l.pkg(load(t, dir))
			slices.Sort(l.lines)
			got := strings.Join(l.lines, "\n") + "\n"
			file := name + ".txt"
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			known := strings.Split(strings.TrimSuffix(string(want), "\n"), "\n")
			for _, line := range l.lines {
				if !slices.Contains(known, line) {
					t.Errorf("new:  %s", line)
				}
			}
			for _, line := range known {
				if !slices.Contains(l.lines, line) {
					t.Errorf("gone: %s", line)
				}
			}
			if t.Failed() {
				t.Log("if the API is to change, go test ./api -update writes the lists anew")
			} else if got != string(want) {
				t.Errorf("%s is not in order: go test ./api -update", file)
			}
		})
	}
}

// Each function and each method of package semaphore has an Example.
func TestExamples(t *testing.T) {
	pkg := load(t, packages["semaphore"])
	for _, f := range pkg.Funcs {
		shown(t, f)
	}
	for _, typ := range pkg.Types {
		for _, f := range slices.Concat(typ.Funcs, typ.Methods) {
			if f.Name != "Engine" { // no other module can call it
				shown(t, f)
			}
		}
	}
}

func shown(t *testing.T, f *doc.Func) {
	t.Helper()
	if len(f.Examples) == 0 {
		t.Errorf("%s %s has no Example", strings.TrimPrefix(f.Recv, "*"), f.Name)
	}
}

var fset = token.NewFileSet()

// load reads a package with its Examples.
func load(t *testing.T, dir string) *doc.Package {
	t.Helper()
	found, err := build.ImportDir(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, name := range slices.Concat(found.GoFiles, found.XTestGoFiles) {
		f, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	pkg, err := doc.NewFromFiles(fset, files, dir)
	if err != nil {
		t.Fatal(err)
	}
	return pkg
}

// list gathers a line for each exported name.
type list struct{ lines []string }

func (l *list) add(format string, args ...any) {
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *list) pkg(p *doc.Package) {
	values := slices.Concat(p.Consts, p.Vars)
	funcs := p.Funcs
	for _, t := range p.Types {
		values = slices.Concat(values, t.Consts, t.Vars)
		funcs = slices.Concat(funcs, t.Funcs, t.Methods)
		for _, s := range t.Decl.Specs {
			l.typ(s.(*ast.TypeSpec))
		}
	}
	for _, v := range values {
		l.values(v.Decl)
	}
	for _, f := range funcs {
		decl := *f.Decl
		decl.Doc, decl.Body = nil, nil
		l.add("%s", source(&decl))
	}
}

var index = regexp.MustCompile(`\biota\b`)

// values lists constants or variables. In a group of constants, one without a value has the one
// before.
func (l *list) values(d *ast.GenDecl) {
	var typ, value string
	for i, s := range d.Specs {
		spec := s.(*ast.ValueSpec)
		if spec.Type != nil || len(spec.Values) > 0 {
			typ, value = "", ""
		}
		if spec.Type != nil {
			typ = " " + source(spec.Type)
		}
		for j, name := range spec.Names {
			if j < len(spec.Values) {
				value = " = " + source(resolved(spec.Values[j]))
			}
			if name.IsExported() {
				l.add("%s %s%s%s", d.Tok, name, typ, index.ReplaceAllString(value, strconv.Itoa(i)))
			}
		}
	}
}

// resolved is the value of a constant that an internal package declares, or the expression itself. Its
// value would else change without a change of the list.
func resolved(value ast.Expr) ast.Expr {
	s, ok := value.(*ast.SelectorExpr)
	if !ok {
		return value
	}
	pkg, ok := s.X.(*ast.Ident)
	if !ok {
		return value
	}
	files, _ := filepath.Glob(filepath.Join("../internal", pkg.Name, "*.go"))
	for _, name := range files {
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			continue
		}
		if o := f.Scope.Lookup(s.Sel.Name); o != nil && o.Kind == ast.Con {
			if spec := o.Decl.(*ast.ValueSpec); len(spec.Values) == 1 {
				return resolved(spec.Values[0])
			}
		}
	}
	return value
}

func (l *list) typ(s *ast.TypeSpec) {
	name := s.Name.Name
	switch t := s.Type.(type) {
	case *ast.StructType:
		l.add("type %s struct", name)
		l.fields(name, t.Fields, " ")
	case *ast.InterfaceType:
		l.add("type %s interface", name)
		l.fields(name, t.Methods, "")
		if t.Incomplete {
			l.add("type %s interface, with unexported methods", name)
		}
	default:
		l.add("type %s", source(s))
	}
}

// fields lists the fields of a struct, or the methods of an interface. A field without a name is
// embedded.
func (l *list) fields(of string, list *ast.FieldList, space string) {
	for _, f := range list.List {
		typ := source(f.Type)
		if space == "" {
			typ = strings.TrimPrefix(typ, "func")
		}
		if len(f.Names) == 0 {
			l.add("type %s, embedded %s", of, typ)
		}
		for _, name := range f.Names {
			if name.IsExported() {
				l.add("type %s, %s%s%s", of, name, space, typ)
			}
		}
	}
}

// source is how a node is written, on one line.
func source(node any) string {
	if s, ok := node.(*ast.TypeSpec); ok {
		alone := *s
		alone.Doc, alone.Comment = nil, nil
		node = &alone
	}
	var b bytes.Buffer
	if err := printer.Fprint(&b, fset, node); err != nil {
		panic(err)
	}
	line := strings.Join(strings.Fields(b.String()), " ")
	return strings.NewReplacer("( ", "(", ", )", ")").Replace(line) // a parameter list on several lines
}
