package env

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lib/pq"
)

// A program may have registered a driver of one of our names before.
func TestNameIsTaken(t *testing.T) {
	register("passbuddy", &envDriver{base: pqBase{}})
	db, err := sql.Open("passbuddy", newWorld(t).dsn())
	ok(t, err)
	if d := db.Driver().(*envDriver); d.base != (pgxBase{}) {
		t.Errorf("the driver is that of %T", d.base)
	}
	ok(t, db.Close())
}

// What the driver itself refuses is an error of the first connect, as without PassBuddy: programs
// open their DB before its files are there, or never connect. No error shows a password.
func TestRefusedByTheDriver(t *testing.T) {
	defer newPQ.Store(nil)
	for _, follow := range []bool{false, true} {
		if follow {
			UsePQ(pq.NewConnector)
		}
		for _, disabled := range []string{"0", "1"} {
			for _, driverName := range drivers {
				w := newWorld(t)
				t.Setenv("PASSBUDDY_DISABLE", disabled)
				root := filepath.Join(t.TempDir(), "root.crt")
				for dsn, want := range map[string]string{
					"postgres://u:s3cret@h:x/d":                                      "the DSN",
					w.dsn("sslmode=nonsense password=s3cret"):                        "sslmode",
					w.dsn("sslmode=verify-full password=s3cret sslrootcert=" + root): root,
				} {
					db := w.open(driverName, dsn)
					if err := db.Ping(); err == nil || !strings.Contains(err.Error(), want) ||
						strings.Contains(err.Error(), "s3cret") {
						t.Errorf("%s, %q: %v, want %q", driverName, dsn, err, want)
					}
				}
			}
		}
	}
}

// lib/pq reads its files anew at each connect, with UsePQ too.
func TestServiceFileThatComesLater(t *testing.T) {
	defer newPQ.Store(nil)
	UsePQ(pq.NewConnector)
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "services.conf")
	t.Setenv("PGSERVICEFILE", file)
	db := w.open("passbuddy-pq", "service=orders")
	if err := db.Ping(); err == nil {
		t.Error("a service without a file is no error")
	}
	ok(t, os.WriteFile(file, fmt.Appendf(nil, "[orders]\nhost=127.0.0.1\nport=%d\nuser=x\n"+
		"dbname=x\nsslmode=disable\n", w.port), 0o600))
	ok(t, db.Ping())
}

func TestRefused(t *testing.T) {
	w := newWorld(t)
	for _, driverName := range drivers {
		for dsn, want := range map[string]string{
			w.dsn("passbuddy_capacty=1"):                         "did you mean passbuddy_capacity?",
			w.dsn("passbuddy_ttl=1"):                             "unit",
			"postgres://h/d?passbuddy_name=a&passbuddy_name=b":   "twice",
			"host=h password=a b":                                "space",
			"postgres://u:s3cret@h:x/d?passbuddy_name=a":         "DSN",
			"postgres://h/d?passbuddy_redis=redis://r?db=s3cret": "percent-encode",
		} {
			db, err := sql.Open(driverName, dsn)
			if err == nil { // lib/pq parses at the first connect
				err = db.Ping()
				_ = db.Close()
			}
			if err == nil || !strings.Contains(err.Error(), want) ||
				strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s, %q: %v, want %q", driverName, dsn, err, want)
			}
		}
	}
	if _, err := sql.Open("passbuddy-pq", w.dsn("passbuddy_fence=1")); err == nil ||
		!strings.Contains(err.Error(), `"passbuddy"`) {
		t.Errorf("Fence with lib/pq: %v", err)
	}
	if _, err := registeredPQ("no such driver"); err == nil ||
		!strings.Contains(err.Error(), `import _ "github.com/lib/pq"`) {
		t.Errorf("without lib/pq: %v", err)
	}
}

// Fence reaches pgx's connections: each backend is recorded.
func TestFence(t *testing.T) {
	w := newWorld(t)
	db := w.open("passbuddy", w.dsn("passbuddy_fence=1"))
	ok(t, db.Ping())
	recorded, err := w.redis.HKeys("{passbuddy-semaphore}:backends")
	if err != nil || len(recorded) != 1 {
		t.Errorf("%d backends are recorded (%v), want 1", len(recorded), err)
	}
}
