package target

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
)

func TestAdvice(t *testing.T) {
	for text, c := range map[string]struct {
		err error
		url string
	}{
		"cannot be resolved":         {err: &net.DNSError{Err: "no such host", Name: "x"}},
		"Nothing listens there":      {err: errors.New("dial tcp 127.0.0.1:1: connect: connection refused")},
		"check user and password":    {err: errors.New("NOAUTH Authentication required.")},
		"lacks a permission":         {err: errors.New("NOPERM this user has no permissions")},
		"Use rediss://":              {err: errors.New("EOF")},
		"A firewall drops it":        {err: context.DeadlineExceeded, url: "redis://x"},
		"Does this server speak TLS": {err: context.DeadlineExceeded, url: "rediss://x"},
		"is a replica":               {err: errors.New("READONLY You can't write")},
		"node of a Redis Cluster":    {err: errors.New("MOVED 1 10.0.0.1:6379")},
		"raise its maxmemory":        {err: errors.New("OOM command not allowed")},
		"a full disk":                {err: errors.New("MISCONF Redis is configured to save")},
		"wait.":                      {err: errors.New("LOADING Redis is loading")},
		"another --prefix":           {err: errors.New("WRONGTYPE Operation against a key")},
		"Check --redis":              {err: errors.New("something else")},
	} {
		target := Target{RedisURL: c.url}
		got := target.Explain(c.err)
		if !strings.Contains(got.Error(), text) || !errors.Is(got, c.err) ||
			strings.Contains(got.Error(), "..") || !strings.Contains(got.Error(), "passbuddy doctor") {
			t.Errorf("%v: %v, want %q", c.err, got, text)
		}
	}
}
