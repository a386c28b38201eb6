package settings

import (
	"errors"
	"fmt"
	"strings"
)

// A pair is one setting of a DSN or of a service file.
type pair struct{ key, value string }

// A split is a DSN whose keys of ours were taken out. The rest is as it was, to the byte: pgx and
// lib/pq differ in how they read it.
type split struct {
	rest   string
	url    bool
	ours   []pair
	others []pair // the other keys, of the query alone where the DSN is a URL
}

// isOurs reports whether a key is meant for us, correct or not. Postgres takes its own names in any
// case, and users of one would write ours so too.
func isOurs(key string) bool {
	return len(key) >= len(prefix) && strings.EqualFold(key[:len(prefix)], prefix)
}

func (s *split) add(key, value string) {
	if isOurs(key) {
		s.ours = append(s.ours, pair{key, value})
	} else {
		s.others = append(s.others, pair{key, value})
	}
}

// cut takes our keys out of dsn.
func cut(dsn string) (split, error) {
	for _, scheme := range []string{"postgres://", "postgresql://"} {
		if rest, ok := strings.CutPrefix(dsn, scheme); ok {
			return cutURL(dsn, len(dsn)-len(rest))
		}
	}
	return cutPairs(dsn)
}

// cutURL takes our keys out of the query of a URL. It finds them as pgx does: that is, as libpq
// does.
func cutURL(dsn string, authority int) (split, error) {
	s := split{rest: dsn, url: true}
	if i := strings.IndexAny(dsn[authority:], "@/?"); i >= 0 && dsn[authority+i] == '/' {
		// No user. An @ in the path may be what follows a password with a / in it.
		if path, _, _ := strings.Cut(dsn[authority+i:], "?"); strings.Contains(path, "@") {
			return s, errURL
		}
	}
	i := queryOf(dsn[authority:])
	if i < 0 {
		return s, nil
	}
	i += authority
	var kept []string
	for _, part := range strings.Split(dsn[i+1:], "&") {
		raw, value, found := strings.Cut(part, "=")
		key, err := decode(raw)
		if err != nil || !found {
			kept = append(kept, part) // the driver refuses it
			continue
		}
		if !isOurs(key) {
			kept = append(kept, part)
		} else if strings.Contains(value, "=") {
			return s, fmt.Errorf("passbuddy: %s in the DSN has a second = in it: "+
				"percent-encode its value (%%3D), as each value of a URL's query", clip(key))
		}
		if value, err = decode(value); err != nil && isOurs(key) {
			return s, fmt.Errorf("passbuddy: %s in the DSN is not percent-encoded as a URL's query must be",
				clip(key))
		}
		s.add(key, value)
	}
	s.rest = dsn[:i]
	if query := strings.Join(kept, "&"); query != "" {
		s.rest += "?" + query
	}
	return s, nil
}

// queryOf returns where the query of a URL begins, whose scheme was cut off, or -1. A question mark
// in a password or in an IPv6 address does not begin it.
func queryOf(p string) int {
	i := 0
	if at := strings.IndexAny(p, "@/"); at >= 0 && p[at] == '@' {
		i = at + 1
	}
	for {
		if i < len(p) && p[i] == '[' {
			end := strings.IndexByte(p[i:], ']')
			if end < 0 {
				return -1 // the driver refuses it
			}
			i += end + 1
		}
		n := strings.IndexAny(p[i:], ",/?")
		if n < 0 {
			return -1
		}
		if i += n; p[i] != ',' {
			break
		}
		i++
	}
	if n := strings.IndexByte(p[i:], '?'); n >= 0 {
		return i + n
	}
	return -1
}

var errEncoding = errors.New("percent-encoding")

// decode is libpq's: spaces around are dropped, none may be within, and a plus is a plus.
func decode(raw string) (string, error) {
	raw = strings.Trim(raw, " ")
	if strings.Contains(raw, " ") {
		return "", errEncoding
	}
	var b strings.Builder
	for i := 0; i < len(raw); i++ {
		if raw[i] != '%' {
			b.WriteByte(raw[i])
			continue
		}
		if i+2 >= len(raw) {
			return "", errEncoding
		}
		high, low := hex(raw[i+1]), hex(raw[i+2])
		if high < 0 || low < 0 || high+low == 0 {
			return "", errEncoding
		}
		b.WriteByte(byte(high<<4 | low))
		i += 2
	}
	return b.String(), nil
}

func hex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

const space = " \t\n\r\v\f"

var (
	errPairs = errors.New("passbuddy: the DSN is neither a postgres:// URL nor key=value pairs: " +
		"is there a space around a value without quotes?")
	errQuote = errors.New("passbuddy: the DSN has a quoted value that does not end")
)

// cutPairs takes our keys out of key=value pairs, as libpq and both drivers read them. A DSN
// without any = is left alone: it may be the name of a configuration that pgx's stdlib knows.
func cutPairs(dsn string) (split, error) {
	s := split{rest: dsn}
	if !strings.Contains(dsn, "=") {
		return s, nil
	}
	var kept strings.Builder
	from := 0 // what is before it is in kept, or was cut out
	i := skip(dsn, 0)
	for i < len(dsn) {
		n := strings.IndexByte(dsn[i:], '=')
		if n < 0 {
			return s, errPairs
		}
		key := strings.TrimRight(dsn[i:i+n], space)
		if key == "" || strings.ContainsAny(key, space) {
			return s, errPairs
		}
		begin := skip(dsn, i+n+1)
		value, end, err := unquote(dsn, begin)
		if err != nil {
			return s, err
		}
		if isOurs(key) {
			if begin > i+n+1 && strings.Contains(dsn[begin:end], "=") && dsn[begin] != '\'' {
				return s, fmt.Errorf("passbuddy: %s in the DSN has no value, so the next key would be its "+
					"value", clip(key))
			}
			kept.WriteString(dsn[from:i])
			from = end
		}
		s.add(key, value)
		i = skip(dsn, end)
	}
	kept.WriteString(dsn[from:])
	s.rest = kept.String()
	return s, nil
}

func skip(dsn string, i int) int {
	return len(dsn) - len(strings.TrimLeft(dsn[i:], space))
}

// unquote reads the value that begins at i. A backslash takes the next byte as it is.
func unquote(dsn string, i int) (value string, end int, err error) {
	quoted := i < len(dsn) && dsn[i] == '\''
	if quoted {
		i++
	}
	var b strings.Builder
	for ; i < len(dsn); i++ {
		switch c := dsn[i]; {
		case quoted && c == '\'':
			return b.String(), i + 1, nil
		case !quoted && strings.IndexByte(space, c) >= 0:
			return b.String(), i, nil
		case c == '\\':
			if i++; i < len(dsn) {
				b.WriteByte(dsn[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	if quoted {
		return "", 0, errQuote
	}
	return b.String(), len(dsn), nil
}

// clip shortens a key for an error.
func clip(key string) string {
	const most = 40
	if len(key) > most {
		key = key[:most] + "..."
	}
	return fmt.Sprintf("%q", key)
}
