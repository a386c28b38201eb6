package fleet

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestFailuresAreGrouped(t *testing.T) {
	w := &worker{failures: make(map[string]int64)}
	refused := &pgconn.PgError{Code: tooManyClients, Message: "sorry, too many clients already"}
	w.fail(fmt.Errorf("connect: %w", refused))
	for range 2 {
		w.fail(errors.New("broken\n  pipe"))
	}
	w.fail(errors.New(strings.Repeat("ä", 1000)))
	for i := range 2 * maxFailures {
		w.fail(fmt.Errorf("failure %d", i))
	}
	r := w.report()
	if r.Refused != 1 || r.Failed != int64(3+2*maxFailures) {
		t.Errorf("refused %d, failed %d", r.Refused, r.Failed)
	}
	if w.failures["broken pipe"] != 2 || w.failures["others"] == 0 || len(w.failures) > maxFailures+
		1 {
		t.Errorf("failures: %v", w.failures)
	}
	for text := range w.failures {
		if len(text) > 203 {
			t.Errorf("a text of %d bytes", len(text))
		}
	}
}
