package examples

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// mysqlServer speaks as much of MySQL's protocol as Go's driver needs to run statements without
// arguments. Each statement takes 20 ms.
type mysqlServer struct {
	listener net.Listener
	group    sync.WaitGroup

	mu                  sync.Mutex
	open, peak, queries int
}

func startMySQL(t *testing.T) *mysqlServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &mysqlServer{listener: listener}
	s.group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.group.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		s.group.Wait() // the programs have ended, so each connection has
	})
	return s
}

func (s *mysqlServer) dsn() string {
	return "orders:secret@tcp(" + s.listener.Addr().String() + ")/orders"
}

// The commands of the protocol that the driver sends, and the first byte of the answer OK.
const (
	comQuit  = 0x01
	comQuery = 0x03
	comPing  = 0x0e
)

var okPacket = []byte{0, 1, 0, 2, 0, 0, 0} // 1 row affected, autocommit

func (s *mysqlServer) serve(conn net.Conn) {
	defer conn.Close()
	s.mu.Lock()
	s.open++
	s.peak = max(s.peak, s.open)
	s.mu.Unlock()
	defer func() { // before the socket is closed, by which the client knows
		s.mu.Lock()
		s.open--
		s.mu.Unlock()
	}()
	in := bufio.NewReader(conn)
	send := func(sequence byte, payload []byte) error {
		n := len(payload)
		head := []byte{byte(n), byte(n >> 8), byte(n >> 16), sequence}
		_, err := conn.Write(append(head, payload...))
		return err
	}
	if send(0, greeting()) != nil {
		return
	}
	if _, _, err := receive(in); err != nil { // who the client is
		return
	}
	if send(2, okPacket) != nil {
		return
	}
	for {
		sequence, command, err := receive(in)
		if err != nil || len(command) == 0 || command[0] == comQuit {
			return
		}
		switch command[0] {
		case comPing:
		case comQuery:
			time.Sleep(20 * time.Millisecond)
			s.mu.Lock()
			s.queries++
			s.mu.Unlock()
		default:
			return
		}
		if send(sequence+1, okPacket) != nil {
			return
		}
	}
}

// greeting is the handshake of protocol version 10, for mysql_native_password.
func greeting() []byte {
	const capabilities = 0x1 | // long passwords
		0x8 | // a database in the client's answer
		0x200 | 0x8000 | // protocol 4.1 and its passwords
		0x2000 | // transactions
		0x80000 // authentication plugins
	var b bytes.Buffer
	b.WriteByte(10)
	b.WriteString("8.0.0-example\x00")
	b.Write([]byte{1, 0, 0, 0})   // the connection
	b.WriteString("abcdefgh\x00") // first part of the challenge
	low := make([]byte, 2)        // capabilities
	binary.LittleEndian.PutUint16(low, capabilities&0xffff)
	b.Write(low)
	b.Write([]byte{45, 2, 0}) // character set, status
	high := make([]byte, 2)
	binary.LittleEndian.PutUint16(high, capabilities>>16)
	b.Write(high)
	b.WriteByte(21) // length of the challenge
	b.Write(make([]byte, 10))
	b.WriteString("ijklmnopqrst\x00") // second part
	b.WriteString("mysql_native_password\x00")
	return b.Bytes()
}

// receive reads one packet.
func receive(in io.Reader) (sequence byte, payload []byte, err error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(in, head); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, int(head[0])|int(head[1])<<8|int(head[2])<<16)
	_, err = io.ReadFull(in, payload)
	return head[3], payload, err
}
