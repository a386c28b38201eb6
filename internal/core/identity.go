package core

import (
	"fmt"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The UUIDs of a session's permits are of version 8 (free form, RFC 9562). The first three groups
// name the session, at random but for its weight ("ww"). The fourth names the connection pool that
// the permit is for, or is message.Plain. The last one counts. So ownership is read off the permit,
// and needs no record in Redis.

// SessionName makes the name of a session of that weight, "xxxxxxxx-xxxx-8wwx", of 16 random bytes.
func SessionName(random [16]byte, weight int) string {
	random[6] = 0x80 | byte(weight>>4)
	random[7] = byte(weight<<4) | random[7]&0x0f
	return fmt.Sprintf("%x-%x-%x", random[:4], random[4:6], random[6:8])
}

// maxPools is how many pools the variant bits of the fourth group leave room for.
const maxPools = 0xfff

func (c *Core) poolName(n int) string { return fmt.Sprintf("%s-8%03x", c.cfg.Session, n) }

// nextID returns a UUID that was never used before, and begins with owner.
func (c *Core) nextID(owner string) string {
	const hex = "0123456789abcdef"
	var b [36]byte
	copy(b[:], owner)
	b[23] = '-'
	c.lastID++
	n := c.lastID
	for at := 35; at > 23; at-- {
		b[at] = hex[n&15]
		n >>= 4
	}
	return string(b[:])
}

// NewPermit returns a permit that was not asked for yet, and belongs to no pool.
func (c *Core) NewPermit() *Permit { return c.newPermit(nil) }

func (c *Core) newPermit(pool *Pool) *Permit {
	owner := c.cfg.Session + "-" + message.Plain
	if pool != nil {
		owner = pool.name
	}
	p := c.cfg.NewPermit()
	p.ID, p.Pool = c.nextID(owner), pool
	return p
}
