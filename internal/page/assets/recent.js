// Remembers the last minutes: the series of the charts, and the timeouts of the last minute.

const longest = 900; // seconds
const minute = 60;

const names = ['at', 'capacity', 'held', 'inUse', 'callers', 'oldestWait', 'timeouts'];

export class Recent {
  constructor() {
    this.gap = 5; // seconds without a sample that break the lines
    this.clear();
  }

  clear() {
    for (const name of names) this[name] = [];
    this.sessions = new Map(); // session -> [[time, timeouts], ...], where the figure changed
  }

  // load takes the past that the server has.
  load(history, interval) {
    this.gap = Math.max(5, 4 * interval);
    this.clear();
    history.at.forEach((at, i) =>
      this.push({
        at,
        capacity: history.capacity[i],
        held: history.held[i],
        inUse: history.in_use[i],
        callers: history.callers[i],
        oldestWait: history.oldest_wait_seconds[i],
        timeouts: history.timeouts[i],
      }),
    );
  }

  // add takes a state.
  add(model) {
    const at = model.at / 1000;
    if (at < this.at.at(-1)) this.clear(); // Redis's clock was set back
    if (at === this.at.at(-1)) return; // the last sample of the past, once more
    this.push({ ...model, at });
    for (const p of model.processes) {
      const seen = this.sessions.get(p.session) ?? [];
      if (seen.at(-1)?.[1] !== p.timeouts) seen.push([at, p.timeouts]);
      while (seen.length > 1 && seen[1][0] <= at - minute) seen.shift();
      this.sessions.set(p.session, seen);
    }
    const live = new Set(model.processes.map((p) => p.session));
    for (const session of this.sessions.keys()) {
      if (!live.has(session)) this.sessions.delete(session);
    }
  }

  push(sample) {
    const last = this.at.at(-1);
    if (last !== undefined && sample.at - last > this.gap) {
      for (const name of names) this[name].push(name === 'at' ? last + this.gap / 2 : null);
    }
    for (const name of names) this[name].push(sample[name]);
    let old = 0;
    while (this.at[old] < sample.at - longest) old++;
    if (old > 0) for (const name of names) this[name].splice(0, old);
  }

  // timeoutsOf is how many callers of a session timed out in the last minute, as far as we looked.
  timeoutsOf(session) {
    const seen = this.sessions.get(session);
    return seen ? Math.max(0, seen.at(-1)[1] - seen[0][1]) : 0;
  }

  // lastMinute is how many callers timed out, and over how many seconds we know that. The sum
  // falls when a process leaves; only its rises count.
  lastMinute() {
    const end = this.at.at(-1) ?? 0;
    let n = 0,
      begin = end,
      before = null;
    for (let i = this.at.length - 1; i >= 0 && this.at[i] >= end - minute; i--) {
      const now = this.timeouts[i];
      if (now === null) break;
      if (before !== null && before > now) n += before - now;
      before = now;
      begin = this.at[i];
    }
    return { n, seconds: end - begin };
  }
}
