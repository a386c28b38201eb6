// The details of the other questions: events, the queue, the capacity, Postgres.

import { describeEvents, groupEvents } from './answers.js';
import { attribute, byId, el, list, text } from './dom.js';
import { ago, clock, number, plural, span, utc } from './format.js';

function showEvents(m) {
  byId('event-none').hidden = m.events.length > 0;
  list(
    byId('event-list'),
    groupEvents(m.events).slice(0, 100),
    () => el('li', {}, el('span', { class: 'when' }), el('bdi', { class: 'what' })),
    (node, g) => {
      const [when, what] = node.children;
      text(when, `${clock(g.at, m.at)} · ${ago(g.at, m.at)}`);
      attribute(when, 'title', utc(g.at));
      text(what, describeEvents(g));
      attribute(
        what,
        'title',
        g.events
          .slice(0, 20)
          .map((e) => [e.owner || e.session, e.detail].filter(Boolean).join(': '))
          .join('\n'),
      );
    },
  );
}

// join is what there is of some parts of a sentence.
const join = (...parts) => parts.filter(Boolean).join(', ');

function showQueue(m) {
  text(byId('queue-count'), m.waiters.length ? plural(m.waiters.length, 'request') : '');
  const shown = m.waiters
    .slice(0, 100)
    .map((w, i) => [
      `${i + 1}.`,
      w.owner,
      join(w.n > 1 && `${number(w.n)} together`, w.pool),
    ]);
  if (m.waiters.length > 100) shown.push(['', `and ${number(m.waiters.length - 100)} more`, '']);
  if (m.waiters.length === 0) shown.push(['', 'Nobody queues in Redis.', '']);
  list(
    byId('queue-list'),
    shown,
    () =>
      el(
        'li',
        {},
        el('span', { class: 'when' }),
        el('bdi', { class: 'what' }),
        el('bdi', { class: 'value' }),
      ),
    (node, parts) => parts.forEach((part, i) => text(node.children[i], part)),
  );
}

function showCapacity(m) {
  const facts = [['In force', number(m.capacity)]];
  facts.push([
    'By an operator',
    m.operatorCapacity > 0
      ? join(
          `${number(m.operatorCapacity)}, by ${m.setBy || 'unknown'}`,
          m.setAt && `${clock(m.setAt, m.at)} (${ago(m.setAt, m.at)})`,
        )
      : 'none: the smallest that a session declares is in force',
  ]);
  for (const d of m.declared) {
    const who = m.processes.filter((p) => p.capacity === d.capacity);
    const names = who
      .slice(0, 3)
      .map((p) => p.owner)
      .join(', ');
    facts.push([
      `Declare ${number(d.capacity)}`,
      plural(d.sessions, 'session') +
        (m.declared.length > 1 && names ? `: ${names}${who.length > 3 ? ', …' : ''}` : ''),
    ]);
  }
  if (m.mismatch)
    facts.push(['Mismatch', 'Sessions declare different capacities. Give all the same.']);
  if (m.pause) {
    facts.push([
      'Paused',
      join(
        `by ${m.pause.by || 'unknown'}`,
        m.pause.since && clock(m.pause.since, m.at),
        m.pause.until ? `until ${clock(m.pause.until, m.at)}` : 'until somebody resumes',
        m.pause.drain && 'all permits are recalled',
        m.pause.reason && `because: ${m.pause.reason}`,
      ),
    ]);
  }
  if (m.grantsPaused > 0)
    facts.push(['Grants', `paused for ${span(m.grantsPaused)} more: Redis lost its state`]);
  if (m.quarantined > 0)
    facts.push([
      'Quarantine',
      `${plural(m.quarantined, 'permit')}: the lease has ended, the backend may be there`,
    ]);
  if (m.others > 0)
    facts.push(['Other clients', `${plural(m.others, 'permit')} held outside of this library`]);
  list(
    byId('capacity-list'),
    facts,
    () => el('div', {}, el('dt'), el('dd')),
    (node, [name, value]) => {
      text(node.firstElementChild, name);
      text(node.lastElementChild, value);
    },
  );
}

function showPostgres(m) {
  const pg = m.postgres;
  const table = byId('postgres-table');
  table.parentElement.hidden = !pg;
  if (!pg) {
    text(
      byId('postgres-sum'),
      m.postgresError
        ? `Postgres cannot be asked: ${m.postgresError}`
        : 'Start with --postgres (or Options.Postgres) to see whose connections there are.',
    );
    return;
  }
  const free = Math.max(0, pg.max - pg.reserved - pg.ours - pg.others);
  text(
    byId('postgres-sum'),
    `${number(pg.max)} max_connections, ${number(pg.reserved)} reserved: ` +
      `${number(pg.ours)} ours, ${number(pg.others)} others’, ${number(free)} free.` +
      `${pg.guess ? ` Ours are told apart ${pg.guess}.` : ''}` +
      `${pg.hidden > 0 ? ` ${number(pg.hidden)} show this role no details.` : ''}`,
  );
  const groups = [...pg.groups]
    .sort((a, b) => Number(a.ours) - Number(b.ours) || b.backends - a.backends)
    .slice(0, 100);
  list(
    table.tBodies[0],
    groups,
    () =>
      el(
        'tr',
        {},
        Array.from({ length: 8 }, (_, i) =>
          el(
            'td',
            {
              class: i > 5 ? 'right' : '',
            },
            el('bdi'),
          ),
        ),
      ),
    (tr, g) => {
      const oldest = Math.max(g.oldestTransaction, g.oldestState);
      [
        g.ours ? 'ours' : 'others',
        g.application || '–',
        g.user || '–',
        g.database || '–',
        g.address || '–',
        g.state || '–',
        oldest > 0 ? span(oldest) : '–',
        number(g.backends),
      ].forEach((value, i) => text(tr.cells[i].firstChild, value));
    },
  );
}

export function showLists(model) {
  showEvents(model);
  showQueue(model);
  showCapacity(model);
  showPostgres(model);
}
