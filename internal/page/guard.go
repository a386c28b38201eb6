package page

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// Control lets viewers who know a token change the fleet.
type Control struct {
	// A viewer has to type Token. It may not be empty, and has visible ASCII characters
	// only. Required.
	Token string

	// Operator names the person behind a request, for the fleet and for the log. It may read what
	// an authenticating proxy or middleware adds to the request. Default nil: the page asks for a
	// name, which nobody checks.
	Operator func(*http.Request) string

	// As returns what acts on the fleet in the name of an operator. Required.
	As func(operator string) (Actor, error)
}

// An Actor performs the verbs. A *semaphore.Inspector is one.
type Actor interface {
	SetCapacity(ctx context.Context, n int) error
	Pause(ctx context.Context, opts semaphore.PauseOptions) error
	Resume(ctx context.Context) error
	Evict(ctx context.Context, session string, opts semaphore.EvictOptions) error
}

// controlHeader is one that a page of another origin cannot send without asking this server.
const controlHeader = "X-PassBuddy-Control"

// wrongTokenDelay is how long a wrong token is not answered, so that guessing is slow. A right one
// is answered at once.
const wrongTokenDelay = time.Second

// A guard decides who may act.
type guard struct {
	token    [sha256.Size]byte
	operator func(*http.Request) string
	as       func(string) (Actor, error)
	origin   *http.CrossOriginProtection
	delay    time.Duration
}

func newGuard(c Control) (*guard, error) {
	switch {
	case c.Token == "":
		return nil, errors.New("page: Control.Token is empty: nobody may act without one")
	case strings.ContainsFunc(c.Token, func(r rune) bool { return r <= ' ' || r > '~' }):
		// A browser cannot send others in a header.
		return nil, errors.New("page: Control.Token has a character that is not visible ASCII")
	case c.As == nil:
		return nil, errors.New("page: Control.As is missing")
	}
	return &guard{
		token: sha256.Sum256([]byte(c.Token)), operator: c.Operator, as: c.As,
		origin: http.NewCrossOriginProtection(), delay: wrongTokenDelay,
	}, nil
}

// A refusal says why a request may not act, and with which HTTP status.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// check returns nil if the request may act. Three things each stop a request that another site has
// a browser send: its origin, the missing header, and the token, which no browser adds by itself.
func (g *guard) check(r *http.Request) *refusal {
	if err := g.origin.Check(r); err != nil {
		return &refusal{http.StatusForbidden, "the request comes from another site"}
	}
	if r.Header.Get(controlHeader) != "1" {
		return &refusal{http.StatusForbidden, "the header " + controlHeader + ": 1 is missing"}
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return &refusal{http.StatusUnauthorized, "the token is missing"}
	}
	// Of equal length whatever was sent, so the comparison tells nothing by the time it takes.
	sum := sha256.Sum256([]byte(token))
	if subtle.ConstantTimeCompare(sum[:], g.token[:]) != 1 {
		wait := time.NewTimer(g.delay)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-r.Context().Done():
		}
		return &refusal{http.StatusUnauthorized, "the token is wrong"}
	}
	return nil
}
