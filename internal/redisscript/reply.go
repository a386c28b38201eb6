package redisscript

import "fmt"

// reply reads a script's flat reply in order. The first value of another shape than expected
// is kept in err, and everything after it reads as zero.
type reply struct {
	rest []any
	err  error
}

func newReply(v any) *reply {
	r := &reply{}
	var ok bool
	if r.rest, ok = v.([]any); !ok {
		r.fail("a list", v)
	}
	return r
}

func (r *reply) fail(want string, v any) {
	if r.err == nil {
		r.err = fmt.Errorf("script reply holds %T where %s was expected", v, want)
	}
}

func (r *reply) int() int64      { return read[int64](r, "an integer") }
func (r *reply) ints() []int64   { return readList[int64](r, "an integer") }
func (r *reply) text() string    { return read[string](r, "a string") }
func (r *reply) texts() []string { return readList[string](r, "a string") }

// read reads the next value.
func read[T any](r *reply, want string) (value T) {
	switch {
	case r.err != nil:
	case len(r.rest) == 0:
		r.err = fmt.Errorf("script reply ends where %s was expected", want)
	default:
		v := r.rest[0]
		r.rest = r.rest[1:]
		var ok bool
		if value, ok = v.(T); !ok {
			r.fail(want, v)
		}
	}
	return value
}

// readList reads a list, all of whose elements are wanted.
func readList[T any](r *reply, want string) []T {
	rest := read[[]any](r, "a list")
	out := make([]T, len(rest))
	for i, v := range rest {
		var ok bool
		if out[i], ok = v.(T); !ok {
			r.fail(want, v)
			return nil
		}
	}
	return out
}
