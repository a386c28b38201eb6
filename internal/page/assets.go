package page

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"time"
)

//go:embed assets
var assets embed.FS

// An asset is a file of the page.
type asset struct {
	body []byte
	mime string
	eTag string
}

// mimes are the types of the page's files. Go's own table depends on the machine.
var mimes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
	".txt":  "text/plain; charset=utf-8",
}

// files are the page's files by name. build changes with any of them: a page that has been open
// since before an upgrade learns from it that it is old.
var files, build = loadAssets()

func loadAssets() (map[string]asset, string) {
	all := make(map[string]asset)
	sum := sha256.New()
	entries, err := fs.ReadDir(assets, "assets")
	if err != nil {
		panic("bug: the page's files are missing: " + err.Error())
	}
	for _, entry := range entries {
		name := entry.Name()
		body, err := assets.ReadFile(path.Join("assets", name))
		if err != nil {
			panic("bug: a file of the page cannot be read: " + err.Error())
		}
		mime, known := mimes[path.Ext(name)]
		if !known {
			panic("bug: a file of the page has no type: " + name)
		}
		one := sha256.Sum256(body)
		sum.Write(one[:])
		all[name] = asset{body: body, mime: mime, eTag: `"` + hex.EncodeToString(one[:12]) + `"`}
	}
	return all, hex.EncodeToString(sum.Sum(nil)[:6])
}

// serveAsset serves a file of the page. A browser keeps it, and asks each time whether it changed.
func serveAsset(w http.ResponseWriter, r *http.Request, name string) {
	file, ok := files[name]
	if !ok {
		http.Error(w, "page: there is no such file", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", file.mime)
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", file.eTag)
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(file.body))
}
