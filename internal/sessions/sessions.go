// Package sessions holds the semaphores that a process has opened by its settings: one for each
// Redis, prefix and name, shared by the pools that use it.
//
// # The states of a semaphore
//
// A semaphore is in the table while it is not absent:
//
//	         Acquire           opened, a user waits
//	absent ----------> opening ---------------------> open <---+
//	  ^                   |                            |  |    | Acquire, Release of one of several
//	  |   failed          |                            |  +----+
//	  +-------------------+ opened, no user is left    |
//	  |                   v                            |
//	  +---------------- closing <----------------------+
//	   closed                     Release of the last
//
// The invariant: users counts the callers of Acquire that wait for it, and the Uses that are not
// released. It is above zero in the state open, and zero in the state closing. One lock guards the
// table; nothing opens, closes or waits with it held.
//
// The interleavings:
//
//   - A caller that opens gives up. The opening has a goroutine and a context of its own, so those
//     that wait with it lose nothing. If all of them give up, the opening goes on to its end, which
//     package semaphore bounds, and what it opened is closed. To cancel it instead would fail a
//     caller that comes in between, by the end of another's context.
//   - An opening fails. All that wait get its error, and the semaphore is absent before they do. So
//     the next Acquire tries again, also that of a caller which got the error.
//   - Acquire meets closing. It waits for the end, and then opens anew: a session that is being
//     closed takes no pools.
//   - The last Release meets Acquire. The lock orders them: either Acquire counts first, and the
//     semaphore stays open, or it meets closing.
//   - Two callers disagree. The later one gets an error that names the field and both values, as
//     long as the other's session is there. A caller that met closing compares after it.
package sessions

import (
	"context"
	"fmt"
	"sync"

	"github.com/passbuddy/passbuddy/semaphore"
)

// A Table is a set of semaphores. Its zero value is that of a process which uses none.
type Table struct {
	// open is semaphore.Open, but for tests.
	open func(ctx context.Context, url string, cfg semaphore.Config) (session, error)

	mu      sync.Mutex
	entries map[key]*entry // guarded by mu
}

// Process is the table of this process.
var Process Table

type session interface{ Close() error }

// key tells semaphores apart. Two URLs of one Redis are two keys: their sessions share the
// semaphore in Redis all the same.
type key struct{ url, prefix, name string }

type entry struct {
	cfg    semaphore.Config // what its users agree on
	opened chan struct{}    // closed at the end of the state opening
	closed chan struct{}    // closed when it has left the table

	// Written before opened is closed.
	session session
	err     error

	// Guarded by Table.mu.
	users   int
	closing bool
}

// A Use is one pool's part in a semaphore.
type Use struct {
	entry   *entry
	release func() error
}

// Semaphore is open until Release.
func (u *Use) Semaphore() *semaphore.Semaphore {
	sem, _ := u.entry.session.(*semaphore.Semaphore)
	return sem
}

// Release ends the use. The last one closes the semaphore, and has its error. A second call does
// nothing but return the same.
func (u *Use) Release() error { return u.release() }

// Acquire returns a use of the semaphore of cfg at that Redis, and opens it if nobody in this
// process has. It waits for that as long as ctx allows. All that goes into the session must be the
// same for each of its users; cfg has its defaults filled in.
func (t *Table) Acquire(ctx context.Context, url string, cfg semaphore.Config) (*Use, error) {
	k := key{url, cfg.Prefix, cfg.Name}
	for {
		e, closing, err := t.enter(k, cfg)
		if err != nil {
			return nil, err
		}
		if closing {
			select {
			case <-e.closed:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("passbuddy: while the semaphore %q is being closed: %w",
					cfg.Prefix+"-"+cfg.Name, ctx.Err())
			}
		}
		select {
		case <-e.opened:
		case <-ctx.Done():
			_ = t.leave(k, e)
			return nil, fmt.Errorf("passbuddy: while the semaphore %q is being opened: %w",
				cfg.Prefix+"-"+cfg.Name, ctx.Err())
		}
		if e.err != nil {
			return nil, e.err
		}
		return &Use{e, sync.OnceValue(func() error { return t.leave(k, e) })}, nil
	}
}

// enter counts a user of the entry, which it makes if there is none. It does not count one of an
// entry that is closing, and says so.
func (t *Table) enter(k key, cfg semaphore.Config) (_ *entry, closing bool, _ error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[k]
	switch {
	case e == nil:
		e = &entry{cfg: cfg, opened: make(chan struct{}), closed: make(chan struct{})}
		if t.entries == nil {
			t.entries = make(map[key]*entry)
		}
		t.entries[k] = e
		go t.start(k, e)
	case e.closing:
		return e, true, nil
	default:
		if err := disagree(e.cfg, cfg); err != nil {
			return nil, false, err
		}
	}
	e.users++
	return e, false, nil
}

// start is the state opening.
func (t *Table) start(k key, e *entry) {
	open := t.open
	if open == nil {
		open = func(ctx context.Context, url string, cfg semaphore.Config) (session, error) {
			return semaphore.Open(ctx, url, cfg)
		}
	}
	opened, err := open(context.Background(), k.url, e.cfg)
	t.mu.Lock()
	if err == nil {
		e.session = opened
	}
	e.err = err
	switch {
	case err != nil:
		t.remove(k, e)
	case e.users == 0:
		e.closing = true
	}
	unused := e.closing
	t.mu.Unlock()
	close(e.opened)
	if unused {
		_ = t.end(k, e)
	}
}

// leave takes a user away.
func (t *Table) leave(k key, e *entry) error {
	t.mu.Lock()
	e.users--
	last := e.users == 0 && e.session != nil // else start sees to it
	e.closing = e.closing || last
	t.mu.Unlock()
	if !last {
		return nil
	}
	return t.end(k, e)
}

// end is the state closing.
func (t *Table) end(k key, e *entry) error {
	err := e.session.Close()
	t.mu.Lock()
	t.remove(k, e)
	t.mu.Unlock()
	return err
}

// remove makes the entry absent. mu is held.
func (t *Table) remove(k key, e *entry) {
	delete(t.entries, k)
	close(e.closed)
}

// disagree is an error if two callers want different sessions.
func disagree(have, want semaphore.Config) error {
	for _, f := range []struct {
		field      string
		have, want any
	}{
		{"capacity", have.Capacity, want.Capacity},
		{"ttl", have.TTL, want.TTL},
		{"min", have.Min, want.Min},
		{"max", have.Max, want.Max},
		{"weight", have.Weight, want.Weight},
		{"wait_replicas", have.WaitReplicas, want.WaitReplicas},
		{"owner", have.Owner, want.Owner},
	} {
		if f.have != f.want {
			return fmt.Errorf("passbuddy: two pools of this process disagree about the semaphore "+
				"%q: the passbuddy_%s of one is %v, that of the other %v. A process is in a "+
				"semaphore once: give both pools the same, or another passbuddy_name",
				want.Prefix+"-"+want.Name, f.field, f.have, f.want)
		}
	}
	return nil
}
