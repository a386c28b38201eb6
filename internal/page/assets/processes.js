// The table of processes: sorted, filtered, and each can be opened.

import { barParts } from './answers.js';
import { attribute, byId, el, list, text } from './dom.js';
import { ago, clock, number, plural, shorten, span, utc } from './format.js';
import { bar, barLabel, updateBar } from './tiles.js';

// most is how many rows are drawn. The filter finds the others.
const most = 200;

const dash = (n, show) => (n > 0 ? show(n) : '–');

// The columns: their title, what they are sorted by, and their text. Those with a class are left
// out where the screen is narrow.
const columns = [
  { key: 'owner', title: 'Process' },
  { key: 'permits', title: 'Permits' },
  { key: 'inUse', title: 'In use', show: (p) => number(p.inUse), class: 'mid' },
  { key: 'idle', title: 'Idle', show: (p) => number(p.idle), class: 'mid' },
  {
    key: 'due',
    title: 'Share',
    show: (p) => dash(p.due, (n) => number(Math.round(n * 10) / 10)),
    class: 'mid',
  },
  { key: 'callers', title: 'Waiting', show: (p) => dash(p.callers, number) },
  { key: 'oldestWait', title: 'Oldest wait', show: (p) => dash(p.oldestWait, span), class: 'mid' },
  {
    key: 'oldestUse',
    title: 'Oldest checkout',
    show: (p) => dash(p.oldestUse, span),
    class: 'mid',
  },
  {
    key: 'recentTimeouts',
    title: 'Timeouts, 1 min',
    show: (p) => dash(p.recentTimeouts, number),
    class: 'far',
  },
  {
    key: 'started',
    title: 'Started',
    show: (p, m) => (p.started ? ago(p.started, m.at) : '–'),
    class: 'far',
  },
  { key: 'version', title: 'Version', show: (p) => p.version || '–', class: 'far' },
  { key: 'age', title: 'Heard', show: (p) => `${span(p.age)} ago`, class: 'far' },
];

const filters = {
  all: () => true,
  holding: (p) => p.permits > 0,
  waiting: (p) => p.callers > 0,
  idle: (p) => p.idle > 0,
};

export class Processes {
  // evict is called with a process to evict it, or is null: read-only.
  constructor() {
    this.model = null;
    this.evict = null;
    this.rows = new Map(); // session -> { tr, more, cells, ... }
    this.open = new Set(); // sessions
    this.sort = { key: 'permits', down: true };
    this.body = byId('process-table').tBodies[0];
    this.readAddress();
    const head = byId('process-table').tHead.rows[0];
    for (const column of columns) {
      head.append(
        el(
          'th',
          { scope: 'col', class: column.class ?? '' },
          el(
            'button',
            {
              type: 'button',
              click: () => this.sortBy(column.key),
            },
            column.title,
            el('span', { class: 'arrow', 'aria-hidden': 'true' }),
          ),
        ),
      );
      byId('sort').append(el('option', { value: column.key }, `by ${column.title.toLowerCase()}`));
    }
    byId('sort').addEventListener('change', (event) => {
      this.sort = { key: event.target.value, down: event.target.value !== 'owner' };
      this.changed();
    });
    byId('filter').addEventListener('input', () => this.changed());
    byId('which').addEventListener('change', () => this.changed());
    this.showSort();
  }

  // The address holds the sort and the filter, so that a link shows another person the same.
  readAddress() {
    const address = new URLSearchParams(location.hash.slice(1));
    byId('filter').value = (address.get('filter') ?? '').slice(0, 100);
    if (filters[address.get('which')]) byId('which').value = address.get('which');
    const [key, way] = (address.get('sort') ?? '').split('-');
    if (columns.some((c) => c.key === key)) this.sort = { key, down: way !== 'up' };
  }

  changed() {
    const address = new URLSearchParams();
    if (byId('filter').value) address.set('filter', byId('filter').value);
    if (byId('which').value !== 'all') address.set('which', byId('which').value);
    if (this.sort.key !== 'permits' || !this.sort.down) {
      address.set('sort', `${this.sort.key}-${this.sort.down ? 'down' : 'up'}`);
    }
    history.replaceState(
      null,
      '',
      address.size ? `#${address}` : location.pathname + location.search,
    );
    this.showSort();
    if (this.model) this.show(this.model, this.recent);
  }

  sortBy(key) {
    const same = this.sort.key === key;
    this.sort = { key, down: same ? !this.sort.down : key !== 'owner' };
    this.changed();
  }

  // next sorts by the next column; flip reverses the order.
  next() {
    const i = columns.findIndex((c) => c.key === this.sort.key);
    this.sortBy(columns[(i + 1) % columns.length].key);
  }

  flip() {
    this.sortBy(this.sort.key);
  }

  showSort() {
    [...byId('process-table').tHead.rows[0].cells].forEach((cell, i) => {
      const sorted = columns[i].key === this.sort.key;
      attribute(cell, 'aria-sort', sorted ? (this.sort.down ? 'descending' : 'ascending') : null);
      text(cell.querySelector('.arrow'), sorted ? (this.sort.down ? ' ▼' : ' ▲') : '');
    });
    byId('sort').value = this.sort.key;
  }

  // select is the processes to show, in order.
  select(model, recent) {
    const words = byId('filter').value.toLowerCase().split(/\s+/).filter(Boolean);
    const keep = filters[byId('which').value];
    const { key, down } = this.sort;
    const compare = (a, b) =>
      typeof a[key] === 'string' ? a[key].localeCompare(b[key]) : (a[key] ?? 0) - (b[key] ?? 0);
    return model.processes
      .map((p) => ({ ...p, recentTimeouts: recent.timeoutsOf(p.session) }))
      .filter((p) => {
        if (!keep(p)) return false;
        const all = [
          p.owner,
          p.session,
          p.host,
          p.program,
          p.version,
          p.pid,
          ...p.pools.map((q) => q.name),
        ]
          .join('\n')
          .toLowerCase();
        return words.every((word) => all.includes(word));
      })
      .sort(
        (a, b) =>
          (down ? compare(b, a) : compare(a, b)) ||
          a.owner.localeCompare(b.owner) ||
          a.session.localeCompare(b.session),
      );
  }

  show(model, recent) {
    this.model = model;
    this.recent = recent;
    const found = this.select(model, recent);
    const drawn = found.slice(0, most);
    const versions = new Set(model.processes.map((p) => p.version));
    byId('process-table').classList.toggle('one-version', versions.size < 2);
    const scale = Math.max(1, ...drawn.map((p) => Math.max(p.permits, p.due)));
    const focused = document.activeElement;
    const live = new Set(drawn.map((p) => p.session));
    for (const [session, row] of this.rows) {
      if (live.has(session)) continue;
      row.tr.remove();
      row.more.remove();
      this.rows.delete(session);
    }
    let place = this.body.firstElementChild;
    for (const p of drawn) {
      const row = this.rows.get(p.session) ?? this.make(p.session);
      this.update(row, p, model, scale);
      if (place === row.tr) {
        place = row.more.nextElementSibling;
      } else {
        this.body.insertBefore(row.tr, place);
        this.body.insertBefore(row.more, place);
      }
    }
    // A row that has moved takes its focus along.
    if (focused?.isConnected && document.activeElement !== focused)
      focused.focus({ preventScroll: true });

    const total = model.processes.length;
    let count = plural(total, 'process', 'processes');
    if (found.length < total) count = `${number(found.length)} of ${count}`;
    if (drawn.length < found.length) count += `, the first ${number(drawn.length)} shown`;
    text(byId('process-count'), count);
    byId('process-none').hidden = found.length > 0;
    text(
      byId('process-none'),
      total > 0
        ? 'No process matches the filter.'
        : `No process has joined “${model.semaphore}”. Is the name right, and the prefix?`,
    );
  }

  make(session) {
    const name = el('bdi');
    const button = el(
      'button',
      {
        type: 'button',
        class: 'open',
        'aria-expanded': 'false',
        click: () => this.toggle(session),
      },
      el('span', { class: 'twist', 'aria-hidden': 'true' }),
      name,
    );
    const figure = el('span', { class: 'figure' });
    const strip = bar([], 1, '');
    const cells = new Map();
    const tr = el(
      'tr',
      {},
      el('th', { scope: 'row' }, button),
      el('td', { class: 'permits' }, figure, strip),
    );
    for (const column of columns.slice(2)) {
      const cell = el('td', { class: `right ${column.class ?? ''}` });
      cells.set(column, cell);
      tr.append(cell);
    }
    const facts = el('dl', { class: 'facts' });
    const actions = el('p', { class: 'actions' });
    const more = el(
      'tr',
      { class: 'opened', hidden: true },
      el('td', { colspan: String(columns.length) }, facts, actions),
    );
    const row = { tr, more, name, button, figure, strip, cells, facts, actions };
    this.rows.set(session, row);
    return row;
  }

  update(row, p, model, scale) {
    row.process = p;
    text(row.name, shorten(p.owner, 60));
    attribute(row.name, 'title', p.owner);
    text(row.figure, number(p.permits));
    const parts = barParts(p);
    updateBar(
      row.strip,
      parts,
      scale,
      barLabel(parts) + (p.due > 0 ? `; its share is ${Math.round(p.due)}` : ''),
      p.due,
    );
    for (const [column, cell] of row.cells) text(cell, column.show(p, model));
    attribute(row.tr, 'data-waits', p.callers > 0 ? 'yes' : null);
    const open = this.open.has(p.session);
    attribute(row.button, 'aria-expanded', String(open));
    row.more.hidden = !open;
    if (open) this.showMore(row, p, model);
  }

  showMore(row, p, model) {
    const facts = [
      ['Session', p.session],
      ['Owner', p.owner],
      [
        'Process',
        [p.program, p.pid ? `pid ${p.pid}` : '', p.host ? `on ${p.host}` : '']
          .filter(Boolean)
          .join(' ') || '–',
      ],
      ['PassBuddy', p.version || 'unknown'],
      ['Started', p.started ? `${clock(p.started, model.at)} (${utc(p.started)})` : '–'],
      ['Declares', p.capacity ? `a capacity of ${number(p.capacity)}` : '–'],
      [
        'Its share',
        `${number(Math.round(p.due * 10) / 10)} by a weight of ${number(p.weight || 1)}` +
          `${p.min > 0 ? `, at least ${number(p.min)}` : ''}` +
          `${p.max > 0 ? `, at most ${number(p.max)}` : ''}`,
      ],
      ['Permits', barLabel(barParts(p))],
      [
        'Timeouts',
        `${number(p.timeouts)} since it started, ${number(p.recentTimeouts)} in the last minute`,
      ],
      ['Lease', `${span(p.lease)} left; figures ${span(p.age)} old`],
      [
        'Redis',
        `replies take ${span(p.roundTrip)}; ${plural(p.lost, 'lease')} lost, ` +
          plural(p.outages, 'outage'),
      ],
      ...p.pools.map((q) => [
        `Pool ${q.name}`,
        `${plural(q.permits, 'permit')}, ${number(q.inUse)} in use, ` +
          `${number(q.idle)} idle, ${plural(q.callers, 'caller')} waiting` +
          `${q.oldestWait > 0 ? ` (oldest ${span(q.oldestWait)})` : ''}` +
          `${q.oldestUse > 0 ? `, oldest checkout ${span(q.oldestUse)}` : ''}`,
      ]),
    ];
    list(
      row.facts,
      facts,
      () => el('div', {}, el('dt'), el('dd')),
      (node, [name, value]) => {
        text(node.firstElementChild, name);
        text(node.lastElementChild, value);
      },
    );
    if (this.evict && !row.actions.firstChild) {
      row.actions.append(
        el(
          'button',
          {
            type: 'button',
            click: () => this.evict(row.process),
          },
          'Evict…',
        ),
      );
    }
  }

  toggle(session) {
    if (!this.open.delete(session)) this.open.add(session);
    this.show(this.model, this.recent);
  }

  // move puts the focus on the next (1) or the previous (-1) row.
  move(step) {
    const buttons = [...this.body.querySelectorAll('button.open')];
    const i = buttons.indexOf(document.activeElement);
    buttons[i < 0 ? 0 : Math.min(buttons.length - 1, Math.max(0, i + step))]?.focus();
  }

  // focused is the process whose row has the focus, or undefined.
  focused() {
    return [...this.rows.values()].find(
      (row) => row.tr.contains(document.activeElement) || row.more.contains(document.activeElement),
    )?.process;
  }
}
