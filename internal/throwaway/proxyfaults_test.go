package throwaway

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

func expectRefused(t *testing.T, addr string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err == nil {
		conn.Close()
		t.Fatal("a connection was accepted, want it refused")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("dial: %v, want it refused", err)
	}
}

func TestProxyStallRepliesLetsRequestsThrough(t *testing.T) {
	addr, received := echo(t)
	p := startProxy(t, addr)
	conn := dial(t, p.Addr())
	p.StallReplies()
	say(t, conn, "one")
	if got := <-received; got != "one" {
		t.Fatalf("server received %q", got)
	}
	expectSilence(t, conn)
	p.Resume()
	expect(t, conn, "one")
}

func TestProxyResetSparesNewConnections(t *testing.T) {
	addr, _ := echo(t)
	p := startProxy(t, addr)
	conn := dial(t, p.Addr())
	say(t, conn, "one")
	expect(t, conn, "one")
	p.Reset()
	expectBroken(t, conn)
	conn = dial(t, p.Addr())
	say(t, conn, "two")
	expect(t, conn, "two")
}

func TestProxyForgetsBothSides(t *testing.T) {
	addr, _ := echo(t)
	p := startProxy(t, addr)
	forgotten := dial(t, p.Addr())
	say(t, forgotten, "one")
	expect(t, forgotten, "one")
	p.Forget()
	say(t, forgotten, "lost")
	expectSilence(t, forgotten)
	orphan := dial(t, p.Addr())
	say(t, orphan, "two")
	expect(t, orphan, "two")
	p.Orphan()
	expectBroken(t, orphan)
	say(t, dial(t, p.Addr()), "three")
}

func TestProxyRefuseUntilAccept(t *testing.T) {
	addr, _ := echo(t)
	p := startProxy(t, addr)
	conn := dial(t, p.Addr())
	say(t, conn, "one")
	expect(t, conn, "one")
	for range 2 {
		if err := p.Refuse(); err != nil {
			t.Fatal(err)
		}
	}
	expectRefused(t, p.Addr())
	say(t, conn, "two") // The existing connection lives on.
	expect(t, conn, "two")
	for range 2 {
		if err := p.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	fresh := dial(t, p.Addr())
	say(t, fresh, "three")
	expect(t, fresh, "three")
	if err := p.Refuse(); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error("Close while refusing:", err)
	}
	expectBroken(t, fresh)
	if err := p.Accept(); err != nil {
		t.Error("Accept of a closed proxy:", err)
	}
	expectRefused(t, p.Addr())
}

func TestProxyRetarget(t *testing.T) {
	first, toFirst := echo(t)
	second, toSecond := echo(t)
	p := startProxy(t, first)
	conn := dial(t, p.Addr())
	say(t, conn, "one")
	expect(t, conn, "one")
	p.Retarget(second)
	fresh := dial(t, p.Addr())
	say(t, fresh, "two")
	expect(t, fresh, "two")
	say(t, conn, "three")
	expect(t, conn, "three")
	if got := <-toFirst + <-toFirst + <-toSecond; got != "onethreetwo" {
		t.Errorf("the servers received %q", got)
	}
}

func TestProxyLoseRepliesCutsAfterTheServerActed(t *testing.T) {
	addr, received := echo(t)
	p := startProxy(t, addr)
	conn, other := dial(t, p.Addr()), dial(t, p.Addr())
	lost := p.LoseReplies(1, func(request []byte) bool {
		return strings.HasPrefix(string(request), "SET")
	})

	say(t, other, "GET")
	expect(t, other, "GET")
	<-received
	select {
	case <-lost:
		t.Fatal("a request that does not match lost its reply")
	default:
	}
	say(t, conn, "SET")
	if got := <-received; got != "SET" {
		t.Fatalf("server received %q", got)
	}
	expectBroken(t, conn)
	<-lost
	say(t, other, "SET") // LoseReplies was asked for one reply only.
	expect(t, other, "SET")
}

func TestProxyLoseRepliesCountsAClientThatHangsUp(t *testing.T) {
	addr, received := echo(t)
	p := startProxy(t, addr)
	conn := dial(t, p.Addr())
	p.StallReplies()
	lost := p.LoseReplies(1, nil)
	say(t, conn, "one")
	<-received
	conn.Close()
	p.Resume()
	<-lost
	<-p.LoseReplies(0, nil)
}

func TestProxyBeforeRedis(t *testing.T) {
	ctx := testContext(t)
	r := startRedis(t, RedisOptions{})
	p := startProxy(t, r.Addr())
	opts := r.Options()
	opts.Addr, opts.MaxRetries = p.Addr(), -1
	client := redis.NewClient(opts)
	defer client.Close()

	lost := p.LoseReplies(1, func(request []byte) bool {
		return strings.Contains(strings.ToLower(string(request)), "incr")
	})
	if n, err := client.Incr(ctx, "n").Result(); err == nil {
		t.Errorf("incr: %d, want its reply to be lost", n)
	}
	<-lost
	if n, err := client.Incr(ctx, "n").Result(); n != 2 || err != nil {
		t.Errorf("the second incr: %d, %v; want the lost one to count", n, err)
	}
}

func TestProxyBeforePostgres(t *testing.T) {
	ctx := testContext(t)
	pg := startPostgres(t, PostgresOptions{})
	p := startProxy(t, pg.Addr())
	config, err := pgx.ParseConfig(pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	config.DialFunc = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, p.Addr())
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "create table committed (id int)"); err != nil {
		t.Fatal(err)
	}
	lost := p.LoseReplies(1, func(request []byte) bool {
		return strings.Contains(string(request), "commit")
	})
	if err := tx.Commit(ctx); err == nil {
		t.Error("commit succeeded, want its reply to be lost")
	}
	<-lost
	if _, err := connect(t, pg.URL()).Exec(ctx, "select * from committed"); err != nil {
		t.Error("the commit whose reply was lost:", err)
	}
}
