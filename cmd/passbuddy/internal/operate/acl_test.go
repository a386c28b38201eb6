package operate

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

// documented returns the rule of docs/SECURITY.md for a user, with a password.
func documented(t *testing.T, user string) string {
	t.Helper()
	text, err := os.ReadFile("../../../../docs/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	rule := regexp.MustCompile("(?m)^user " + user + " .*$").FindString(string(text))
	if !strings.Contains(rule, ">CHANGE-ME") {
		t.Fatalf("docs/SECURITY.md has no rule for %s", user)
	}
	return strings.Replace(rule, "CHANGE-ME", "secret", 1)
}

// The users of docs/SECURITY.md can do with the tool what it says, and a watcher cannot act.
func TestUnderTheDocumentedACL(t *testing.T) {
	server, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{Password: "admin",
		ACL: []string{documented(t, "passbuddy-watch"), documented(t, "passbuddy-operator")}})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err) // Redis before 7 does not know %R~
	}
	t.Cleanup(func() { _ = server.Stop() })
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), Password: "admin"})
	t.Cleanup(func() { _ = client.Close() })
	d := &desk{t: t, client: client, env: map[string]string{}}
	d.acquire(d.join(semaphore.Config{Owner: "web-1", Capacity: 4, TTL: 10 * time.Second}))

	as := func(user string) {
		d.env[target.RedisEnv] = "redis://" + user + ":secret@" + server.Addr()
	}
	for _, user := range []string{"passbuddy-watch", "passbuddy-operator"} {
		as(user)
		d.expect(exit.OK, []string{"web-1"}, "status")
		d.expect(exit.OK, []string{"semaphore"}, "list")
		d.expect(exit.OK, []string{"joined"}, "events")
		d.expect(exit.OK, []string{"4 declared"}, "capacity")
		d.expect(exit.OK, []string{"may not subscribe"}, "doctor")
	}
	as("passbuddy-watch")
	for _, args := range [][]string{{"capacity", "2"}, {"pause"}, {"evict", "web-1"}} {
		out, complaint, code := d.run(append(args, "--yes")...)
		if code == exit.OK || !strings.Contains(complaint, "NOPERM") {
			t.Errorf("%q as a watcher: %d, %s%s", args, code, out, complaint)
		}
	}
	as("passbuddy-operator")
	for _, args := range [][]string{{"capacity", "2"}, {"capacity", "auto"}, {"pause", "--for", "1m"},
		{"resume"}, {"evict", "web-1", "--force", "--timeout", "10ms"}} {
		d.expect(exit.OK, nil, append(args, "--yes")...)
	}
}
