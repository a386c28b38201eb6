package passbuddy

import (
	"context"
	"net"
	"testing"
	"time"
)

// DialTimeout bounds the dial, unless the timeout is 0.
func TestDialTimeout(t *testing.T) {
	var bounded bool
	d := Dialer{Next: func(ctx context.Context, _, _ string) (net.Conn, error) {
		_, bounded = ctx.Deadline()
		return nil, ctx.Err()
	}}
	for timeout, want := range map[time.Duration]bool{0: false, time.Minute: true} {
		if _, err := d.DialTimeout("tcp", "x", timeout); err != nil || bounded != want {
			t.Errorf("%v: bounded %v, %v", timeout, bounded, err)
		}
	}
}
