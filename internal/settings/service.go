package settings

import (
	"bufio"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A section is what a service file says about the service of a DSN. It is empty if the DSN names no
// service, or the file cannot be read: then the driver says what is wrong.
type section struct {
	name         string
	ours, others []pair
}

func (s section) has(key string) bool {
	return slices.ContainsFunc(s.ours, func(p pair) bool { return p.key == key })
}

// readService finds the service as pgx does. Only pgx takes servicefile in a DSN.
func readService(dsn split, variables map[string]string) section {
	name, file := variables["PGSERVICE"], variables["PGSERVICEFILE"]
	for _, p := range dsn.others {
		switch p.key {
		case "service":
			name = p.value
		case "servicefile":
			file = p.value
		}
	}
	if name == "" {
		return section{}
	}
	if file == "" {
		home, _ := os.UserHomeDir()
		file = filepath.Join(home, ".pg_service.conf")
	}
	f, err := os.Open(file)
	if err != nil {
		return section{}
	}
	defer f.Close()
	found, inside := section{}, false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[' && strings.HasSuffix(line, "]"):
			if inside = line[1:len(line)-1] == name; inside {
				found = section{name: name} // pgx takes the last of that name
			}
		case inside:
			key, value, _ := strings.Cut(line, "=")
			p := pair{strings.TrimSpace(key), strings.TrimSpace(value)}
			if isOurs(p.key) {
				found.ours = append(found.ours, p)
			} else {
				found.others = append(found.others, p)
			}
		}
	}
	return found
}

// ServiceWrittenOut is DSN for lib/pq, which refuses a service file that has our keys. If it has
// any, the other settings of the service are written into the DSN, and none is left to look up.
func (s *Settings) ServiceWrittenOut() (string, error) {
	if len(s.service.ours) == 0 {
		return s.DSN, nil
	}
	dsn, err := cut(s.DSN)
	if err != nil {
		return "", err
	}
	pairs := slices.Clone(s.service.others) // what comes later wins: the DSN
	if dsn.url {
		u, err := url.Parse(s.DSN)
		if err != nil {
			return "", errURL
		}
		pairs = append(pairs, authority(u)...)
		for key, values := range u.Query() {
			pairs = append(pairs, pair{key, values[0]})
		}
	} else {
		pairs = append(pairs, dsn.others...)
	}
	pairs = append(pairs, pair{"service", ""})
	escape := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	var b strings.Builder
	for _, p := range pairs {
		b.WriteString(p.key + "='" + escape.Replace(p.value) + "' ")
	}
	return strings.TrimSuffix(b.String(), " "), nil
}

// authority is what a URL says before its query, in the way of lib/pq.
func authority(u *url.URL) (pairs []pair) {
	add := func(key, value string) {
		if value != "" {
			pairs = append(pairs, pair{key, value})
		}
	}
	password, _ := u.User.Password()
	add("user", u.User.Username())
	add("password", password)
	if host, port, err := net.SplitHostPort(u.Host); err == nil {
		add("host", host)
		add("port", port)
	} else {
		add("host", u.Host)
	}
	add("dbname", strings.TrimPrefix(u.Path, "/"))
	return pairs
}
