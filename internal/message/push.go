package message

import (
	"strconv"
	"strings"
)

// A PushKind is the first word of a push. Pushes are hints that save time: what they say is in
// Redis too, and a session finds it by asking again.
type PushKind string

// The kinds of pushes, and the words that follow.
const (
	// PushGrant: <epoch> <Redis's time> <UUID>...
	PushGrant PushKind = "g"
	// PushWanted: <pool>. A request waits, so offer what lies idle.
	PushWanted PushKind = "w"
	// PushRecall: <epoch> <pool> <recalled> <withdrawn> <ms>. The pool's tally; what is new in it
	// is due in ms.
	PushRecall PushKind = "b"
	// PushRetry: ask again.
	PushRetry PushKind = "r"
	// PushLost: the state was lost, so re-assert what is held.
	PushLost PushKind = "l"
	// PushHeartbeat: each heartbeat sends it to the session itself, so that Redis counts its
	// subscriptions.
	PushHeartbeat PushKind = "h"
	// PushFence: [<UUID> <pid> <start>]... End these backends, whose permits are in quarantine.
	PushFence PushKind = "f"
	// PushLook: <epoch> <ms> [<UUID> <pid> <start> <server> <n>]... See whether these backends are
	// gone. The ms are Redis's time since which such looks go on, and come back with the answer.
	PushLook PushKind = "s"
)

// A Push is one parsed push. Fields that its kind does not have are zero.
type Push struct {
	Kind    PushKind
	Epoch   string
	Now     int64
	IDs     []string // granted, or those of the backends
	Records []string // of the backends, one for each ID
	Pool    string
	Tally   Tally
	Millis  int64
	Since   int64 // of looks
}

// ParsePush reads a push. ok is false for one that no script of ours has sent.
func ParsePush(payload string) (p Push, ok bool) {
	words := strings.Fields(payload)
	if len(words) == 0 {
		return p, false
	}
	p.Kind = PushKind(words[0])
	words = words[1:]
	var err error
	switch {
	case p.Kind == PushGrant && len(words) > 2:
		p.Epoch, p.IDs = words[0], words[2:]
		p.Now, err = strconv.ParseInt(words[1], 10, 64)
	case p.Kind == PushWanted && len(words) == 1:
		p.Pool = words[0]
	case p.Kind == PushRecall && len(words) == 5:
		p.Epoch, p.Pool = words[0], words[1]
		for i, to := range []*int64{&p.Tally.Recalled, &p.Tally.Withdrawn, &p.Millis} {
			if *to, err = strconv.ParseInt(words[2+i], 10, 64); err != nil {
				return p, false
			}
		}
		p.Millis = min(max(p.Millis, 0), 1<<31)
	case p.Kind == PushFence:
		p.backends(words, 2)
	case p.Kind == PushLook && len(words) > 1:
		p.Epoch = words[0]
		p.Since, err = strconv.ParseInt(words[1], 10, 64)
		p.backends(words[2:], 4)
	case p.Kind == PushRetry, p.Kind == PushLost, p.Kind == PushHeartbeat:
	default:
		return p, false
	}
	return p, err == nil
}

// backends reads groups of a UUID and the words of a record. A group that is cut off is left out.
func (p *Push) backends(words []string, record int) {
	for ; len(words) > record; words = words[record+1:] {
		p.IDs = append(p.IDs, words[0])
		p.Records = append(p.Records, strings.Join(words[1:record+1], " "))
	}
}
