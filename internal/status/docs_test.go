package status

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// docs/STATUS.md names every field of the document.
func TestEveryFieldIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/STATUS.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[reflect.Type]bool)
	var visit func(of reflect.Type)
	visit = func(of reflect.Type) {
		for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice {
			of = of.Elem()
		}
		if of.Kind() != reflect.Struct || of == reflect.TypeFor[time.Time]() || seen[of] {
			return
		}
		seen[of] = true
		for i := range of.NumField() {
			field := of.Field(i)
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name == "" || name != strings.ToLower(name) {
				t.Errorf("%s.%s has no name in JSON", of, field.Name)
			}
			if !strings.Contains(string(text), "`"+name+"`") {
				t.Errorf("docs/STATUS.md does not name %q of %s", name, of)
			}
			visit(field.Type)
		}
	}
	visit(reflect.TypeFor[Document]())
}
