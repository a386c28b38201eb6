package demo

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"strings"
	"testing"
	"time"
)

func TestOptionDefaults(t *testing.T) {
	got, err := ParseOptions(nil, io.Discard)
	want := Options{
		processes: 8, goroutines: 40, capacity: 20, duration: 10 * time.Second,
		query: "select pg_sleep(random()*0.02)",
		scope: "connection", integration: "pgxpool", svg: "passbuddy-demo.svg",
	}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestOptionsRefused(t *testing.T) {
	for _, args := range []string{
		"-processes 0", "-processes -1", "-processes 1000", "-goroutines 0", "-cap 0", "-cap -5",
		"-cap many",
		"-duration 0s", "-duration -1s", "-duration 2h", "-duration 5", "-query=", "-svg=",
		"-scope pool", "-integration gorm",
		"-redis http://127.0.0.1", "-postgres mysql://127.0.0.1",
		"-postgres postgres://127.0.0.1:port/", "-postgres 127.0.0.1",
	} {
		name, _, _ := strings.Cut(args, " ")
		name, _, _ = strings.Cut(name, "=")
		if _, err := ParseOptions(strings.Fields(args), io.Discard); err == nil ||
			!strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v does not name %s", args, err, name)
		}
	}
	if _, err := ParseOptions([]string{"now"}, io.Discard); err == nil ||
		!strings.Contains(err.Error(), `"now"`) {
		t.Errorf("with an extra argument: %v", err)
	}
}

func TestOptionErrorsKeepPasswordsBack(t *testing.T) {
	for _, args := range [][]string{
		{"-redis", "redis://user:secret@127.0.0.1:port/"},
		{"-postgres", "postgres://user:secret@127.0.0.1:port/"},
		{"-postgres", "postgres://user:secret@127.0.0.1/?sslmode=perhaps"},
	} {
		if _, err := ParseOptions(args, io.Discard); err == nil ||
			strings.Contains(err.Error(), "secret") {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestOptionHelp(t *testing.T) {
	var help bytes.Buffer
	if _, err := ParseOptions([]string{"-h"}, &help); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
	for _, name := range []string{"-processes", "-goroutines", "-cap", "-duration", "-query",
		"-scope", "-integration", "-redis", "-postgres", "-svg"} {
		if !strings.Contains(help.String(), name+" ") {
			t.Errorf("help does not mention %s", name)
		}
	}
}
