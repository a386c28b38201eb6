package proxy

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// firstPacketTimeout bounds the time to a client's complete first packet. Clients send it at once.
const firstPacketTimeout = 10 * time.Second

// The codes of first packets, and the longest that Postgres takes.
const (
	codeCancel = 80877102
	codeSSL    = 80877103
	codeGSS    = 80877104
	maxPacket  = 10_000
	headerLen  = 8 // length and code

	tlsHandshake = 0x16 // the first byte of a TLS ClientHello
)

// kind says how to treat a first packet.
type kind uint8

const (
	startup kind = iota // or of a version that Postgres will refuse
	encrypt             // SSLRequest, GSSENCRequest
	directTLS
	cancelRequest
)

// first is a client's first packet, or the beginning of its ClientHello.
type first struct {
	kind  kind
	bytes []byte
}

var errNotPostgres = errors.New("the first packet is none of Postgres's protocol")

// readFirst reads a client's first packet, and nothing beyond it.
func readFirst(client net.Conn, timeout time.Duration) (first, error) {
	if err := client.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return first{}, err
	}
	header := make([]byte, headerLen)
	if _, err := io.ReadFull(client, header); err != nil {
		return first{}, err
	}
	f := first{bytes: header}
	length, code := binary.BigEndian.Uint32(header), binary.BigEndian.Uint32(header[4:])
	switch {
	case header[0] == tlsHandshake:
		f.kind = directTLS
		return f, client.SetReadDeadline(time.Time{})
	case length < headerLen || length > maxPacket:
		return f, errNotPostgres
	case code == codeSSL || code == codeGSS:
		f.kind = encrypt
	case code == codeCancel:
		f.kind = cancelRequest
	}
	f.bytes = append(f.bytes, make([]byte, length-headerLen)...)
	if _, err := io.ReadFull(client, f.bytes[headerLen:]); err != nil {
		return f, err
	}
	return f, client.SetReadDeadline(time.Time{})
}

// SQLSTATEs of refusals.
const (
	tooManyConnections = "53300"
	cannotConnectNow   = "57P03"
	unableToConnect    = "08001"
	protocolViolation  = "08P01"
)

// refusal is the error that a client gets.
type refusal struct{ code, message, hint string }

func (r refusal) encode() []byte {
	m := pgproto3.ErrorResponse{
		Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: r.code,
		Message: "passbuddy proxy: " + r.message, Hint: r.hint,
	}
	b, err := m.Encode(nil)
	if err != nil {
		panic("bug: an error that cannot be encoded: " + err.Error())
	}
	return b
}

const (
	refuseTimeout = 2 * time.Second
	maxUnread     = 64 << 10
)

// send tells the client, and waits a while for it to close. If data that we have not read were left
// at our close, the kernel would reset the connection, and the client might never see the error.
func (r refusal) send(client *net.TCPConn) {
	_ = client.SetDeadline(time.Now().Add(refuseTimeout))
	if _, err := client.Write(r.encode()); err != nil {
		return
	}
	_ = client.CloseWrite()
	_, _ = io.Copy(io.Discard, io.LimitReader(client, maxUnread))
}
