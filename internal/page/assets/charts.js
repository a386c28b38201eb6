// The two charts, drawn by uPlot. Their figures are also a line of text, and a table.

import { attribute, byId, el, list, text } from './dom.js';
import { clock, number, span } from './format.js';

const marked = {
  capacity: 'C',
  paused: 'P',
  drained: 'D',
  resumed: 'R',
  evicted: 'E',
  revoked: 'E',
  'state lost': '!',
  reported: '!',
  expired: 'x',
  joined: '+',
  left: '−',
};

export class Charts {
  constructor(recent) {
    this.recent = recent;
    this.span = 300;
    this.end = Date.now() / 1000;
    this.events = [];
    this.plots = [];
    this.scrubbed = null; // index of the sample that is read; null: the newest
    this.table = byId('chart-table');
    for (const button of document.querySelectorAll('[data-span]')) {
      button.addEventListener('click', () => this.setSpan(Number(button.dataset.span)));
    }
    byId('scrub').addEventListener('input', (event) => this.scrub(Number(event.target.value)));
    byId('scrub').addEventListener('blur', () => this.read(null));
    new ResizeObserver(() => this.resize()).observe(byId('chart-permits'));
    byId('charts')
      .querySelector('details')
      .addEventListener('toggle', () => this.showTable());
    this.build();
  }

  setSpan(seconds) {
    this.span = seconds;
    for (const button of document.querySelectorAll('[data-span]')) {
      attribute(button, 'aria-pressed', String(Number(button.dataset.span) === seconds));
    }
    this.draw();
  }

  // build makes the plots anew: their colours are those of the theme.
  build() {
    for (const plot of this.plots) plot.destroy();
    const probe = document.body.appendChild(el('span', { hidden: true }));
    const colour = (name) => {
      probe.style.color = `var(--${name})`; // the canvas wants what it comes to in this theme
      return getComputedStyle(probe).color;
    };
    const muted = colour('muted'),
      line = colour('line');
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const axis = (more) => ({
      stroke: muted,
      font,
      grid: { stroke: line, width: 1 },
      ticks: { stroke: line, size: 4 },
      ...more,
    });
    const scale = { range: (u, least, most) => [0, Math.max(1, most ?? 1) * 1.15] };
    const time = axis({
      size: 26,
      space: 70,
      values: (u, at) => at.map((t) => clock(t * 1000).slice(0, this.span > 600 ? 5 : 8)),
    });
    const shared = {
      legend: { show: false },
      cursor: { sync: { key: 'passbuddy' }, drag: { x: false, y: false }, y: false },
      padding: [14, 26, 0, 0],
      hooks: { draw: [(u) => this.mark(u, muted, font)], setCursor: [(u) => this.hover(u)] },
    };
    const x = { time: true, range: () => [this.begin(), this.end] };
    const series = (label, name, more) => ({
      label,
      stroke: colour(name),
      width: 2,
      points: { show: false },
      ...more,
    });
    const whole = (u, at) => at.map((v) => (Number.isInteger(v) ? number(v) : ''));
    const permits = {
      ...shared,
      ...this.size('chart-permits'),
      scales: { x, y: scale },
      axes: [time, axis({ size: 46, values: whole })],
      series: [
        {},
        series('held', 'held', { fill: colour('held-fill') }),
        series('in use', 'in-use', { fill: colour('in-use-fill'), dash: [3, 2] }),
        // on top: held is mostly as high as the cap
        series('capacity', 'text', { dash: [8, 6], paths: uPlot.paths.stepped({ align: 1 }) }),
      ],
    };
    const waits = {
      ...shared,
      ...this.size('chart-waits'),
      scales: { x, y: scale, wait: scale },
      axes: [
        time,
        axis({ size: 46, values: whole }),
        axis({
          side: 1,
          size: 54,
          scale: 'wait',
          grid: { show: false },
          values: (u, at) => at.map((v) => span(v)),
        }),
      ],
      series: [
        {},
        series('callers', 'waiting', { fill: colour('waiting-fill') }),
        series('oldest wait', 'oldest', { scale: 'wait', dash: [6, 3] }),
      ],
    };
    probe.remove();
    this.plots = [
      new uPlot(permits, this.data(0), byId('chart-permits')),
      new uPlot(waits, this.data(1), byId('chart-waits')),
    ];
  }

  data(which) {
    const r = this.recent;
    return which === 0 ? [r.at, r.held, r.inUse, r.capacity] : [r.at, r.callers, r.oldestWait];
  }

  // begin is the left end: later than the span would have it while there is little to show.
  begin() {
    const first = this.recent.at[0] ?? this.end;
    return Math.max(this.end - this.span, Math.min(first, this.end - 60));
  }

  size(id) {
    const box = byId(id);
    return { width: Math.max(200, box.clientWidth), height: Math.max(100, box.clientHeight) };
  }

  resize() {
    this.plots[0]?.setSize(this.size('chart-permits'));
    this.plots[1]?.setSize(this.size('chart-waits'));
  }

  update(model) {
    this.end = model.at / 1000;
    this.events = model.events;
    this.draw();
  }

  draw() {
    this.plots.forEach((plot, i) => plot.setData(this.data(i)));
    const scrub = byId('scrub');
    attribute(scrub, 'max', String(Math.max(0, this.recent.at.length - 1)));
    if (this.scrubbed === null) {
      scrub.value = scrub.max;
      this.read(null);
    }
    this.describe();
    this.showTable();
  }

  // mark draws a line where something changed, with the letter of its kind.
  mark(u, colour, font) {
    const { ctx } = u;
    const { left, top, width, height } = u.bbox;
    const ratio = devicePixelRatio;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour;
    ctx.lineWidth = ratio;
    ctx.font = font.replace('12px', `${11 * ratio}px`);
    ctx.textAlign = 'center';
    ctx.setLineDash([2 * ratio, 3 * ratio]);
    let last = -Infinity;
    for (const event of [...this.events].reverse()) {
      const letter = marked[event.kind];
      const at = u.valToPos(event.at / 1000, 'x', true);
      if (!letter || at < left || at > left + width || at - last < 9 * ratio) continue;
      last = at;
      ctx.beginPath();
      ctx.moveTo(at, top);
      ctx.lineTo(at, top + height);
      ctx.stroke();
      ctx.fillText(letter, at, top - 3 * ratio);
    }
    ctx.restore();
  }

  hover(u) {
    if (document.activeElement === byId('scrub')) return;
    const over = u.cursor.left >= 0 && u.cursor.idx !== null && u.cursor.idx !== undefined;
    this.read(over ? u.cursor.idx : null);
  }

  // scrub reads the charts by keyboard or touch.
  scrub(index) {
    const plot = this.plots[0];
    const at = this.recent.at[index];
    if (at === undefined) return;
    plot.setCursor({ left: plot.valToPos(at, 'x'), top: 1 });
    this.read(index === this.recent.at.length - 1 ? null : index);
  }

  // read shows the figures of one sample as text.
  read(index) {
    const r = this.recent;
    this.scrubbed = index;
    const i = index ?? r.at.length - 1;
    if (i < 0 || r.at[i] === undefined || r.held[i] === null) {
      text(byId('reading'), '');
      return;
    }
    const line =
      `${clock(r.at[i] * 1000)}: ${number(r.held[i])} of ${number(r.capacity[i])} held, ` +
      `${number(r.inUse[i])} in use; ${number(r.callers[i])} waiting, ` +
      `oldest ${span(r.oldestWait[i])}`;
    text(byId('reading'), line);
    attribute(byId('scrub'), 'aria-valuetext', line);
  }

  // describe says in words what the charts show.
  describe() {
    const r = this.recent;
    const from = this.end - this.span;
    const inside = r.at.map((at, i) => i).filter((i) => r.at[i] >= from && r.held[i] !== null);
    if (inside.length === 0) return;
    const extent = (values) => {
      const some = inside.map((i) => values[i]);
      return `${number(Math.min(...some))} to ${number(Math.max(...some))}`;
    };
    const minutes = `${Math.round(this.span / 60)} minutes`;
    attribute(
      byId('chart-permits'),
      'aria-label',
      `Permits in the last ${minutes}: capacity ` +
        `${extent(r.capacity)}, held ${extent(r.held)}, in use ${extent(r.inUse)}`,
    );
    attribute(
      byId('chart-waits'),
      'aria-label',
      `Waiting in the last ${minutes}: ` +
        `${extent(r.callers)} callers, oldest wait at most ` +
        `${span(Math.max(...inside.map((i) => r.oldestWait[i])))}`,
    );
  }

  // showTable fills the table with some twenty samples, if it is open.
  showTable() {
    if (!byId('charts').querySelector('details').open) return;
    const r = this.recent;
    const inside = r.at
      .map((at, i) => i)
      .filter((i) => r.at[i] >= this.end - this.span && r.held[i] !== null);
    const step = Math.max(1, Math.ceil(inside.length / 20));
    const rows = inside.reverse().filter((_, n) => n % step === 0);
    list(
      this.table.tBodies[0],
      rows,
      () => el('tr', {}, el('th', { scope: 'row' }), ...Array.from({ length: 5 }, () => el('td'))),
      (tr, i) => {
        const cells = [
          clock(r.at[i] * 1000),
          number(r.capacity[i]),
          number(r.held[i]),
          number(r.inUse[i]),
          number(r.callers[i]),
          span(r.oldestWait[i]),
        ];
        cells.forEach((cell, n) => text(tr.cells[n], cell));
      },
    );
  }
}
