package holdrun

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// screen is a terminal, and the process that has it as its controlling one.
type screen struct {
	t     *testing.T
	pty   *os.File
	out   lines
	cmd   *exec.Cmd
	ended chan struct{}
}

// open starts a program in a new session with a terminal of its own.
func (f *fleet) open(env []string, name string, args ...string) *screen {
	f.t.Helper()
	t := f.t
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	// blocking: what reads it ends with the last process that has the other side
	s := &screen{t: t, pty: os.NewFile(uintptr(fd), "ptmx"), ended: make(chan struct{})}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	s.cmd = exec.Command(name, args...)
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = tty, tty, tty
	s.cmd.Env = append(os.Environ(), asTool+"=1", target.RedisEnv+"="+f.url, "TERM=dumb",
		"PAGER=cat", "PSQLRC=/dev/null", "TOOL="+os.Args[0])
	s.cmd.Env = append(s.cmd.Env, env...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 4096)
		for {
			n, err := s.pty.Read(b)
			_, _ = s.out.Write(b[:n])
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait()
		<-read
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		select {
		case <-s.ended:
		case <-time.After(patience):
			t.Error("something keeps the terminal open")
		}
		_ = s.pty.Close()
	})
	return s
}

// shows waits until the text is on the screen, behind what was waited for before.
func (s *screen) shows(text string) {
	s.t.Helper()
	eventually(s.t, patience, func() (bool, string) {
		s.out.mu.Lock()
		defer s.out.mu.Unlock()
		i := strings.Index(s.out.b.String(), text)
		if i < 0 {
			return false, fmt.Sprintf("no %q in %q", text, s.out.b.String())
		}
		s.out.b.Next(i + len(text))
		return true, ""
	})
}

func (s *screen) types(text string) {
	s.t.Helper()
	if _, err := s.pty.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// ends waits for the end of the process, and returns its exit code.
func (s *screen) ends() int {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.t.Fatalf("it does not end; the screen shows %q", s.out.String())
	}
	return s.cmd.ProcessState.ExitCode()
}

const ctrlC, ctrlZ, ctrlD = "\x03", "\x1a", "\x04"

// psql works as without us: it reads the keyboard, Ctrl-C cancels its query and does not end it,
// and the terminal is the shell's again afterwards.
func TestPsqlAtATerminal(t *testing.T) {
	t.Parallel()
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Skip("psql is not installed")
	}
	pg, err := throwaway.StartPostgres(t.Context(), throwaway.PostgresOptions{})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pg.Stop() })
	u, err := url.Parse(pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	u.User = url.User(u.User.Username())
	f := newFleet(t)
	f.join(5)
	s := f.open([]string{"PGPASSWORD=" + password}, "/bin/sh", "-c",
		`"$TOOL" run -- `+psql+` -X "`+u.String()+`"; echo "psql ended: $?"; read line; echo "read $line"`)
	s.shows("passbuddy=>")
	if held := f.snapshot().Held; held != 1 {
		t.Errorf("%d held", held)
	}
	s.types("select 6*7 as answer;\n")
	s.shows("42")
	s.shows("passbuddy=>")
	s.types("select 'now ' || 'sleeping';\n")
	s.shows("now sleeping")
	s.shows("passbuddy=>")
	s.types("select pg_sleep(100);\n")
	eventually(t, patience, func() (bool, string) {
		return sleeping(t, pg) == 1, "the query does not run"
	})
	s.types(ctrlC)
	s.shows("canceling statement due to user request")
	s.shows("passbuddy=>")
	s.types("select 'still ' || 'here';\n")
	s.shows("still here")
	s.shows("passbuddy=>")
	s.types("\\q\n")
	s.shows("psql ended: 0")
	// A shell that is no longer in the foreground could not read.
	s.types("a line\n")
	s.shows("read a line")
	if code := s.ends(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if held := f.snapshot().Held; held != 0 {
		t.Errorf("%d held", held)
	}
}

// sleeping counts the backends in pg_sleep.
func sleeping(t *testing.T, pg *throwaway.Postgres) (n int) {
	t.Helper()
	conn := connect(t, pg.AdminURL())
	if err := conn.QueryRow(t.Context(), `select count(*) from pg_stat_activity
		where state = 'active' and wait_event = 'PgSleep'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// A command that reads the keyboard can be suspended by nobody: this process has to renew its
// lease, and the shell would wait for it.
func TestCtrlZ(t *testing.T) {
	f := newFleet(t)
	f.join(5)
	s := f.open(nil, "/bin/sh", "-c", `"$TOOL" run -- sh -c 'echo ready; cat'`)
	s.shows("ready")
	s.types(ctrlZ)
	s.shows("cannot be suspended")
	s.types("a line\n")
	s.shows("a line\r\na line") // the terminal's echo, and cat's
	s.types(ctrlD)
	if code := s.ends(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// Ctrl-C reaches the command alone. If that ends of it, the script that runs it ends, too.
func TestCtrlCEndsTheScript(t *testing.T) {
	f := newFleet(t)
	f.join(5)
	for name, shell := range map[string]string{"sh": "/bin/sh", "bash": "/bin/bash"} {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat(shell); err != nil {
				t.Skip(err)
			}
			s := (&fleet{t, f.redis, f.url}).open(nil, shell, "-c",
				`for i in 1 2 3; do "$TOOL" run --linger 0 -- sh -c 'echo ready; exec sleep 100'; done; echo went on`)
			s.shows("ready")
			s.types(ctrlC)
			if code := s.ends(); code != -1 && code != exit.Signal+int(syscall.SIGINT) {
				t.Errorf("exit code %d", code)
			}
			if out := s.out.String(); strings.Contains(out, "went on") || strings.Contains(out, "ready") {
				t.Errorf("the script went on: %q", out)
			}
		})
	}
}

// A command that handles Ctrl-C goes on, with its script.
func TestCtrlCThatIsHandled(t *testing.T) {
	f := newFleet(t)
	f.join(5)
	s := f.open(nil, "/bin/bash", "-c",
		`"$TOOL" run -- sh -c 'trap "echo handled; exit 4" INT; echo ready; while :; do sleep 0.05; done'; echo "code $?"`)
	s.shows("ready")
	s.types(ctrlC)
	s.shows("handled")
	s.shows("code 4")
	s.ends()
}

// A job of an interactive shell: it runs in the background, stops when it wants to read, and reads
// when it is brought to the foreground.
func TestBackgroundJob(t *testing.T) {
	f := newFleet(t)
	f.join(5)
	if _, err := os.Stat("/bin/bash"); err != nil {
		t.Skip(err)
	}
	s := f.open([]string{"PS1=prompt> "}, "/bin/bash", "--norc", "--noprofile", "-i")
	s.shows("prompt>")
	s.types("\"$TOOL\" run --linger 0 -- sh -c 'echo re\"\"ady; read line; echo \"got $line\"' &\n")
	s.shows("ready")
	s.shows("") // the shell has the terminal meanwhile
	s.types("echo he''re\n")
	s.shows("here")
	s.types("fg\n")
	s.shows("run --linger") // what fg shows of the job
	s.types("a line\n")
	s.shows("got a line")
	s.shows("prompt>")
	s.types("exit\n")
	s.ends()
}

// An interactive shell manages jobs of its own in the terminal that it was given.
func TestShellAtATerminal(t *testing.T) {
	f := newFleet(t)
	f.join(5)
	if _, err := os.Stat("/bin/bash"); err != nil {
		t.Skip(err)
	}
	s := f.open([]string{"PS1=prompt> "}, "/bin/sh", "-c",
		`"$TOOL" run --linger 0 -- bash --norc --noprofile -i; read line; echo "read $line"`)
	s.shows("prompt>")
	s.types("echo sta''rted; cat\n")
	s.shows("started")
	s.types("to cat\n")
	s.shows("to cat\r\nto cat")
	s.types(ctrlZ)
	s.shows("Stopped")
	s.shows("prompt>")
	s.types("fg\n")
	s.shows("cat")
	s.types("again\n")
	s.shows("again\r\nagain")
	s.types(ctrlC)
	s.shows("prompt>")
	s.types("exit\n")
	s.shows("exit")
	s.types("a line\n")
	s.shows("read a line")
	if code := s.ends(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
