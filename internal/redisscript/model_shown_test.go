package redisscript

import (
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
)

// shown prints a call or an answer as it would be written in Go, without what is not set, and with short names.
type shown struct{ v any }

func (s shown) String() string {
	v := reflect.ValueOf(s.v)
	var parts []string
	for i := range v.NumField() {
		if f := v.Field(i); !f.IsZero() && !(f.Kind() == reflect.Slice && f.Len() == 0) {
			parts = append(parts, fmt.Sprintf("%s: %v", v.Type().Field(i).Name, f))
		}
	}
	return fmt.Sprintf("%s{%s}", v.Type().Name(), strings.Join(parts, ", "))
}

var uuids = regexp.MustCompile(`000000([0-9a-f]{2})-([0-9a-f]{4})-8[0-9a-f]{2}0(?:-8([0-9a-f]{3}))?(?:-([0-9a-f]{12}))?|\b179[0-9]{10}\b`)

// short gives sessions, pools and permits short names: a1 is the first session in slot a, a1/2 its second pool, a1/2#7 a permit of that, and
// a1#7 one that no pool holds. Times count from the start.
func short(text string) string {
	return uuids.ReplaceAllStringFunc(text, func(id string) string {
		m := uuids.FindStringSubmatch(id)
		if m[1] == "" {
			n, _ := strconv.ParseInt(id, 10, 64)
			return "T" + fmt.Sprintf("%+d", n-modelStart)
		}
		number := func(hex string) int64 { n, _ := strconv.ParseInt(hex, 16, 64); return n }
		name := string(rune('a'+number(m[1])-0xa0)) + strconv.FormatInt(number(m[2]), 10)
		if m[3] != "" && m[3] != "000" {
			name += "/" + strconv.FormatInt(number(m[3]), 10)
		}
		if m[4] != "" {
			name += "#" + strconv.FormatInt(number(m[4]), 10)
		}
		return name
	})
}
