package settings

import (
	"errors"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

var errURL = errors.New("passbuddy: the DSN is a URL that cannot be parsed: is the port a number, " +
	"and are user, password and query percent-encoded?")

// Explain returns err, of a connect or of a parser, unless it says that the DSN cannot be parsed.
// Such an error quotes the DSN. pgx masks the passwords that it recognizes, and url.Parse none. So
// Explain keeps no more than what was wrong, and of what could not be split into settings, nothing.
func Explain(err error) error {
	var unparsed *pgconn.ParseConfigError
	var badURL *url.Error
	switch {
	case errors.As(err, &unparsed):
		_, why, ok := cutLast(unparsed.Error(), "`: ")
		switch {
		case !ok || strings.HasPrefix(why, "failed to parse as URL"):
			return errURL
		case strings.HasPrefix(why, "failed to parse"):
			return errPairs
		}
		return errors.New("passbuddy: the DSN cannot be used: " + why)
	case errors.As(err, &badURL) && badURL.Op == "parse":
		return errURL
	}
	return err
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
