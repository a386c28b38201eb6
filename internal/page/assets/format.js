// Numbers, spans and times for people.

const grouped = new Intl.NumberFormat('en');
export const number = (n) => grouped.format(n);

// plural is "1 process", "2 processes".
export function plural(n, one, many = `${one}s`) {
  return `${number(n)} ${n === 1 ? one : many}`;
}

// span is a length of time in seconds.
export function span(seconds) {
  const s = Math.max(0, seconds);
  if (s < 0.0005) return '0 s';
  if (s < 0.1) return `${Math.round(s * 1000)} ms`;
  if (s < 9.95) return `${Number.isInteger(s) ? s : s.toFixed(1)} s`;
  if (s < 99.5) return `${Math.round(s)} s`;
  if (s < 99.5 * 60) return `${Math.round(s / 60)} min`;
  if (s < 48 * 3600) return `${Math.round(s / 3600)} h`;
  return `${number(Math.round(s / 86400))} d`;
}

// ago is how long before now a time was; both are milliseconds.
export function ago(at, now) {
  const seconds = (now - at) / 1000;
  return seconds < 1 ? 'just now' : `${span(Math.floor(seconds))} ago`;
}

const pad = (n) => String(n).padStart(2, '0');

// clock is a time of day, with the date if that is not today's.
export function clock(at, now = at) {
  const d = new Date(at);
  const time = `${pad(d.getHours())}:${pad(d.getMinutes())}:${pad(d.getSeconds())}`;
  if (d.toDateString() === new Date(now).toDateString()) return time;
  return `${d.getFullYear()}-${pad(d.getMonth() + 1)}-${pad(d.getDate())} ${time}`;
}

export const utc = (at) => `${new Date(at).toISOString().replace('T', ' ').slice(0, 19)} UTC`;

// shorten cuts the middle of a long name, whose ends tell the most.
export function shorten(name, most = 40) {
  if (name.length <= most) return name;
  const head = Math.ceil((most - 1) / 2);
  return `${name.slice(0, head)}…${name.slice(name.length - (most - 1 - head))}`;
}
