package top

import (
	"fmt"
	"strings"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/screen"
	"github.com/passbuddy/passbuddy/internal/status"
)

// styles are the screen's, in lipgloss's words. The renderer drops colours that the terminal lacks,
// and all of them with NO_COLOR.
var styles = map[screen.Style]lipgloss.Style{
	screen.Plain:   lipgloss.NewStyle(),
	screen.Head:    lipgloss.NewStyle().Bold(true),
	screen.Dim:     lipgloss.NewStyle().Faint(true),
	screen.Good:    lipgloss.NewStyle().Foreground(lipgloss.Green),
	screen.Look:    lipgloss.NewStyle().Foreground(lipgloss.Yellow),
	screen.Bad:     lipgloss.NewStyle().Foreground(lipgloss.Red).Bold(true),
	screen.Command: lipgloss.NewStyle().Foreground(lipgloss.Cyan),
	chosen:         lipgloss.NewStyle().Reverse(true),
}

const chosen = screen.Style(100)

// View implements tea.Model.
func (m Model) View() tea.View {
	var b strings.Builder
	for i, line := range m.Lines() {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(styles[line.Style].Render(line.Text))
	}
	v := tea.NewView(b.String())
	v.AltScreen = true
	return v
}

// Lines returns the lines that View shows, without escape sequences.
func (m Model) Lines() []screen.Line {
	width, height := max(m.width, 40), max(m.height, 8)
	if m.help {
		lines := []screen.Line{{Text: "passbuddy top", Style: screen.Head}}
		for _, text := range help {
			lines = append(lines, screen.Line{Text: screen.Cut(text, width)})
		}
		lines = append(lines, screen.Line{}, screen.Line{Text: "any key goes back", Style: screen.Dim})
		return lines[:min(len(lines), height)]
	}
	if m.document == nil {
		return []screen.Line{{Text: "asking Redis ..."}}
	}
	lines := screen.Answers(*m.document, width)
	lines = append(lines, m.sparklines(width)...)
	if m.err != nil {
		text := "✖ " + screen.Clean(m.err.Error()) + ". The figures are the last ones."
		lines = append(lines, screen.Line{Text: screen.Cut(text, width), Style: screen.Bad})
	}
	for i, f := range m.document.Findings {
		if f.Severity == status.Info || i == 2 || m.err != nil {
			break
		}
		one := screen.Finding(f, width, 2-i)
		if len(lines)+len(one) > height/2+2 {
			break
		}
		lines = append(lines, one...)
	}
	for i := range lines {
		lines[i].Text = screen.Cut(lines[i].Text, width)
	}
	lines = lines[:min(len(lines), height-3)]
	lines = append(lines, m.table(width, height-len(lines)-1)...)
	for len(lines) < height-1 {
		lines = append(lines, screen.Line{})
	}
	return append(lines, m.footer(width))
}

func (m Model) sparklines(width int) []screen.Line {
	n := min(history, (width-24)/2)
	if n < 8 || len(m.held) < 2 {
		return nil
	}
	text := fmt.Sprintf("%s held %s  waiting %s", strings.Repeat(" ", 9),
		sparkline(m.held, float64(m.document.Capacity.InForce), n), sparkline(m.waiting, 0, n))
	return []screen.Line{{Text: screen.Cut(text, width)}}
}

// table is the heading and as many processes as there is room for, the selected one among them.
func (m Model) table(width, room int) []screen.Line {
	list := shown(width)
	left := width
	for _, c := range list {
		if c.width > 0 {
			left -= c.width + 1
		}
	}
	by := m.sortColumn().head
	row := func(value func(c column) string) string {
		var b strings.Builder
		for i, c := range list {
			if i == 0 {
				b.WriteString(screen.Fit(value(c), max(8, left)))
				continue
			}
			b.WriteString(" " + screen.Right(value(c), c.width))
		}
		return b.String()
	}
	head := row(func(c column) string {
		if c.head == by {
			return strings.ToUpper(c.head)
		}
		return c.head
	})
	lines := []screen.Line{{Text: screen.Cut(head, width), Style: screen.Dim}}
	rows := m.rows()
	room = max(1, room-1)
	at, _, _ := m.current()
	first := min(max(0, at-room/2), max(0, len(rows)-room))
	for i := first; i < min(len(rows), first+room); i++ {
		p := rows[i]
		style := screen.Plain
		switch {
		case i == at:
			style = chosen
		case p.TTL > 0 && p.Age > p.TTL*0.6, p.OldestWait >= 2:
			style = screen.Look
		}
		text := screen.Cut(row(func(c column) string { return c.value(m.document, p) }), width)
		lines = append(lines, screen.Line{Text: text, Style: style})
	}
	return lines
}

func (m Model) footer(width int) screen.Line {
	style, text := screen.Dim, "q quit  ? help  space stop  / filter  ←→ sort  E evict  P pause  C capacity"
	switch {
	case m.ask != nil && m.ask.wants:
		style, text = screen.Head, m.ask.text+" "+m.ask.input+"_"
	case m.ask != nil:
		style, text = screen.Bad, m.ask.text+" [y/N]"
		if over := len([]rune(text)) - width; over > 0 { // the end of the question counts most
			text = screen.Cut(m.ask.text, width-7) + " [y/N]"
		}
	case m.typing:
		style, text = screen.Head, "/"+m.filter+"_"
	case m.busy != "":
		text = m.busy + " ..."
	case m.notice != "":
		style, text = screen.Head, m.notice
	case m.frozen:
		style, text = screen.Look, "stopped: space goes on"
	case m.filter != "":
		text = fmt.Sprintf("/%s: %d of %d processes; Esc clears it", m.filter, len(m.rows()),
			len(m.document.Processes))
	}
	return screen.Line{Text: screen.Cut(screen.Clean(text), width), Style: style}
}
