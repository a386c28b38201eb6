package page

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"
)

// vendored are the files that we did not write: uPlot 1.6.32, MIT, of
// https://github.com/leeoniya/uPlot. They come from `npm pack uplot@1.6.32`: dist/uPlot.iife.min.js,
// dist/uPlot.min.css and LICENSE, unchanged. To take another version, replace all three.
var vendored = map[string]string{
	"uplot-license.txt": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
	"uplot.css":         "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
	"uplot.js":          "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
}

func TestVendoredFilesAreUnchanged(t *testing.T) {
	for name, want := range vendored {
		sum := sha256.Sum256(files[name].body)
		if got := hex.EncodeToString(sum[:]); got != want {
			t.Errorf("%s has the checksum %s, want %s", name, got, want)
		}
	}
	for name := range files {
		if _, ok := vendored[name]; strings.HasPrefix(name, "uplot") && !ok {
			t.Errorf("%s has no checksum", name)
		}
	}
}
