package throwaway

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// orphanEnv makes the test program act as a process that starts servers and is killed before it can
// stop them.
const orphanEnv = "PASSBUDDY_TEST_ORPHAN"

func orphanMain() {
	p, err := StartPostgres(context.Background(), PostgresOptions{})
	if err != nil {
		fmt.Println("skip", err)
		os.Exit(0)
	}
	r, err := StartRedis(context.Background(), RedisOptions{})
	if err != nil {
		fmt.Println("skip", err)
		p.Stop()
		os.Exit(0)
	}
	fmt.Println("started", p.URL(), r.Addr(), p.folder.path, r.folder.path)
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err == nil {
		fmt.Println("paused", p.Pause(context.Background()), r.Pause(context.Background()))
	}
	select {}
}

func TestServersDieWithAKilledParent(t *testing.T) { testOrphans(t, false) }
func TestPausedServersDieWithAKilledParent(t *testing.T) {
	t.Parallel() // PostgreSQL gives its backends 5 s
	testOrphans(t, true)
}

func testOrphans(t *testing.T, paused bool) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a child of its parent's death")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(self)
	parent.Env = append(os.Environ(), orphanEnv+"=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := parent.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(line)
	if fields[0] == "skip" {
		parent.Wait()
		t.Skip("the parent process had no server to leave behind (make test installs them): ", line)
	}
	url, addr, folders := fields[1], fields[2], fields[3:]

	session, err := pgx.Connect(testContext(t), url)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close(context.Background())
	client := dial(t, addr)
	if paused {
		fmt.Fprintln(in, "pause")
		if line, err := lines.ReadString('\n'); line != "paused <nil> <nil>\n" {
			t.Fatalf("the parent process says %q, %v", line, err)
		}
	}

	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	parent.Wait()
	// Both reads last until the server is gone.
	if _, err := session.WaitForNotification(testContext(t)); err == nil ||
		testContext(t).Err() != nil {
		t.Errorf("PostgreSQL: %v", err)
	}
	if err := client.SetDeadline(time.Now().Add(testDeadline)); err != nil {
		t.Fatal(err)
	}
	expectBroken(t, client)

	for _, path := range folders {
		sweep(filepath.Dir(path))
		if _, err := os.Stat(path); err != nil {
			t.Errorf("a folder too young to be judged: %v", err)
		}
		old := time.Now().Add(-2 * abandonedAfter)
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		sweep(filepath.Dir(path))
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("a folder left behind was not swept: %v", err)
		}
	}
}

func TestSweepSparesLiveFolders(t *testing.T) {
	f, err := newFolder("test", nil)
	if err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * abandonedAfter)
	if err := os.Chtimes(f.path, old, old); err != nil {
		t.Fatal(err)
	}
	sweep(filepath.Dir(f.path))
	if _, err := os.Stat(f.path); err != nil {
		t.Errorf("a folder in use was swept: %v", err)
	}
	if err := f.remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(f.path); !os.IsNotExist(err) {
		t.Errorf("after remove: %v", err)
	}
}

// Folders are in memory where there is room, and where TMPDIR says if it says anything.
func TestFoldersAreInMemory(t *testing.T) {
	t.Setenv("TMPDIR", "")
	want := append(memoryFolders(), os.TempDir())[0]
	if base, err := baseFor(nil); err != nil || base != want {
		t.Errorf("without TMPDIR: %q, %v; want %q", base, err, want)
	}
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	if base, err := baseFor(nil); err != nil || base != dir {
		t.Errorf("TMPDIR=%s: %q, %v", dir, base, err)
	}
}

// What a killed process left in memory is removed, also by one that keeps its files elsewhere.
func TestMemoryIsSwept(t *testing.T) {
	if len(memoryFolders()) == 0 {
		t.Skip("this system has no file system in memory with room and leave to write")
	}
	left, err := os.MkdirTemp(sharedMemory, folderPrefix+"test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(left)
	old := time.Now().Add(-2 * abandonedAfter)
	if err := os.Chtimes(left, old, old); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	f, err := newFolder("test", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.remove()
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("a folder left behind in memory was not swept: %v", err)
	}
}
