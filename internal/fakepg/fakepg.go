// Package fakepg is the server's side of Postgres's protocol, for tests that decide which answer
// the server gives, and when. It speaks over any net.Conn: over a net.Pipe it runs under a fake
// clock.
package fakepg

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Server accepts every client, and has one backend for each connection. Its fields must be set
// before the first connection.
type Server struct {
	// OnQuery answers a simple query. Default Backend.Answer.
	OnQuery func(b *Backend, query string)
	// OnStart, if not nil, is told what a client asks for when it connects.
	OnStart func(parameters map[string]string)
	// Distance is the delay before a backend reads its first query.
	Distance time.Duration
	// OnEnd, if not nil, runs when a client has left, before the backend ends.
	OnEnd func()

	pids atomic.Uint32
}

// Backend is the server's end of one connection.
type Backend struct {
	*pgproto3.Backend
	Conn net.Conn
	PID  uint32
}

// Done tells the client that its query is done, and which command tag it returned.
func (b *Backend) Done(tag string, rows ...[]string) {
	b.Result(tag, rows...)
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	_ = b.Flush()
}

// Answer answers a ping, and the query by which package backend identifies a backend.
func (b *Backend) Answer(query string) {
	if strings.Contains(query, "pg_stat_activity") {
		b.Result("SET")
		b.Done("SELECT 2", []string{strconv.Itoa(int(b.PID)), "2"}, []string{"0", "1"})
		return
	}
	b.Done("SELECT 0")
}

// Result sends the result of one statement of a query.
func (b *Backend) Result(tag string, rows ...[]string) {
	for i, row := range rows {
		var fields []pgproto3.FieldDescription
		var values [][]byte
		for _, value := range row {
			fields = append(fields, pgproto3.FieldDescription{
				Name: []byte("x"), DataTypeOID: 25, DataTypeSize: -1, TypeModifier: -1,
			})
			values = append(values, []byte(value))
		}
		if i == 0 {
			b.Send(&pgproto3.RowDescription{Fields: fields})
		}
		b.Send(&pgproto3.DataRow{Values: values})
	}
	b.Send(&pgproto3.CommandComplete{CommandTag: []byte(tag)})
}

// Serve runs one backend. It ends when the client has left.
func (s *Server) Serve(nc net.Conn) {
	defer nc.Close()
	b := &Backend{Backend: pgproto3.NewBackend(nc, nc), Conn: nc, PID: s.pids.Add(1)}
	m, err := b.ReceiveStartupMessage()
	if err != nil {
		return
	}
	start, ok := m.(*pgproto3.StartupMessage)
	if !ok {
		return // a cancel request
	}
	if s.OnStart != nil {
		s.OnStart(start.Parameters)
	}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.BackendKeyData{ProcessID: b.PID, SecretKey: []byte{1, 2, 3, 4}})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	_ = b.Flush()
	time.Sleep(s.Distance)
	for {
		m, err := b.Receive()
		if _, ok := m.(*pgproto3.Terminate); ok || err != nil {
			break
		}
		if q, ok := m.(*pgproto3.Query); ok && s.OnQuery != nil {
			s.OnQuery(b, q.String)
		} else if ok {
			b.Answer(q.String)
		}
	}
	if s.OnEnd != nil {
		s.OnEnd()
	}
}

// Listen serves on a port of this machine until the test ends.
func (s *Server) Listen(t testing.TB) *pgx.ConnConfig {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go s.Serve(nc)
		}
	}()
	cfg := Config(t)
	cfg.Port = uint16(l.Addr().(*net.TCPAddr).Port)
	return cfg
}

// Dial connects to s in memory.
func (s *Server) Dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	go s.Serve(server)
	return client, nil
}

// DSN names a server that Dial reaches, without a look-up.
const DSN = "host=127.0.0.1 user=x dbname=x sslmode=disable"

// Config returns DSN, parsed.
func Config(t testing.TB) *pgx.ConnConfig {
	t.Helper()
	cfg, err := pgx.ParseConfig(DSN)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}
