// Reads the document that `passbuddy status --json` documents. Nothing else in the page knows its
// field names, or has to fear a field that is missing.

const count = (v) => (Number.isFinite(v) ? v : 0);
const array = (v) => (Array.isArray(v) ? v : []);

// string makes a value fit to be shown. It replaces characters that reorder the text around them,
// and those that cannot be seen.
function string(v) {
  if (typeof v !== 'string') return '';
  return v
    .slice(0, 300)
    .replace(
      /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
      '\ufffd',
    );
}

// time is in milliseconds, or null.
function time(v) {
  const at = typeof v === 'string' ? Date.parse(v) : NaN;
  return Number.isFinite(at) && at > 0 ? at : null;
}

function readProcess(p) {
  const inUse = count(p.in_use),
    idle = count(p.idle);
  const opening = count(p.opening),
    closing = count(p.closing);
  const permits = count(p.permits);
  const session = string(p.session);
  return {
    session,
    owner: string(p.owner) || session || 'unknown',
    host: string(p.host),
    pid: count(p.pid),
    program: string(p.program),
    version: string(p.version),
    started: time(p.started),
    capacity: count(p.capacity),
    permits,
    inUse,
    idle,
    moving: opening + closing,
    opening,
    closing,
    // held, but by no pool: Acquire, or a figure that is older than the permit
    other: Math.max(0, permits - inUse - idle - opening - closing),
    due: count(p.due),
    callers: count(p.waiting),
    oldestWait: count(p.oldest_wait_seconds),
    oldestUse: count(p.oldest_use_seconds),
    timeouts: count(p.timeouts),
    lease: count(p.lease_seconds),
    min: count(p.min),
    max: count(p.max),
    weight: count(p.weight),
    lost: count(p.lost),
    outages: count(p.outages),
    roundTrip: count(p.round_trip_seconds),
    age: count(p.age_seconds),
    pools: array(p.pools).map((q) => ({
      name: string(q.name),
      permits: count(q.permits),
      inUse: count(q.in_use),
      idle: count(q.idle),
      callers: count(q.waiting),
      oldestWait: count(q.oldest_wait_seconds),
      oldestUse: count(q.oldest_use_seconds),
      timeouts: count(q.timeouts),
    })),
  };
}

function readPostgres(v) {
  if (!v) return null;
  const groups = array(v.backends).map((g) => ({
    application: string(g.application),
    user: string(g.user),
    database: string(g.database),
    address: string(g.address),
    state: string(g.state),
    backends: count(g.backends),
    ours: Boolean(g.ours),
    oldestState: count(g.oldest_state_seconds),
    oldestTransaction: count(g.oldest_transaction_seconds),
  }));
  return {
    max: count(v.max_connections),
    reserved: count(v.reserved),
    ours: count(v.ours),
    others: count(v.others),
    guess: string(v.guess),
    hidden: count(v.hidden),
    groups,
  };
}

export function readFindings(findings) {
  return array(findings).map((f) => ({
    severity: string(f.severity),
    text: string(f.text),
    command: string(f.command),
    effect: string(f.effect),
  }));
}

// read makes the page's model of a document.
export function read(doc) {
  const capacity = doc.capacity ?? {};
  const pause = doc.pause ?? null;
  return {
    semaphore: string(doc.semaphore),
    at: time(doc.at) ?? 0,
    capacity: count(capacity.in_force),
    operatorCapacity: count(capacity.operator),
    setBy: string(capacity.set_by),
    setAt: time(capacity.set_at),
    declared: array(capacity.declared)
      .map((d) => ({
        capacity: count(d.capacity),
        sessions: count(d.sessions),
      }))
      .sort((a, b) => a.capacity - b.capacity),
    mismatch: Boolean(capacity.mismatch),
    pause: pause && {
      by: string(pause.by),
      reason: string(pause.reason),
      since: time(pause.since),
      until: time(pause.until),
      drain: Boolean(pause.drain),
    },
    grantsPaused: count(doc.grants_paused_seconds),
    held: count(doc.held),
    quarantined: count(doc.quarantined),
    inUse: count(doc.in_use),
    idle: count(doc.idle),
    requests: count(doc.waiting),
    callers: count(doc.callers),
    oldestWait: count(doc.oldest_wait_seconds),
    timeouts: count(doc.timeouts),
    others: count(doc.others),
    processes: array(doc.processes).map(readProcess),
    waiters: array(doc.waiters).map((w) => ({
      session: string(w.session),
      owner: string(w.owner) || string(w.session) || 'unknown',
      n: count(w.n),
      pool: string(w.pool),
    })),
    // the newest first
    events: array(doc.events)
      .map((e) => ({
        at: time(e.at) ?? 0,
        kind: string(e.kind),
        session: string(e.session),
        owner: string(e.owner),
        by: string(e.by),
        detail: string(e.detail),
      }))
      .sort((a, b) => b.at - a.at),
    postgres: readPostgres(doc.postgres),
    postgresError: string(doc.postgres_error),
    findings: readFindings(doc.findings),
  };
}
