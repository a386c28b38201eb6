package semaphore

import (
	"fmt"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// identity makes the UUIDs of a session's permits. They are version 8 (free form, RFC 9562): the first
// three groups name the session, at random but for its weight ("ww"), the fourth names the connection pool
// the permit is for, or redisscript.Plain, the last counts. So ownership is read off the permit and needs no record in Redis.
type identity struct {
	session string // "xxxxxxxx-xxxx-8wwx"
	count   atomic.Uint64
}

func newIdentity(weight int) *identity {
	u := uuid.New()
	u[6] = 0x80 | byte(weight>>4)
	u[7] = byte(weight<<4) | u[7]&0x0f
	return &identity{session: u.String()[:18]}
}

// sharer names the n-th connection pool of the session, from 1. The variant bits leave twelve for it.
func (i *identity) sharer(n int) string { return fmt.Sprintf("%s-8%03x", i.session, n) }

func (i *identity) plain() string { return i.session + "-" + redisscript.Plain }

const maxSharers = 0xfff

// next returns a UUID never used before, beginning with owner.
func (i *identity) next(owner string) string {
	const hex = "0123456789abcdef"
	var b [36]byte
	copy(b[:], owner)
	b[23] = '-'
	n := i.count.Add(1)
	for at := 35; at > 23; at-- {
		b[at] = hex[n&15]
		n >>= 4
	}
	return string(b[:])
}
