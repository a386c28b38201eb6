package page

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// An action is a verb with its arguments.
type action struct {
	common common
	text   string // what it does, for the operator
	log    []any  // its arguments, as keys and values
	run    func(context.Context, Actor) error
}

// common are the arguments of every verb.
type common struct {
	Confirm  string `json:"confirm"`  // the name of the semaphore
	Operator string `json:"operator"` // a name, unless Control.Operator gives one
}

// verbs read the arguments of each verb.
var verbs = map[string]func(body []byte) (action, error){
	"capacity": parseCapacity, "pause": parsePause, "resume": parseResume, "evict": parseEvict,
}

// maxReason is semaphore.PauseOptions.Reason's bound.
const maxReason = 200

func parseCapacity(body []byte) (action, error) {
	var args struct {
		common
		Capacity *int `json:"capacity"` // 0: what the sessions declare
	}
	if err := decode(body, &args); err != nil {
		return action{}, err
	}
	if args.Capacity == nil || *args.Capacity < 0 {
		return action{}, errors.New("capacity must be 1 or more, or 0 for what sessions declare")
	}
	n := *args.Capacity
	text := fmt.Sprintf("Set the capacity to %d", n)
	if n == 0 {
		text = "Set the capacity back to what sessions declare"
	}
	return action{
		common: args.common, text: text, log: []any{"capacity", n},
		run: func(ctx context.Context, a Actor) error { return a.SetCapacity(ctx, n) },
	}, nil
}

func parsePause(body []byte) (action, error) {
	var args struct {
		common
		Drain   bool    `json:"drain"`
		Timeout seconds `json:"timeout_seconds"`
		For     seconds `json:"for_seconds"`
		Reason  string  `json:"reason"`
	}
	if err := decode(body, &args); err != nil {
		return action{}, err
	}
	if args.Drain && args.Timeout.span == 0 {
		return action{}, errors.New("a drain needs timeout_seconds: without it, nothing ends it " +
			"if a process does not give back")
	}
	if !args.Drain && args.Timeout.span != 0 {
		return action{}, errors.New("timeout_seconds bounds a drain: use for_seconds here")
	}
	opts := semaphore.PauseOptions{
		Drain: args.Drain, Timeout: args.Timeout.span, For: args.For.span,
		Reason: cleanText(args.Reason, maxReason),
	}
	text := "Pause"
	if opts.Drain {
		text = "Pause and drain"
	}
	return action{
		common: args.common, text: text,
		log: []any{
			"drain", opts.Drain, "timeout", opts.Timeout, "for", opts.For, "reason", opts.Reason,
		},
		run: func(ctx context.Context, a Actor) error { return a.Pause(ctx, opts) },
	}, nil
}

func parseResume(body []byte) (action, error) {
	var args struct{ common }
	if err := decode(body, &args); err != nil {
		return action{}, err
	}
	return action{
		common: args.common, text: "Resume",
		run: func(ctx context.Context, a Actor) error { return a.Resume(ctx) },
	}, nil
}

func parseEvict(body []byte) (action, error) {
	var args struct {
		common
		Session string  `json:"session"`
		Force   bool    `json:"force"`
		Timeout seconds `json:"timeout_seconds"`
		Reason  string  `json:"reason"`
	}
	if err := decode(body, &args); err != nil {
		return action{}, err
	}
	if args.Session == "" {
		return action{}, errors.New("session is missing: whom to evict")
	}
	session := cleanText(args.Session, 100)
	opts := semaphore.EvictOptions{
		Force: args.Force, Timeout: args.Timeout.span, Reason: cleanText(args.Reason, maxReason),
	}
	text := "Evict " + session
	if opts.Force {
		text = "Evict by force " + session
	}
	return action{
		common: args.common, text: text,
		log: []any{
			"session", session, "force", opts.Force, "timeout", opts.Timeout,
			"reason", opts.Reason,
		},
		run: func(ctx context.Context, a Actor) error { return a.Evict(ctx, session, opts) },
	}, nil
}

// decode reads arguments strictly: an argument that we do not know could have been meant as a
// safeguard.
func decode(body []byte, args any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(args); err != nil {
		return fmt.Errorf("the body is not what this verb takes: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the body has more than one JSON value")
	}
	return nil
}

// seconds is a duration that travels as a number of seconds, from 0 to a week.
type seconds struct{ span time.Duration }

func (s *seconds) UnmarshalJSON(text []byte) error {
	const most = 7 * 24 * 3600
	var n float64
	if err := json.Unmarshal(text, &n); err != nil {
		return err
	}
	if math.IsNaN(n) || n < 0 || n > most {
		return fmt.Errorf("%v is not from 0 to %d seconds", n, most)
	}
	s.span = time.Duration(n * float64(time.Second))
	return nil
}
