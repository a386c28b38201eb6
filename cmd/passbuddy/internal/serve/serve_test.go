package serve

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/semaphore"
)

const token = "correct-horse-battery-staple"

// A served is a program that runs `passbuddy serve` on a free port.
type served struct {
	url  string
	sem  *semaphore.Semaphore
	log  *lockedBuffer
	stop func() error // ends it, and returns what Run returned
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs the page of a fleet of one process, which holds three permits.
func start(t *testing.T, change func(*Options)) served {
	t.Helper()
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	quiet := slog.New(slog.DiscardHandler)
	sem, err := semaphore.New(t.Context(), client, semaphore.Config{
		Name: "orders", Capacity: 5, Owner: "web-1", Logger: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sem.Close() })
	if _, err := sem.AcquireN(t.Context(), 3); err != nil {
		t.Fatal(err)
	}

	log := &lockedBuffer{}
	opts := Options{
		Client: client, Name: "orders", Listen: "127.0.0.1:0",
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}
	if change != nil {
		change(&opts)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := Run(ctx, opts, in)
		_ = in.CloseWithError(err)
		ended <- err
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	_, after, found := strings.Cut(line, " at ")
	if !found {
		t.Fatalf("it says %q", line)
	}
	s := served{url: strings.Fields(after)[0], sem: sem, log: log}
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return s
}

// A stream that is open does not hinder the end of the program.
func TestServeEndsWithItsStreams(t *testing.T) {
	s := start(t, nil)
	reply, err := http.Get(s.url + "events")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reply.Body.Close() }()
	lines := bufio.NewScanner(reply.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "event: status") {
	}
	if !lines.Scan() || !strings.Contains(lines.Text(), `"held":3`) {
		t.Fatalf("the state is %q: %v", lines.Text(), lines.Err())
	}
	begun := time.Now()
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took >= shutdownTimeout {
		t.Errorf("it took %v to end", took)
	}
	for lines.Scan() {
	}
	if err := lines.Err(); err != nil {
		t.Errorf("the stream was cut: %v", err)
	}
}

// On a loopback address, only the machine's own names are answered.
func TestServeRefusesRebinding(t *testing.T) {
	s := start(t, nil)
	for host, want := range map[string]int{
		"evil.example": http.StatusMisdirectedRequest, "evil.example:80": http.StatusMisdirectedRequest,
		"169.254.169.254": http.StatusMisdirectedRequest, "": http.StatusOK,
		"localhost:6480": http.StatusOK, "127.0.0.1:1": http.StatusOK, "[::1]:6480": http.StatusOK,
	} {
		request, err := http.NewRequest(http.MethodGet, s.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Host = host
		reply, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = reply.Body.Close()
		if reply.StatusCode != want {
			t.Errorf("Host %q: %s", host, reply.Status)
		}
	}
}

func post(t *testing.T, s served, verb, secret, body string) (int, string) {
	t.Helper()
	request, err := http.NewRequest(http.MethodPost, s.url+"control/"+verb, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+secret)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("X-PassBuddy-Control", "1")
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reply.Body.Close() }()
	var out struct{ Text string }
	if err := json.NewDecoder(reply.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	return reply.StatusCode, out.Text
}

// The verbs change a real fleet, with the token from the environment or from a file.
func TestServeControls(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tokenFile := range map[string]string{"environment": "", "file": file} {
		t.Run(name, func(t *testing.T) {
			if tokenFile == "" {
				t.Setenv(TokenVariable, token)
			}
			s := start(t, func(o *Options) { o.AllowControl, o.TokenFile = true, tokenFile })
			if status, text := post(t, s, "capacity", "wrong", `{"confirm":"orders","capacity":9}`); status != http.StatusUnauthorized {
				t.Errorf("a wrong token: %d %s", status, text)
			}
			for verb, body := range map[string]string{
				"capacity": `{"confirm":"orders","capacity":9,"operator":"ana"}`,
				"pause":    `{"confirm":"orders","for_seconds":60,"reason":"a test"}`,
			} {
				if status, text := post(t, s, verb, token, body); status != http.StatusOK {
					t.Errorf("%s: %d %s", verb, status, text)
				}
			}
			snapshot, err := s.sem.Snapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if snapshot.Capacity != 9 || snapshot.CapacitySetBy != "ana@127.0.0.1" || snapshot.Pause == nil {
				t.Errorf("the fleet: %+v", snapshot)
			}
			if status, text := post(t, s, "resume", token, `{"confirm":"orders"}`); status != http.StatusOK {
				t.Errorf("resume: %d %s", status, text)
			}
			if log := s.log.String(); strings.Contains(log, token) || !strings.Contains(log, "verb=capacity") {
				t.Errorf("the log: %s", log)
			}
		})
	}
}

func TestServeRefusesOptions(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer func() { _ = client.Close() }()
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		opts Options
		env  string
		want string
	}{
		"no token":       {Options{AllowControl: true}, "", TokenVariable},
		"an empty file":  {Options{AllowControl: true, TokenFile: empty}, "", "is empty"},
		"no file":        {Options{AllowControl: true, TokenFile: empty + "x"}, "", "--token-file"},
		"two tokens":     {Options{AllowControl: true, TokenFile: empty}, token, "use one"},
		"a spaced token": {Options{AllowControl: true}, "a b", "visible"},
		"no use":         {Options{TokenFile: empty}, "", "--allow-control"},
		"an address":     {Options{Listen: "nowhere.invalid:1"}, "", "--listen"},
		"a refused name": {Options{Name: "a{b"}, "", "Name"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(TokenVariable, test.env)
			test.opts.Client = client
			err := Run(t.Context(), test.opts, io.Discard)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want it to name %s", err, test.want)
			}
			if err != nil && test.env != "" && strings.Contains(err.Error(), test.env) {
				t.Errorf("the token is told: %v", err)
			}
		})
	}
}
