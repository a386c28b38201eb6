// Package top is `passbuddy top`: the fleet in a terminal, again and again, and verbs that change
// it.
//
// [Model] is a value of bubbletea: Update says what becomes of it, View shows it, and neither asks
// anybody. It returns commands for all that is to be done.
package top

import (
	"context"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/passbuddy/passbuddy/internal/status"
	"github.com/passbuddy/passbuddy/semaphore"
)

// An Actor changes a fleet: a *semaphore.Inspector.
type Actor interface {
	SetCapacity(ctx context.Context, n int) error
	Pause(ctx context.Context, opts semaphore.PauseOptions) error
	Resume(ctx context.Context) error
	Evict(ctx context.Context, session string, opts semaphore.EvictOptions) error
}

// A Source reads the fleet; before is the last document that it returned, or nil.
type Source func(ctx context.Context, before *status.Document) (status.Document, error)

const (
	minRefresh, maxRefresh = 500 * time.Millisecond, 60 * time.Second
	// history is how many looks the sparklines show.
	history = 40
	// drainTimeout bounds a drain that was begun here: nobody may be there to end it.
	drainTimeout = 30 * time.Second
	evictTimeout = 10 * time.Second
)

// A Model holds all that the terminal shows.
type Model struct {
	ctx     context.Context
	source  Source
	actor   Actor
	refresh time.Duration

	document *status.Document // nil: none was read yet
	err      error            // of the last look
	held     []float64        // of the last looks
	waiting  []float64
	looks    []status.Document // of the last minute, for its timeouts
	asking   bool              // a look is under way

	width, height int
	frozen        bool // it does not look until it is told to go on
	help          bool

	sort     int
	reverse  bool
	filter   string
	typing   bool   // a filter
	selected string // session

	ask    *question
	notice string // what a verb came to
	busy   string // the verb that is under way
}

// A question is asked before a verb changes something.
type question struct {
	text  string
	verb  string
	input string // of a verb that takes a number
	wants bool   // it takes one
	do    func(m Model, input string) tea.Cmd
}

// New returns a model that looks each refresh.
func New(ctx context.Context, source Source, actor Actor, refresh time.Duration) Model {
	return Model{
		ctx: ctx, source: source, actor: actor, refresh: min(max(refresh, minRefresh), maxRefresh),
		width: 80, height: 24, asking: true, // Init does
	}
}

// looked holds the result of a look.
type looked struct {
	document status.Document
	err      error
}

// due says that it is time to look again.
type due struct{}

// acted holds the outcome of a verb.
type acted struct {
	verb string
	err  error
}

// Init looks for the first time.
func (m Model) Init() tea.Cmd { return m.look() }

func (m Model) look() tea.Cmd {
	var before *status.Document
	if len(m.looks) > 0 {
		before = &m.looks[0]
	}
	return func() tea.Msg {
		d, err := m.source(m.ctx, before)
		return looked{d, err}
	}
}

func (m Model) later() tea.Cmd {
	return tea.Tick(m.refresh, func(time.Time) tea.Msg { return due{} })
}

// Update implements tea.Model.
func (m Model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case looked:
		m.asking = false
		m.take(msg)
		return m, m.later()
	case due:
		if m.frozen || m.asking {
			return m, m.later()
		}
		m.asking = true
		return m, m.look()
	case acted:
		m.busy = ""
		m.notice = msg.verb + ": done"
		if msg.err != nil {
			m.notice = msg.verb + ": " + msg.err.Error()
		}
	case tea.KeyPressMsg:
		return m.press(msg)
	}
	return m, nil
}

// take keeps what a look returned. A look that fails leaves the last figures to be seen, with the
// error above them.
func (m *Model) take(l looked) {
	m.err = l.err
	if l.err != nil {
		if m.document == nil {
			m.document = &l.document
		}
		return
	}
	d := l.document
	m.document = &d
	m.held = appended(m.held, float64(d.Held))
	m.waiting = appended(m.waiting, float64(d.Callers))
	looks := append([]status.Document(nil), m.looks...)
	looks = append(looks, d)
	for len(looks) > 1 && d.At.Sub(looks[1].At) >= time.Minute {
		looks = looks[1:]
	}
	if d.At.Sub(looks[0].At) > 2*time.Minute { // it was frozen, or Redis's clock was set
		looks = looks[len(looks)-1:]
	}
	m.looks = looks
	if m.selected == "" {
		if rows := m.rows(); len(rows) > 0 {
			m.selected = rows[0].Session
		}
	}
}

func appended(list []float64, value float64) []float64 {
	list = append(append([]float64(nil), list...), value)
	return list[max(0, len(list)-history):]
}
