package bench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// machine describes the machine that the figures are from.
type machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"` // that the program may use
	Memory string `json:"memory,omitempty"`
	OS     string `json:"os"`
	Kernel string `json:"kernel"`
	// above a few tenths other programs were running too
	Load      string `json:"load_average_at_start,omitempty"`
	Autogroup bool   `json:"sched_autogroup,omitempty"` // Linux divides the CPU by session
	Go        string `json:"go"`
	Postgres  string `json:"postgres"`
	Redis     string `json:"redis"`
	PgBouncer string `json:"pgbouncer,omitempty"`
}

// busyLoad is the load average per core from which on other programs must have been running.
const busyLoad = 0.5

// cautions returns what a reader of the figures should know.
func (m machine) cautions() (texts []string) {
	if text := m.caution(); text != "" {
		texts = append(texts, text)
	}
	if m.Autogroup {
		texts = append(texts, autogroupText)
	}
	return texts
}

// caution returns a warning if the figures are rough.
func (m machine) caution() string {
	if load, err := strconv.ParseFloat(m.Load, 64); err == nil && load > busyLoad*float64(m.Cores) {
		return fmt.Sprintf(
			"Others were at work on this machine (load average %s at the start): take these "+
				"figures as rough.", m.Load)
	}
	return ""
}

// autogroupText says what division of the CPU by session means here. PostgreSQL makes each backend
// a session. All other programs that the benchmarks start are in the benchmarks' session.
const autogroupText = "The kernel shares the CPU out by session " +
	"(kernel.sched_autogroup_enabled is 1). Each backend of Postgres is a session of its own. " +
	"The workers, PgBouncer and Redis share one. So where the CPU is short, one backend may get " +
	"as much of it as all of those together."

func describeMachine(ctx context.Context, s *servers) machine {
	m := machine{
		CPU: runtime.GOARCH, Cores: runtime.NumCPU(), OS: runtime.GOOS, Go: runtime.Version(),
		Kernel:   command(ctx, "uname", "-sr"),
		Postgres: s.postgresVersion, Redis: s.redisVersion, PgBouncer: s.pgBouncerVersion,
	}
	switch runtime.GOOS {
	case "linux":
		m.CPU = or(field("/proc/cpuinfo", "model name", ":"), m.CPU)
		m.Memory = field("/proc/meminfo", "MemTotal", ":")
		m.OS = or(strings.Trim(field("/etc/os-release", "PRETTY_NAME", "="), `"`), m.OS)
		if load, err := os.ReadFile("/proc/loadavg"); err == nil {
			m.Load, _, _ = strings.Cut(string(load), " ")
		}
		autogroup, _ := os.ReadFile("/proc/sys/kernel/sched_autogroup_enabled")
		m.Autogroup = strings.TrimSpace(string(autogroup)) == "1"
	case "darwin":
		m.CPU = or(command(ctx, "sysctl", "-n", "machdep.cpu.brand_string"), m.CPU)
		m.OS = "macOS " + command(ctx, "sw_vers", "-productVersion")
	}
	return m
}

// command returns a program's output, or nothing on failure: the description is optional.
func command(ctx context.Context, name string, args ...string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, name, args...).Output()
	return strings.TrimSpace(string(out))
}

// field returns the value of the first line of a file that begins with name.
func field(path, name, separator string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), separator)
		if strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
