package pgxpool_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
)

// The permit follows the socket that pgx dials, below TLS and below another wrapper. As in
// leak_test.go, the capacity is 1: if a second process can still work, nothing leaked.

// TestFallbackWithoutTLS: sslmode=prefer dials twice, one after the other.
func TestFallbackWithoutTLS(t *testing.T) {
	f := newFleet(t, 1)
	peak := f.witness()
	pool := f.process(passbuddy.Config{}, func(cfg *pgxpool.Config) {
		plain, err := pgxpool.ParseConfig(strings.Replace(f.pg.URL(), "sslmode=disable",
			"sslmode=prefer", 1))
		ok(t, err)
		cfg.ConnConfig.TLSConfig, cfg.ConnConfig.Fallbacks =
			plain.ConnConfig.TLSConfig, plain.ConnConfig.Fallbacks
	})
	for range 10 {
		f.works(pool)
		pool.Reset()
	}
	if got := passpool.Figures(pool); got.Opening != 0 {
		t.Errorf("%+v, want nothing opening", got)
	}
	if p := peak(); p > 1 {
		t.Errorf("%d backends, want at most 1", p)
	}
}

// TestTLS: PassBuddy finds and drains the socket underneath TLS.
func TestTLS(t *testing.T) {
	f := newFleet(t, 1)
	addr := tlsFront(t, f.pg.Addr())
	pool := f.process(passbuddy.Config{}, func(cfg *pgxpool.Config) {
		cfg.ConnConfig.Host, cfg.ConnConfig.Port = "127.0.0.1", uint16(addr.Port)
		cfg.ConnConfig.TLSConfig = &tls.Config{InsecureSkipVerify: true}
		cfg.ConnConfig.Fallbacks = nil
	})
	other := f.process(passbuddy.Config{})
	for range 5 {
		f.works(pool)
		f.works(other)
	}
	f.cancelsStatement(t, pool)
	f.works(other)
}

// TestWrappedSocket: an AfterNetConnect hook hides our socket.
func TestWrappedSocket(t *testing.T) {
	f := newFleet(t, 1)
	pool := f.process(passbuddy.Config{}, func(cfg *pgxpool.Config) {
		cfg.ConnConfig.AfterNetConnect = func(_ context.Context, _ *pgconn.Config,
			nc net.Conn) (net.Conn, error) {
			return struct{ net.Conn }{nc}, nil
		}
	})
	other := f.process(passbuddy.Config{})
	for range 5 {
		f.works(pool)
		f.works(other)
	}
}

// tlsFront is a proxy that terminates TLS for a Postgres.
func tlsFront(t *testing.T, backend string) *net.TCPAddr {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ok(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	ok(t, err)
	config := &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer nc.Close()
				if _, err := io.ReadFull(nc, make([]byte, 8)); err != nil {
					return
				}
				_, _ = nc.Write([]byte("S"))
				front := tls.Server(nc, config)
				back, err := net.Dial("tcp", backend)
				if err != nil {
					return
				}
				defer back.Close()
				wg.Go(func() {
					_, _ = io.Copy(back, front)
					_ = back.(*net.TCPConn).CloseWrite()
				})
				_, _ = io.Copy(front, back)
				_ = front.Close()
			})
		}
	})
	return l.Addr().(*net.TCPAddr)
}
