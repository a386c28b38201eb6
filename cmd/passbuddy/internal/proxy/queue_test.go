package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/passbuddy/passbuddy/internal/fakepg"
)

// startupPacket is a StartupMessage of that user.
func startupPacket(user string) []byte {
	m := pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersionNumber,
		Parameters: map[string]string{"user": user}}
	b, err := m.Encode(nil)
	if err != nil {
		panic(err)
	}
	return b
}

// codePacket is a packet of a code and a body.
func codePacket(code uint32, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return append(binary.BigEndian.AppendUint32(b, code), body...)
}

// refusedRaw reads an ErrorResponse, and the end.
func refusedRaw(t *testing.T, nc net.Conn, code string) {
	t.Helper()
	b := closes(t, nc)
	m, err := pgproto3.NewFrontend(bytes.NewReader(b), nil).Receive()
	if e, ok := m.(*pgproto3.ErrorResponse); !ok || e.Code != code || e.Severity != "FATAL" {
		t.Fatalf("%+v (%v), want an error %s, in %q", m, err, code, b)
	}
}

func TestClientsAreServedInTheirOrder(t *testing.T) {
	p := start(t, fake(t, &fakepg.Server{}), 1)
	first := p.mustConnect()
	served := make(chan int, 3)
	for i := range 3 {
		go func() {
			conn, err := p.connect(context.Background())
			if err != nil {
				t.Error(err)
			} else {
				served <- i
				_ = conn.Close(context.Background())
				return
			}
			served <- -1
		}()
		eventually(t, patience, func() (bool, string) {
			n := p.clientsWaiting()
			return n == i+1, fmt.Sprintf("%d wait", n)
		})
	}
	if held, _ := p.counts(); held != 1 {
		t.Errorf("%d held", held)
	}
	_ = first.Close(t.Context())
	for want := range 3 {
		if got := <-served; got != want {
			t.Errorf("client %d was served as number %d", got, want)
		}
	}
	p.settles(0, 0)
}

func TestNoPermitInTime(t *testing.T) {
	p := start(t, fake(t, &fakepg.Server{}), 1, func(p *setup) { p.o.Wait = time.Second })
	p.mustConnect()
	// in answer to an SSLRequest, and a GSSENCRequest, too
	var asking []*net.TCPConn
	for _, code := range []uint32{codeSSL, codeGSS} {
		nc := p.dial()
		_, _ = nc.Write(codePacket(code, ""))
		asking = append(asking, nc)
	}
	// A TLS client that asks nothing understands no such answer.
	direct := p.dial()
	_, _ = direct.Write([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
	_, err := p.connect(t.Context())
	e := refusedWith(t, err, tooManyConnections)
	if !strings.Contains(e.Message, "capacity is 1") || e.Hint == "" {
		t.Errorf("%q, %q", e.Message, e.Hint)
	}
	for _, nc := range asking {
		refusedRaw(t, nc, tooManyConnections)
	}
	if b := closes(t, direct); len(b) > 0 {
		t.Errorf("%q", b)
	}
	if n := strings.Count(p.log.String(), "clients refused"); n != 1 {
		t.Errorf("the log has %d lines of it", n)
	}
	p.settles(1, 0)
}

func TestWaitingClientGivesUp(t *testing.T) {
	p := start(t, fake(t, &fakepg.Server{}), 1, func(p *setup) { p.o.Wait = time.Hour })
	first := p.mustConnect()
	nc := p.dial()
	_, _ = nc.Write(startupPacket("x"))
	p.settles(1, 1)
	_ = nc.Close()
	p.settles(1, 0)
	// and the request in Redis with it, in a moment
	eventually(t, patience, func() (bool, string) {
		_, n := p.counts()
		return n == 0, "the request waits"
	})
	_ = first.Close(t.Context())
	p.settles(0, 0)
}

func TestRedisIsAway(t *testing.T) {
	p := start(t, fake(t, &fakepg.Server{}), 1,
		func(p *setup) { p.o.Wait = time.Second })
	p.redis.SetError("LOADING Redis is loading the dataset in memory")
	_, err := p.connect(t.Context())
	refusedWith(t, err, cannotConnectNow)
	p.redis.SetError("")
	eventually(t, patience, func() (bool, string) {
		conn, err := p.connect(t.Context())
		if err != nil {
			return false, err.Error()
		}
		return conn.Close(t.Context()) == nil, "close"
	})
}

func TestPostgresIsAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := l.Addr().String()
	_ = l.Close()
	p := start(t, to, 1)
	_, err = p.connect(t.Context())
	refusedWith(t, err, unableToConnect)
	p.settles(0, 0)
	if f := p.s.ad.a.Figures(); f.Turns != 0 || f.Owned != 0 {
		t.Errorf("%+v", f)
	}
}

func TestTooManyClients(t *testing.T) {
	p := start(t, fake(t, &fakepg.Server{}), 5, func(p *setup) { p.o.MaxClients = 2 })
	p.mustConnect()
	second := p.mustConnect()
	_, err := p.connect(t.Context())
	refusedWith(t, err, tooManyConnections)
	_ = second.Close(t.Context())
	p.settles(1, 0)
	eventually(t, patience, func() (bool, string) {
		conn, err := p.connect(t.Context())
		if err != nil {
			return false, err.Error()
		}
		return conn.Close(t.Context()) == nil, "close"
	})
}

// A cancel request is served although all permits are held: it is to end what holds one.
func TestCancelRequestTakesNoPermit(t *testing.T) {
	canceled := make(chan []byte, 1)
	p := start(t, raw(t, func(nc net.Conn) {
		f, _ := readFirst(nc, time.Minute)
		if f.kind == cancelRequest {
			canceled <- f.bytes
			return
		}
		_, _ = nc.Write([]byte("R"))
		_, _ = io.Copy(io.Discard, nc)
	}), 1)
	first := p.dial()
	_, _ = first.Write(startupPacket("x"))
	if _, err := io.ReadFull(first, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	packet := codePacket(codeCancel, "pid.secret of any length")
	nc := p.dial()
	_, _ = nc.Write(packet)
	if b := closes(t, nc); len(b) > 0 {
		t.Errorf("%q", b)
	}
	if got := <-canceled; !bytes.Equal(got, packet) {
		t.Errorf("%q", got)
	}
	p.settles(1, 0)
}

// A client that does not say what it wants takes no permit, and is closed after a while.
func TestFirstPacket(t *testing.T) {
	p := start(t, fake(t, &fakepg.Server{}), 1)
	garbage := p.dial()
	_, _ = garbage.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	refusedRaw(t, garbage, protocolViolation)
	if held, _ := p.counts(); held != 0 {
		t.Errorf("%d held", held)
	}
	p = start(t, fake(t, &fakepg.Server{}), 1,
		func(p *setup) { p.firstPacket = 300 * time.Millisecond })
	silent, slow, health := p.dial(), p.dial(), p.dial()
	_, _ = slow.Write(startupPacket("x")[:12])
	_ = health.Close()
	if held, _ := p.counts(); held != 0 {
		t.Errorf("%d held", held)
	}
	for _, nc := range []net.Conn{silent, slow} {
		if b := closes(t, nc); len(b) > 0 {
			t.Errorf("%q", b)
		}
	}
}

func TestReadFirst(t *testing.T) {
	long := startupPacket(strings.Repeat("x", maxPacket-100))
	for _, c := range []struct {
		name  string
		sent  []byte
		kind  kind
		bytes []byte
		err   error
	}{
		{"startup", append(startupPacket("x"), "more"...), startup, startupPacket("x"), nil},
		{"long", long, startup, long, nil},
		{"a version to come", codePacket(4<<16, "x"), startup, codePacket(4<<16, "x"), nil},
		{"ssl", append(codePacket(codeSSL, ""), "more"...), encrypt, codePacket(codeSSL, ""), nil},
		{"gss", codePacket(codeGSS, ""), encrypt, codePacket(codeGSS, ""), nil},
		{"cancel", codePacket(codeCancel, "12345678"), cancelRequest,
			codePacket(codeCancel, "12345678"), nil},
		{"tls", []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), directTLS,
			[]byte("\x16\x03\x01\x02\x00\x01\x00\x01"), nil},
		{"too long", binary.BigEndian.AppendUint64(nil, (maxPacket+1)<<32|codeSSL), 0, nil,
			errNotPostgres},
		{"too short", binary.BigEndian.AppendUint64(nil, 7<<32|codeSSL), 0, nil, errNotPostgres},
		{"cut", startupPacket("x")[:10], 0, nil, io.ErrUnexpectedEOF},
		{"nothing", nil, 0, nil, io.EOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, server := net.Pipe()
			defer server.Close()
			go func() {
				_, _ = client.Write(c.sent)
				_ = client.Close()
			}()
			f, err := readFirst(server, time.Minute)
			if err != c.err {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err == nil && (f.kind != c.kind || !bytes.Equal(f.bytes, c.bytes)) {
				t.Errorf("%v %q", f.kind, f.bytes)
			}
		})
	}
}

// The proxy reads no more of a client than its first packet, and panics at nothing.
func FuzzReadFirst(f *testing.F) {
	f.Add(startupPacket("x"))
	f.Add(codePacket(codeSSL, ""))
	f.Add([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		client, server := net.Pipe()
		defer server.Close()
		go func() {
			_, _ = client.Write(sent)
			_ = client.Close()
		}()
		got, err := readFirst(server, time.Minute)
		if err == nil && !bytes.HasPrefix(sent, got.bytes) {
			t.Errorf("%q of %q", got.bytes, sent)
		}
		if err == nil && got.kind != directTLS &&
			int(binary.BigEndian.Uint32(sent)) != len(got.bytes) {
			t.Errorf("%d bytes of %q", len(got.bytes), sent)
		}
	})
}

func TestRefusalsAreLoggedOnceInAWhile(t *testing.T) {
	var r refusals
	at := time.Unix(1000, 0)
	for i, want := range []int{1, 0, 0} {
		if n := r.count("a", at); n != want {
			t.Errorf("refusal %d: %d", i, n)
		}
	}
	if n := r.count("b", at); n != 1 {
		t.Errorf("another code: %d", n)
	}
	if n := r.count("a", at.Add(refusalsEvery)); n != 3 {
		t.Errorf("later: %d", n)
	}
}
