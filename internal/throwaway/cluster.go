package throwaway

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// A freshly initialised database cluster is some 28 MB in 1,000 files and takes initdb a second of
// both cores. So the first one that a process makes is kept in memory, and no file is left behind.
// Later ones are written from it in a tenth of that time.
var clusters struct {
	sync.Mutex
	// by the folder of the programs: another version makes another cluster
	byDir map[string]snapshot
}

type snapshot []snapshotFile

type snapshotFile struct {
	path string // relative to the cluster
	mode fs.FileMode
	data []byte
}

// makeCluster creates a database cluster at dir, owned by a.
func makeCluster(ctx context.Context, bin, dir string, a *account) error {
	clusters.Lock()
	defer clusters.Unlock()
	if snap, ok := clusters.byDir[bin]; ok {
		if err := snap.write(dir); err != nil {
			return fmt.Errorf("throwaway: %w", err)
		}
		return a.own(dir)
	}
	if err := initdb(ctx, bin, dir, a); err != nil {
		return err
	}
	snap, err := takeSnapshot(dir)
	if err != nil {
		return fmt.Errorf("throwaway: %w", err)
	}
	if clusters.byDir == nil {
		clusters.byDir = make(map[string]snapshot)
	}
	clusters.byDir[bin] = snap
	return nil
}

func initdb(ctx context.Context, bin, dir string, a *account) error {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "initdb"),
		// pg_hba.conf is replaced before the first start.
		"--pgdata="+dir, "--username="+superuser, "--auth=trust",
		"--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions",
		"--wal-segsize=1", // MB, instead of 16: less to write
	)
	cmd.Dir = filepath.Dir(dir) // The account may have no access to our own working directory.
	cmd.Env = serverEnv()
	a.prepare(cmd, sigStop)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("throwaway: initdb: %w; it said:\n%s", err, out)
	}
	return nil
}

func takeSnapshot(dir string) (snapshot, error) {
	var snap snapshot
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		file := snapshotFile{path: rel, mode: info.Mode()}
		if info.Mode().IsRegular() {
			if file.data, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		snap = append(snap, file)
		return nil
	})
	return snap, err
}

func (s snapshot) write(dir string) error {
	for _, file := range s { // Folders precede their contents.
		path := filepath.Join(dir, file.path)
		var err error
		if file.mode.IsDir() {
			err = os.Mkdir(path, file.mode.Perm())
		} else {
			err = os.WriteFile(path, file.data, file.mode.Perm())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// serverEnv returns the environment of the server programs. Messages are in English, because this
// package searches some of them. It has none of the PG* variables, which could redirect the
// programs.
func serverEnv() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
}
