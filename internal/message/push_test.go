package message

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// Each kind of push is read as the scripts write it. A payload that no script has sent is not taken
// for a push.
func TestParsePush(t *testing.T) {
	for payload, want := range map[string]Push{
		"g e 1790000000000 a b": {Kind: PushGrant, Epoch: "e", Now: 1790000000000, IDs: []string{"a", "b"}},
		"g e -5 a":              {Kind: PushGrant, Epoch: "e", Now: -5, IDs: []string{"a"}},
		"w pool":                {Kind: PushWanted, Pool: "pool"},
		"b e pool 9 3 50": {Kind: PushRecall, Epoch: "e", Pool: "pool",
			Tally: Tally{Recalled: 9, Withdrawn: 3}, Millis: 50},
		"b e pool 1 0 -1": {Kind: PushRecall, Epoch: "e", Pool: "pool", Tally: Tally{Recalled: 1}},
		"b e pool 1 0 9223372036854775807": {Kind: PushRecall, Epoch: "e", Pool: "pool",
			Tally: Tally{Recalled: 1}, Millis: 1 << 31},
		"r":                     {Kind: PushRetry},
		"l":                     {Kind: PushLost},
		"h":                     {Kind: PushHeartbeat},
		"f":                     {Kind: PushFence},
		"f a 1 2 b 3 4":         {Kind: PushFence, IDs: []string{"a", "b"}, Records: []string{"1 2", "3 4"}},
		"f a 1 2 b 3":           {Kind: PushFence, IDs: []string{"a"}, Records: []string{"1 2"}}, // cut off
		"s e 9":                 {Kind: PushLook, Epoch: "e", Since: 9},
		"s e 9 a 1 2 3 4":       {Kind: PushLook, Epoch: "e", Since: 9, IDs: []string{"a"}, Records: []string{"1 2 3 4"}},
		"s e 9 a 1 2 3 4 b 5 6": {Kind: PushLook, Epoch: "e", Since: 9, IDs: []string{"a"}, Records: []string{"1 2 3 4"}},
	} {
		got, ok := ParsePush(payload)
		if !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is read as %+v, %v; want %+v", payload, got, ok, want)
		}
	}
	for _, payload := range []string{
		"", " ", "\x00", "q x", "gg e 1 a", "g", "g e", "g e 1", "g e x a", "w", "w x y",
		"b", "b e pool", "b e pool 1 0", "b e pool 1 0 0 0", "b e pool x 0 0", "b e pool 1 x 0",
		"b e pool 1 0 x", "b e pool 1 0 9223372036854775808", "s",
	} {
		if got, ok := ParsePush(payload); ok {
			t.Errorf("%q is read as %+v, and no script sends that", payload, got)
		}
	}
}

// Every push that is read is of a known kind, and complete.
func FuzzParsePush(f *testing.F) {
	for _, seed := range []string{
		"g e 1790000000000 a b", "g e 9223372036854775807 a", "g e -9223372036854775808 x", "g e x a",
		"g", "w pool", "w x y", "b e pool 9 3 50",
		"b e pool 9223372036854775807 -9223372036854775808 -1", "b e pool",
		"f a 1 2", "f a", "s e a 1 2 3 4",
		"s", "r", "l", "h", "", " ", "\x00", "q x", "r\u2003x", "\xff\xfe",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		p, ok := ParsePush(payload)
		if !ok {
			return
		}
		known := []PushKind{PushGrant, PushWanted, PushRecall, PushRetry, PushLost, PushHeartbeat,
			PushFence, PushLook}
		if !slices.Contains(known, p.Kind) {
			t.Errorf("of kind %q", p.Kind)
		}
		if p.Kind == PushGrant && len(p.IDs) == 0 {
			t.Error("a grant of nothing")
		}
		if backends := p.Kind == PushFence || p.Kind == PushLook; backends && len(p.IDs) != len(p.Records) {
			t.Errorf("%d backends, %d records", len(p.IDs), len(p.Records))
		}
		if p.Millis < 0 || p.Millis > 1<<31 {
			t.Errorf("due in %d ms", p.Millis)
		}
		for _, word := range append([]string{p.Epoch, p.Pool}, p.IDs...) {
			if strings.ContainsFunc(word, unicode.IsSpace) {
				t.Errorf("%q is more than a word", word)
			}
		}
	})
}
