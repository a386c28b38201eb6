package settings

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/lib/pq"
)

func TestCut(t *testing.T) {
	for _, c := range []struct{ dsn, rest, ours string }{
		{"", "", ""},
		{"registeredConnConfig0", "registeredConnConfig0", ""},

		{"postgres://h/d", "postgres://h/d", ""},
		{"postgres://u:p@h/d?passbuddy_name=a", "postgres://u:p@h/d", "name=a"},
		{"postgresql://h/d?passbuddy_name=a&sslmode=disable", "postgresql://h/d?sslmode=disable", "name=a"},
		{"postgres://h/d?sslmode=disable&passbuddy_name=a", "postgres://h/d?sslmode=disable", "name=a"},
		{"postgres://h?passbuddy_name=a", "postgres://h", "name=a"},
		{"postgres://?passbuddy_name=a&host=/tmp", "postgres://?host=/tmp", "name=a"},
		{"postgres://h/d?a=1&passbuddy_name=x&b=2&passbuddy_ttl=5s&", "postgres://h/d?a=1&b=2&", "name=x ttl=5s"},
		{"postgres://u:p@h1:1,h2:2,[::1]:3/d?target_session_attrs=any&passbuddy_name=a",
			"postgres://u:p@h1:1,h2:2,[::1]:3/d?target_session_attrs=any", "name=a"},
		{"postgres://u:p?w@h/d?passbuddy_name=a", "postgres://u:p?w@h/d", "name=a"},
		{"postgres://u:p@[fe80::1?]/d?passbuddy_name=a", "postgres://u:p@[fe80::1?]/d", "name=a"},
		{"postgres://h/d?pass%62uddy%5Fname=a%20b%2B+", "postgres://h/d", "name=a b++"},
		{"postgres://h/d?passbuddy_redis=redis%3A%2F%2F%3As%253D@r%3A6379%2F0", "postgres://h/d",
			"redis=redis://:s%3D@r:6379/0"},
		{"postgres://u@h/d?passbuddy_redis=redis://:s@r:6379/0", "postgres://u@h/d",
			"redis=redis://:s@r:6379/0"},
		{"postgres://h/d?passbuddy_name=%C3%A9", "postgres://h/d", "name=é"},
		{"postgres://h/d?PASSBUDDY_NAME=a", "postgres://h/d", "PASSBUDDY_NAME=a"},
		{"postgres://h/d?passbuddy.name=a", "postgres://h/d?passbuddy.name=a", ""},

		{"host=h passbuddy_name=a dbname=d", "host=h  dbname=d", "name=a"},
		{"passbuddy_name=a", "", "name=a"},
		{" host = h passbuddy_name = 'a b' ", " host = h  ", "name=a b"},
		{`passbuddy_name='it\'s \\' host=h`, ` host=h`, `name=it's \`},
		{`host=h\ passbuddy_name=x`, `host=h\ passbuddy_name=x`, ""},
		{`password='x passbuddy_name=y' host=h`, `password='x passbuddy_name=y' host=h`, ""},
		{"host=h\npassbuddy_name=a\n", "host=h\n\n", "name=a"},
		{"passbuddy_name=''host=h", "host=h", "name="},
		{"passbuddy_name=", "", "name="},
		{"passbuddy_redis=redis://:p=q@r/0?db=1 host=h", " host=h", "redis=redis://:p=q@r/0?db=1"},
	} {
		got, err := cut(c.dsn)
		if err != nil {
			t.Errorf("%q: %v", c.dsn, err)
			continue
		}
		var ours []string
		for _, p := range got.ours {
			ours = append(ours, strings.TrimPrefix(p.key, prefix)+"="+p.value)
		}
		if got.rest != c.rest || strings.Join(ours, " ") != c.ours {
			t.Errorf("%q is cut into %q and %q, want %q and %q",
				c.dsn, got.rest, ours, c.rest, c.ours)
		}
	}
}

func TestCutRefuses(t *testing.T) {
	for dsn, want := range map[string]string{
		"postgres://h/d?passbuddy_redis=redis://r?db=1": "percent-encode",
		"postgres://h/d?passbuddy_name=%zz":             "percent-encoded",
		"postgres://h/d?passbuddy_name=a b":             "percent-encoded",
		"postgres://h/d?passbuddy_name=%00":             "percent-encoded",
		"postgres://h/p@ss@x":                           "cannot be parsed",
		"passbuddy_name= host=h":                        "has no value",
		"passbuddy_name='a":                             "does not end",
		"password=s3cr et passbuddy_name=a":             "space",
		"=a":                                            "key=value",
		"host=h word":                                   "key=value",
	} {
		if s, err := cut(dsn); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is cut into %+v, %v; want an error with %q", dsn, s, err, want)
		}
	}
}

// What is left for the drivers is the DSN without our keys, and nothing else has changed for them.
// What is cut out is what pgx would have sent to the server.
func FuzzCut(f *testing.F) {
	for _, dsn := range []string{
		"postgres://u:p@h1:1,[::1]:2/d?sslmode=disable&passbuddy_name=a%20b&application_name=x",
		"postgres://u:p?w@h?passbuddy%5fname=a&", "postgresql:///d?host=/tmp&PASSBUDDY_X=1",
		"postgres://h/d?a=b&&passbuddy_name=1", "postgres://h/d?passbuddy_name=a=b",
		"postgres://h/d@e?passbuddy_name=a", "postgres://h,h2:5?service=x#passbuddy_name=a",
		`host=h password='it\'s' passbuddy_name = 'a b' sslmode=disable`, "passbuddy_name= host=h",
		`a=\`, `passbuddy_name=\ b=c`, "host='h'passbuddy_name=b", "a=1\vpassbuddy_name=2\fb=3",
		"passbuddy_name=a", "x", " ", "passbuddy_a=1 passbuddy_a=2",
	} {
		f.Add(dsn)
	}
	f.Setenv("PGSERVICE", "")
	f.Fuzz(func(t *testing.T, dsn string) {
		bare, bareErr := pgx.ParseConfig(dsn)
		s, err := cut(dsn)
		switch {
		case err != nil && bareErr == nil && err != errURL &&
			!strings.Contains(err.Error(), `"passbuddy_`) &&
			!strings.Contains(strings.ToLower(err.Error()), `"passbuddy_`):
			t.Fatalf("%q: pgx takes it, but: %v", dsn, err)
		case err != nil || bareErr != nil:
			return
		}
		left, err := pgx.ParseConfig(s.rest)
		if err != nil {
			t.Fatalf("%q: pgx takes it, but not what is left, %q: %v", dsn, s.rest, err)
		}
		want := make(map[string]string)
		for key, value := range bare.RuntimeParams {
			if isOurs(key) {
				want[key] = value
			}
		}
		got := make(map[string]string)
		for _, p := range s.ours {
			got[p.key] = p.value
		}
		if !maps.Equal(got, want) {
			t.Fatalf("%q: cut found %q, pgx %q", dsn, got, want)
		}
		maps.DeleteFunc(bare.RuntimeParams, func(key, _ string) bool { return isOurs(key) })
		if !maps.Equal(bare.RuntimeParams, left.RuntimeParams) || bare.Host != left.Host ||
			bare.Port != left.Port || bare.Database != left.Database || bare.User != left.User ||
			bare.Password != left.Password || len(bare.Fallbacks) != len(left.Fallbacks) {
			t.Fatalf("%q: what is left, %q, is another configuration", dsn, s.rest)
		}
		if cfg, err := pq.NewConfig(s.rest); err == nil {
			for key := range cfg.Runtime {
				if isOurs(key) && !slices.ContainsFunc([]rune(dsn), odd) {
					t.Fatalf("%q: lib/pq would send %q", dsn, key)
				}
			}
		}
	})
}

// odd reports runes that separate settings for lib/pq alone, or that only a URL of lib/pq's takes
// for something else. The server refuses a connection with our keys, so nothing is left uncounted.
func odd(r rune) bool { return r > 126 || r == '#' || r == ';' || r == '+' || r == '?' || r < 32 }
