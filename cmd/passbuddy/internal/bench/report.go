package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/show"
)

// schema changes whenever readers of the JSON must change.
const schema = "passbuddy-bench/1"

// report is a whole run, as the JSON shows it.
type report struct {
	Schema   string    `json:"schema"`
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"`
	Complete bool      `json:"complete"` // false: the run was interrupted or gave up
	Machine  machine   `json:"machine"`
	Settings settings  `json:"settings"`
	Targets  []target  `json:"targets"`
	Cells    []*cell   `json:"cells"`
}

// settings holds the values common to all cells, and the times of each table. Rounds, WarmupSeconds
// and DurationSeconds are those of the saturated table.
type settings struct {
	Capacity        int              `json:"cap"`
	Rounds          int              `json:"rounds"`
	WarmupSeconds   float64          `json:"warmup_s"`
	DurationSeconds float64          `json:"duration_s"`
	Tables          map[string]times `json:"tables"`

	ProgressWindow float64 `json:"progress_window_s"` // length of the windows of worst_window_ops
	SampleInterval float64 `json:"sample_interval_ms"`
	ExecMode       string  `json:"exec_mode"` // pgx's default_query_exec_mode, or best
	// the same, through PgBouncer in transaction mode
	ThroughBouncer string `json:"exec_mode_pgbouncer"`
	TightServer    int    `json:"tight_server_connections"`
}

// times holds how long the cells of a table run, and how often.
type times struct {
	Rounds          int     `json:"rounds"`
	WarmupSeconds   float64 `json:"warmup_s"`
	DurationSeconds float64 `json:"duration_s"`
}

func (t times) text(of *table) string {
	return fmt.Sprintf("Table %s: rounds: %d; %gs measured in each cell after %gs of warm-up.",
		of.name, t.Rounds, t.DurationSeconds, t.WarmupSeconds)
}

func (s settings) execModeText() string {
	if s.ExecMode != execModeBest {
		return fmt.Sprintf("pgx's mode %s, by all alike", s.ExecMode)
	}
	return fmt.Sprintf("pgx's mode %s, through PgBouncer in transaction mode %s", execModeCache,
		s.ThroughBouncer)
}

func settingsOf(o Options, s *servers) settings {
	all := make(map[string]times)
	for _, t := range allTables {
		as := o.timedAs(scenario{table: t})
		all[t.name] = times{as.rounds, as.warmup.Seconds(), as.duration.Seconds()}
	}
	return settings{
		Tables:   all,
		Capacity: o.capacity, Rounds: o.rounds, WarmupSeconds: o.warmup.Seconds(),
		DurationSeconds: o.duration.Seconds(),
		ProgressWindow:  min(progressWindow, o.duration).Seconds(),
		SampleInterval:  milliseconds(sampleInterval),
		ExecMode:        s.execMode,
		ThroughBouncer:  s.execModeOf(strategy{poolMode: "transaction"}),
		TightServer:     o.capacity + spareConnections,
	}
}

// finish computes the summaries, ratios and targets from the rounds.
func (r *report) finish() {
	for _, c := range r.Cells {
		c.summarize()
	}
	for _, c := range r.Cells {
		for _, rival := range []strategy{bouncerTx, static} {
			other := r.rival(c, rival.name)
			if other == nil {
				continue
			}
			if ratio, ok := c.ratioTo(other, opsPerSecond); ok {
				if c.Ratios == nil {
					c.Ratios = make(map[string]spread)
				}
				c.Ratios[rival.name] = ratio
			}
		}
		for _, rival := range []strategy{bouncerTx, uncapped} {
			other := r.rival(c, rival.name)
			if c.Table == "" || other == nil {
				continue
			}
			if ratio, ok := c.ratioTo(other, latencyP99); ok {
				if c.LatencyRatios == nil {
					c.LatencyRatios = make(map[string]spread)
				}
				c.LatencyRatios[rival.name] = ratio
			}
		}
	}
	r.Targets = judge(r)
}

// empty reports that no cell has figures.
func (r *report) empty() bool {
	for _, c := range r.Cells {
		if len(c.Rounds) > 0 {
			return false
		}
	}
	return true
}

// broken returns the promises that PassBuddy broke, and the cells that failed.
func (r *report) broken() error {
	var errs []error
	for _, c := range r.Cells {
		for _, m := range c.Rounds {
			if m.Error != "" {
				errs = append(errs, fmt.Errorf("round %d of %v: %s", m.Round, c.spec, m.Error))
			}
		}
		if c.spec.strategy.scope == "" || !c.measured() {
			continue
		}
		if peak, _ := c.capped(); peak.Max > float64(r.Settings.Capacity) {
			errs = append(errs, fmt.Errorf("%v: there were %.0f backends, more than the cap of %d",
				c.spec, peak.Max, r.Settings.Capacity))
		}
		if n := c.Summary[operationsFailed].Max; n > 0 {
			errs = append(errs, fmt.Errorf("%v: %.0f operations failed", c.spec, n))
		}
	}
	return errors.Join(errs...)
}

// writeFiles writes the files that o names, and prints their paths.
func writeFiles(out io.Writer, o Options, r *report) error {
	fmt.Fprintln(out)
	if o.json != "" {
		text, err := json.MarshalIndent(r, "", " ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.json, append(text, '\n'), 0o644); err != nil {
			return err
		}
		fmt.Fprintln(out, "Figures: ", o.json)
	}
	var pictures []picture
	if o.svg != "" {
		pictures = drawPictures(r)
		if err := os.MkdirAll(o.svg, 0o755); err != nil {
			return err
		}
		for _, p := range pictures {
			if err := os.WriteFile(filepath.Join(o.svg, p.name), p.document, 0o644); err != nil {
				return err
			}
		}
		fmt.Fprintf(out, "Pictures: %d in %s\n", len(pictures), o.svg)
	}
	if o.markdown != "" {
		if err := writeMarkdown(o.markdown, o.svg, pictures, r); err != nil {
			return err
		}
		fmt.Fprintln(out, "Document:", o.markdown)
	}
	return nil
}

// figure formats a number with about three digits.
func figure(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 0.01:
		return fmt.Sprintf("%.4f", v)
	case v < 1:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return show.Thousands(int64(v + 0.5))
}
