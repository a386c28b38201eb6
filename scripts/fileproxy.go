//go:build ignore

// Fileproxy writes the modules of the checkout as a module proxy: a folder that GOPROXY can name
// by a file:// URL. So a release can be installed as users will do it, before it is published. Its
// arguments are the proxy's folder, the version that all modules get, and the modules, each as
// path=folder. The current folder is the root of the checkout. Each module holds what git knows of
// its folder, as it is on disk, without the modules below. See release-check.sh.
package main

import (
	"archive/zip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: fileproxy FOLDER VERSION PATH=FOLDER...")
		os.Exit(2)
	}
	proxy, version, modules := os.Args[1], os.Args[2], make(map[string]string)
	for _, arg := range os.Args[3:] {
		path, dir, _ := strings.Cut(arg, "=")
		if path != strings.ToLower(path) || dir == "" {
			fail(fmt.Errorf("%s is no path=folder in lower case", arg)) // a proxy escapes capitals
		}
		modules[path] = dir
	}
	for path, dir := range modules {
		fail(publish(filepath.Join(proxy, path, "@v"), path, dir, version))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "fileproxy:", err)
		os.Exit(1)
	}
}

// publish writes what a proxy answers for one module: list, .info, .mod and .zip.
func publish(to, path, dir, version string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	gomod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return err
	}
	info := fmt.Sprintf(`{"Version":%q,"Time":%q}`, version, time.Now().UTC().Format(time.RFC3339))
	for name, text := range map[string]string{
		"list": version + "\n", version + ".info": info, version + ".mod": string(gomod),
	} {
		if err := os.WriteFile(filepath.Join(to, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	out, err := os.Create(filepath.Join(to, version+".zip"))
	if err != nil {
		return err
	}
	defer out.Close()
	z := zip.NewWriter(out)
	if err := pack(z, path+"@"+version+"/", dir); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return out.Close()
}

// pack adds the module's files, and the repository's LICENSE if it has none of its own: go does the
// same with a tag.
func pack(z *zip.Writer, prefix, dir string) error {
	names, err := files(dir)
	if err != nil {
		return err
	}
	licensed := false
	for _, name := range names {
		licensed = licensed || name == "LICENSE"
		if err := add(z, prefix+name, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if licensed {
		return nil
	}
	return add(z, prefix+"LICENSE", "LICENSE")
}

// files lists what git knows of a module's folder, without the modules below it.
func files(dir string) (names []string, err error) {
	list, err := exec.Command("git", "-C", dir, "ls-files", "-z").Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files in %s: %w", dir, err)
	}
	all := strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00")
	var below []string
	for _, name := range all {
		if at, nested := strings.CutSuffix(name, "/go.mod"); nested {
			below = append(below, at+"/")
		}
	}
next:
	for _, name := range all {
		for _, other := range below {
			if strings.HasPrefix(name, other) {
				continue next
			}
		}
		// A deleted file is no part of a commit to come, and a link is no part of a module.
		if at, err := os.Lstat(filepath.Join(dir, name)); err == nil && at.Mode().IsRegular() {
			names = append(names, name)
		}
	}
	return names, nil
}

func add(z *zip.Writer, name, file string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := z.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return err
}
