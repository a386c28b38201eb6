package top

import (
	"fmt"
	"strconv"
	"strings"

	tea "charm.land/bubbletea/v2"

	"github.com/passbuddy/passbuddy/internal/status"
	"github.com/passbuddy/passbuddy/semaphore"
)

// help lists the keys.
var help = []string{
	"q, Ctrl-C     quit",
	"?             this help",
	"space         stop looking, and go on",
	"/             filter: words of owner, host, program, version, pool; Esc clears it",
	"up, down, j k select a process; PgUp, PgDn by pages",
	"left, right   sort by another column; < the other way round",
	"+ -           look less often, more often",
	"",
	"Upper case changes something, and asks first:",
	"E             evict the selected process: recall all that it holds",
	"F             the same by force: after 10s its connections are cut",
	"P  D          pause grants; pause and drain (resumes by itself after 30s if it cannot)",
	"R             resume",
	"C             set the capacity; 0 goes back to what processes declare",
}

// press does what a key says.
func (m Model) press(key tea.KeyPressMsg) (tea.Model, tea.Cmd) {
	name := key.String()
	if name == "ctrl+c" {
		return m, tea.Quit
	}
	switch {
	case m.ask != nil:
		return m.answer(key)
	case m.typing:
		return m.typeFilter(key), nil
	case m.help:
		m.help = false
		return m, nil
	}
	m.notice = ""
	switch name {
	case "q":
		return m, tea.Quit
	case "?":
		m.help = true
	case "space", " ":
		m.frozen = !m.frozen
	case "/":
		m.typing = true
	case "esc":
		m.filter = ""
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "pgup":
		m.move(-10)
	case "pgdown":
		m.move(10)
	case "home", "g":
		m.move(-1 << 20)
	case "end":
		m.move(1 << 20)
	case "left", "h":
		m.sort = (m.sort + len(shown(m.width)) - 1) % len(shown(m.width))
	case "right", "l":
		m.sort = (m.sort + 1) % len(shown(m.width))
	case "<":
		m.reverse = !m.reverse
	case "+":
		m.refresh = min(2*m.refresh, maxRefresh)
	case "-":
		m.refresh = max(m.refresh/2, minRefresh)
	default:
		return m.verb(key.Text), nil
	}
	return m, nil
}

func (m Model) typeFilter(key tea.KeyPressMsg) Model {
	switch key.String() {
	case "enter":
		m.typing = false
	case "esc":
		m.typing, m.filter = false, ""
	case "backspace":
		if runes := []rune(m.filter); len(runes) > 0 {
			m.filter = string(runes[:len(runes)-1])
		}
	default:
		if len(m.filter) < 100 {
			m.filter += key.Text
		}
	}
	return m
}

// verb asks about what an upper-case key would change.
func (m Model) verb(key string) Model {
	if m.document == nil || m.err != nil && strings.Contains("EFPDRC", key) && key != "" {
		if key != "" && strings.Contains("EFPDRC", key) {
			m.notice = "nothing is changed while Redis cannot be asked"
		}
		return m
	}
	if m.busy != "" && key != "" && strings.Contains("EFPDC", key) {
		m.notice = "wait: " + m.busy + " is under way"
		return m
	}
	d := m.document
	switch key {
	case "E", "F":
		_, p, ok := m.current()
		if !ok || p.Permits == 0 {
			m.notice = "the selected process holds nothing"
			return m
		}
		force := key == "F"
		text := fmt.Sprintf("Recall the %s of %s?", status.Count(p.Permits, "permit"), p.Title())
		if force {
			text = fmt.Sprintf("Recall the %s of %s, and cut what is left after %v?",
				status.Count(p.Permits, "permit"), p.Title(), evictTimeout)
		}
		m.ask = &question{verb: "evict " + p.Owner, text: text, do: func(m Model, _ string) tea.Cmd {
			return m.act("evict "+p.Owner, func() error {
				return m.actor.Evict(m.ctx, p.Session, semaphore.EvictOptions{Force: force,
					Timeout: evictTimeout})
			})
		}}
	case "P", "D":
		drain := key == "D"
		name, text := "pause", fmt.Sprintf("Grant nothing new to %s until it is resumed? %s stay held.",
			status.Count(len(d.Processes), "process"), status.Count(d.Held, "permit"))
		opts := semaphore.PauseOptions{Drain: drain}
		if drain {
			opts.Timeout = drainTimeout
			name, text = "drain", fmt.Sprintf("Recall all %s, and grant nothing until it is resumed? "+
				"After %v without success it resumes by itself.", status.Count(d.Held, "permit"),
				drainTimeout)
		}
		m.ask = &question{verb: name, text: text, do: func(m Model, _ string) tea.Cmd {
			return m.act(name, func() error { return m.actor.Pause(m.ctx, opts) })
		}}
	case "R":
		if d.Pause == nil {
			m.notice = "nobody has paused it"
			return m
		}
		m.ask = &question{verb: "resume", text: fmt.Sprintf("End the pause of %s?", d.Pause.By),
			do: func(m Model, _ string) tea.Cmd {
				return m.act("resume", func() error { return m.actor.Resume(m.ctx) })
			}}
	case "C":
		m.ask = &question{verb: "capacity", wants: true, text: fmt.Sprintf("Capacity (now %d, %d held; "+
			"0: what processes declare):", d.Capacity.InForce, d.Held)}
	}
	return m
}

// answer takes a key for the question that is asked. Only y confirms.
func (m Model) answer(key tea.KeyPressMsg) (tea.Model, tea.Cmd) {
	q := *m.ask
	name := key.String()
	if q.wants {
		switch {
		case name == "esc":
			m.ask = nil
		case name == "backspace" && q.input != "":
			q.input = q.input[:len(q.input)-1]
			m.ask = &q
		case name == "enter":
			return m.confirmCapacity(q.input), nil
		case len(key.Text) == 1 && key.Text[0] >= '0' && key.Text[0] <= '9' && len(q.input) < 7:
			q.input += key.Text
			m.ask = &q
		}
		return m, nil
	}
	m.ask = nil
	if key.Text != "y" && key.Text != "Y" {
		m.notice = q.verb + ": nothing was changed"
		return m, nil
	}
	m.busy = q.verb
	return m, q.do(m, q.input)
}

// confirmCapacity asks once more, now that the number is known.
func (m Model) confirmCapacity(input string) Model {
	n, err := strconv.Atoi(input)
	if err != nil || n > status.NoCapacity {
		m.ask, m.notice = nil, "capacity: nothing was changed"
		return m
	}
	text := fmt.Sprintf("Set the capacity from %d to %d for %s?", m.document.Capacity.InForce, n,
		status.Count(len(m.document.Processes), "process"))
	if n == 0 {
		text = "Withdraw the operator's capacity?"
	}
	if more := m.document.Held - n; n > 0 && more > 0 {
		text += fmt.Sprintf(" Of the %d held, %d are recalled.", m.document.Held, more)
	}
	m.ask = &question{verb: "capacity", text: text, do: func(m Model, _ string) tea.Cmd {
		return m.act("capacity", func() error { return m.actor.SetCapacity(m.ctx, n) })
	}}
	return m
}

func (m Model) act(verb string, do func() error) tea.Cmd {
	return func() tea.Msg { return acted{verb, do()} }
}
