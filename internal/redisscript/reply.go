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

func (r *reply) next(want string) any {
	if r.err != nil {
		return nil
	}
	if len(r.rest) == 0 {
		r.err = fmt.Errorf("script reply ends where %s was expected", want)
		return nil
	}
	v := r.rest[0]
	r.rest = r.rest[1:]
	return v
}

func (r *reply) fail(want string, v any) {
	if r.err == nil {
		r.err = fmt.Errorf("script reply holds %T where %s was expected", v, want)
	}
}

func (r *reply) int() int64 {
	v := r.next("an integer")
	n, ok := v.(int64)
	if !ok {
		r.fail("an integer", v)
	}
	return n
}

func (r *reply) text() string {
	v := r.next("a string")
	s, ok := v.(string)
	if !ok {
		r.fail("a string", v)
	}
	return s
}

func (r *reply) texts() []string {
	v := r.next("a list")
	list, ok := v.([]any)
	if !ok {
		r.fail("a list", v)
		return nil
	}
	out := make([]string, len(list))
	for i, e := range list {
		if out[i], ok = e.(string); !ok {
			r.fail("a string", e)
			return nil
		}
	}
	return out
}

func (r *reply) ints() []int64 {
	v := r.next("a list")
	list, ok := v.([]any)
	if !ok {
		r.fail("a list", v)
		return nil
	}
	out := make([]int64, len(list))
	for i, e := range list {
		if out[i], ok = e.(int64); !ok {
			r.fail("an integer", e)
			return nil
		}
	}
	return out
}
