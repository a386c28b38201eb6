// Answers the five questions from a model. These functions are pure: tiles.js shows what they say.
//
// Each returns { state, headline, detail, bars, rows }. The state is fine, look, bad or unknown.

import { ago, clock, number, plural, shorten, span } from './format.js';

// long is how long a checkout lasts that is worth a look while others wait.
const long = 60;
// At the cap callers wait in turn, which is healthy. From these seconds on it is not.
const noticed = 0.25;
const slow = 2;

const free = (pg) => Math.max(0, pg.max - pg.reserved - pg.ours - pg.others);

// owners is a few names, and how many others there are.
export function owners(processes, most = 2) {
  const names = processes.slice(0, most).map((p) => shorten(p.owner, 30));
  const rest = processes.length - names.length;
  return names.join(', ') + (rest > 0 ? ` and ${rest} more` : '');
}

// othersByApplication adds up the backends that are not ours.
export function othersByApplication(pg) {
  const sums = new Map();
  for (const g of pg.groups) {
    if (g.ours) continue;
    const name = g.application || g.user || 'without a name';
    sums.set(name, (sums.get(name) ?? 0) + g.backends);
  }
  return [...sums]
    .map(([name, backends]) => ({ name, backends }))
    .sort((a, b) => b.backends - a.backends || a.name.localeCompare(b.name));
}

export function isItUs(m) {
  const foreign =
    m.others > 0 ? ` ${plural(m.others, 'permit is', 'permits are')} of other clients.` : '';
  const weHold = `We hold ${number(m.held)} of ${number(m.capacity)}`;
  const pg = m.postgres;
  if (!pg && m.postgresError) {
    return {
      state: 'look',
      headline: 'Postgres does not tell',
      detail: `${m.postgresError}. ${weHold} permits.${foreign}`,
    };
  }
  if (!pg) {
    return {
      state: 'unknown',
      headline: weHold,
      detail: `Start with --postgres to see whose all connections are.${foreign}`,
    };
  }
  const groups = othersByApplication(pg);
  const usable = pg.max - pg.reserved;
  const room = usable - pg.others;
  const largest = groups[0];
  const bars = {
    most: pg.max,
    label:
      `Of ${pg.max} connections: ${pg.ours} ours, ${pg.others} others’, ` +
      `${pg.reserved} reserved, ${free(pg)} free`,
    parts: [
      { kind: 'ours', n: pg.ours, name: 'ours' },
      { kind: 'others', n: pg.others, name: 'others’' },
      { kind: 'free', n: free(pg), name: 'free' },
      { kind: 'reserved', n: pg.reserved, name: 'reserved' },
    ],
  };
  const rows = groups.slice(0, 3).map((g) => ({ name: g.name, value: number(g.backends) }));
  const answer = (state, headline, detail) => ({
    state,
    headline,
    detail: detail + foreign,
    bars,
    rows,
  });
  if (m.capacity > 0 && pg.ours > m.capacity) {
    return answer(
      'bad',
      `Yes: our ${number(pg.ours)} exceed the cap of ${number(m.capacity)}`,
      'Our backends are more than the capacity. Is there another semaphore on this Postgres?',
    );
  }
  if (largest && room < m.capacity) {
    const full = free(pg) === 0;
    return answer(
      full ? 'bad' : 'look',
      `${full ? 'No' : 'Not yet'}: others have ${number(pg.others)} of ${number(usable)}`,
      `${shorten(largest.name, 30)} has ${number(largest.backends)}. That leaves room for ` +
        `${number(Math.max(0, room))} of our ${number(m.capacity)}.`,
    );
  }
  if (usable < m.capacity) {
    return answer(
      'bad',
      `Yes: the cap of ${number(m.capacity)} exceeds Postgres’s ${number(usable)}`,
      'Lower the capacity, or raise max_connections.',
    );
  }
  return answer(
    'fine',
    `No: ${number(free(pg))} of ${number(usable)} are free`,
    `Ours are ${number(pg.ours)}, others’ ${number(pg.others)}.`,
  );
}

export function whyCapacity(m) {
  const declared = m.declared
    .map((d) => `${number(d.capacity)} by ${number(d.sessions)}`)
    .join(', ');
  const smallest = m.processes.filter(
    (p) => p.capacity > 0 && p.capacity === m.declared[0]?.capacity,
  );
  if (m.pause) {
    const p = m.pause;
    const until = p.until ? `until ${clock(p.until, m.at)}` : 'until somebody resumes';
    return {
      state: 'bad',
      headline: `${p.drain ? 'Drained' : 'Paused'} by ${shorten(p.by || 'an operator', 34)}`,
      detail:
        `${p.since ? `${ago(p.since, m.at)}, ` : ''}${until}${p.reason ? `: ${p.reason}` : ''}. ` +
        `Nothing new is granted. The capacity is ${number(m.capacity)}.`,
    };
  }
  if (m.grantsPaused > 0) {
    return {
      state: 'bad',
      headline: `No grants for ${span(m.grantsPaused)} more`,
      detail: `Redis lost its state; holders say what they hold. The cap is ${number(m.capacity)}.`,
    };
  }
  if (m.operatorCapacity > 0) {
    const when = m.setAt ? `, ${ago(m.setAt, m.at)}` : '';
    return {
      state: 'look',
      headline: `${number(m.capacity)}: set by ${shorten(m.setBy || 'an operator', 34)}`,
      detail: `An operator’s capacity holds for all${when}. Declared: ${declared || 'nothing'}.`,
    };
  }
  if (m.mismatch || m.declared.length > 1) {
    const who =
      smallest.length > 0 ? owners(smallest) : plural(m.declared[0]?.sessions ?? 0, 'session');
    return {
      state: 'bad',
      headline: `${number(m.capacity)}: ${who} ${smallest.length > 1 ? 'declare' : 'declares'} it`,
      detail: `The smallest wins. Declared: ${declared} sessions.`,
    };
  }
  if (m.declared.length === 0) {
    return { state: 'unknown', headline: 'Nobody declares one', detail: 'No session has joined.' };
  }
  return {
    state: 'fine',
    headline: `${number(m.capacity)}: all sessions agree`,
    detail: `Declared by ${plural(m.declared[0].sessions, 'session')}; no operator set another.`,
  };
}

export function whoHolds(m) {
  const holders = m.processes
    .filter((p) => p.permits > 0)
    .sort((a, b) => b.permits - a.permits || a.owner.localeCompare(b.owner));
  const stuck = [...holders]
    .filter((p) => p.inUse > 0 && p.oldestUse >= long)
    .sort((a, b) => b.oldestUse - a.oldestUse);
  const parts = [`${number(m.inUse)} in use`, `${number(m.idle)} idle`];
  if (m.quarantined > 0) parts.push(`${number(m.quarantined)} in quarantine`);
  if (m.others > 0) parts.push(`${number(m.others)} of other clients`);
  const rows = holders.slice(0, 3).map((p) => ({
    name: p.owner,
    value: number(p.permits),
    bar: { most: Math.max(1, holders[0]?.permits ?? 1), parts: barParts(p) },
  }));
  const detail = `${number(m.held)} of ${number(m.capacity)} held: ${parts.join(', ')}.`;
  if (stuck.length > 0 && m.callers > 0) {
    const p = stuck[0];
    return {
      state: 'bad',
      headline: `${shorten(p.owner, 30)}: ${number(p.inUse)} in use, oldest ${span(p.oldestUse)}`,
      detail: `One connection is in use for ${span(p.oldestUse)} while others wait. ${detail}`,
      rows,
    };
  }
  if (holders.length === 0) {
    return {
      state: m.held > 0 ? 'look' : 'fine',
      headline: m.held > 0 ? 'Other clients' : 'Nobody',
      detail,
    };
  }
  const all = plural(holders.length, 'process', 'processes');
  const first = holders[0];
  const least = holders.at(-1);
  const even = first.permits - least.permits <= 1;
  const greedy = m.callers > 0 && first.due > 0 && first.permits > 2 * first.due + 1;
  return {
    state: m.quarantined > 0 || greedy ? 'look' : 'fine',
    headline: even
      ? `${all}, evenly`
      : `${all}; ${shorten(first.owner, 26)} has ${number(first.permits)}`,
    detail: greedy ? `Its share is ${number(Math.round(first.due))}. ${detail}` : detail,
    rows,
  };
}

// barParts are the permits of a process, for its bar.
export function barParts(p) {
  return [
    { kind: 'in-use', n: p.inUse, name: 'in use' },
    { kind: 'idle', n: p.idle, name: 'idle' },
    { kind: 'moving', n: p.moving, name: 'opening or closing' },
    { kind: 'other', n: p.other, name: 'no pool’s' },
  ];
}

export function whoWaits(m, recent) {
  const waiting = m.processes
    .filter((p) => p.callers > 0)
    .sort((a, b) => b.oldestWait - a.oldestWait || b.callers - a.callers);
  const { n, seconds } = recent.lastMinute();
  const timedOut =
    n > 0
      ? `${plural(n, 'timeout')} in the last ${span(Math.max(1, seconds))}.`
      : m.timeouts > 0
        ? `No timeout just now; ${number(m.timeouts)} since the processes started.`
        : 'No timeouts.';
  const rows = waiting.slice(0, 3).map((p) => ({
    name: p.owner,
    value: `${number(p.callers)} · ${span(p.oldestWait)}`,
  }));
  if (waiting.length === 0) {
    if (m.requests > 0) {
      return {
        state: 'look',
        headline: `${plural(m.requests, 'request')} in the queue`,
        detail: `No caller in a pool waits. ${timedOut}`,
      };
    }
    return { state: n > 0 ? 'look' : 'fine', headline: 'Nobody', detail: timedOut };
  }
  const where = plural(waiting.length, 'process', 'processes');
  return {
    state: n > 0 || m.oldestWait >= slow ? 'bad' : m.oldestWait >= noticed ? 'look' : 'fine',
    headline: `${plural(m.callers, 'caller')} in ${where}, oldest ${span(m.oldestWait)}`,
    detail: timedOut,
    rows,
  };
}

// What the kinds of events mean to somebody who reads them at night.
const eventWords = {
  joined: 'joined',
  left: 'left',
  expired: 'expired (no heartbeat)',
  gone: 'seen gone',
  quarantined: 'in quarantine',
  reported: 'reports',
  capacity: 'capacity changed',
  paused: 'paused',
  drained: 'drained',
  resumed: 'resumed',
  evicted: 'evicted',
  revoked: 'revoked',
  'state lost': 'Redis lost its state',
};
const harmless = new Set(['joined', 'left', 'resumed']);

export const eventWord = (kind) => eventWords[kind] ?? kind;

// groupEvents joins what happened to many sessions within a minute: a deploy is one line.
export function groupEvents(events) {
  const groups = [];
  for (const e of events) {
    const open = groups.find((g) => g.kind === e.kind && !g.by && !e.by && g.from - e.at < 60_000);
    if (open) {
      open.events.push(e);
      open.from = e.at;
    } else {
      groups.push({ kind: e.kind, by: e.by, at: e.at, from: e.at, events: [e] });
    }
  }
  return groups;
}

// describeEvents is a group in words.
export function describeEvents(g) {
  const e = g.events[0];
  const who = g.events.length > 1 ? `${number(g.events.length)} × ` : '';
  const name =
    g.events.length > 1
      ? owners(
          g.events.map((one) => ({ owner: one.owner || one.session || '?' })),
          1,
        )
      : e.owner || e.session;
  const words = [who + shorten(eventWord(g.kind))];
  if (name) words.push(`: ${shorten(name, 60)}`);
  if (e.detail && g.events.length === 1)
    words.push(`${name ? ', ' : ': '}${shorten(e.detail, 120)}`);
  if (e.by) words.push(`, by ${shorten(e.by)}`);
  return words.join('');
}

const capital = (s) => s[0].toUpperCase() + s.slice(1);

export function whatChanged(m) {
  const recent = m.events.filter((e) => m.at - e.at < 15 * 60_000);
  const groups = groupEvents(m.events);
  const rows = groups.slice(0, 3).map((g) => ({
    name: describeEvents(g),
    value: ago(g.at, m.at),
    wrap: true,
  }));
  if (groups.length === 0) return { state: 'fine', headline: 'Nothing is recorded', detail: '' };
  const sums = new Map();
  for (const e of recent) sums.set(e.kind, (sums.get(e.kind) ?? 0) + 1);
  const counts = [...sums]
    .sort((a, b) => b[1] - a[1])
    .map(([kind, n]) => `${number(n)} ${shorten(eventWord(kind))}`);
  const odd = recent.some((e) => !harmless.has(e.kind));
  const busy = (sums.get('joined') ?? 0) + (sums.get('left') ?? 0) >= 4;
  return {
    state: odd || busy ? 'look' : 'fine',
    headline: capital(`${ago(groups[0].at, m.at)}: ${describeEvents(groups[0])}`),
    detail:
      recent.length > 0 ? `Last 15 min: ${counts.join(', ')}.` : 'Nothing in the last 15 min.',
    rows,
  };
}
