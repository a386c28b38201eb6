package message

import (
	"encoding/json"
	"strconv"
	"strings"
)

// Forever is the end of a pause that lasts until it is resumed, ms of Redis's clock.
const Forever = 1 << 52

// A Pause is an operator's: nothing new is granted meanwhile.
type Pause struct {
	Since, Until int64 // ms of Redis's clock
	Drain        bool  // what is held is recalled, too
	PauseNote
}

// A PauseNote says who paused, and why.
type PauseNote struct {
	By     string `json:"by"`
	Reason string `json:"reason"`
}

// ParsePause reads a pause as Redis has it: "<since> <until> <1 if it drains, or 0> <JSON>". ok is
// false for what no script has written.
func ParsePause(text string) (p Pause, ok bool) {
	words := strings.SplitN(text, " ", 4)
	if len(words) < 4 {
		return p, false
	}
	var err, also error
	p.Since, err = strconv.ParseInt(words[0], 10, 64)
	p.Until, also = strconv.ParseInt(words[1], 10, 64)
	p.Drain = words[2] == "1"
	_ = json.Unmarshal([]byte(words[3]), &p.PauseNote) // else nobody is named
	return p, err == nil && also == nil
}
