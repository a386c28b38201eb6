// Puts the page together.

import { Charts } from './charts.js';
import * as control from './control.js';
import { attribute, byId, el, text } from './dom.js';
import { clock, span } from './format.js';
import { goTo, listen, nextTheme, theme } from './keys.js';
import { showLists } from './lists.js';
import { read, readFindings } from './model.js';
import { Processes } from './processes.js';
import { Recent } from './recent.js';
import { follow } from './stream.js';
import { showAnswers, showFindings } from './tiles.js';

const recent = new Recent();
const charts = new Charts(recent);
const processes = new Processes();

let hello = null;
let model = null; // the newest state
let shown = null; // the state on the screen: older than model while the page is held
let heardAt = 0; // when model came, by this browser's clock
let connected = false;
let silence = null; // what the server says while Redis does not answer
let silentSince = 0;
let held = false;

function show() {
  if (held && shown) {
    showLive();
    return;
  }
  shown = model;
  const worst = showFindings(model.findings);
  showAnswers(model, recent);
  processes.show(model, recent);
  showLists(model);
  charts.update(model);
  byId('verb-resume').hidden = !model.pause;
  const sign = { bad: '✖ ', look: '▲ ', fine: '' }[worst];
  document.title =
    `${sign}${model.semaphore} ${model.held}/${model.capacity}` +
    `${model.callers ? `, ${model.callers} wait` : ''}`;
  showLive();
}

// showLive says how old the figures are. It runs once a second: what is old must not look new.
function showLive() {
  const live = byId('live');
  const age = (Date.now() - heardAt) / 1000;
  const silent = silence ? silence.seconds + (Date.now() - silentSince) / 1000 : 0;
  let state = 'live',
    line = model ? `Live, as of ${clock(model.at)}` : 'Connecting';
  let trouble = '';
  if (!connected && model) {
    state = 'lost';
    line = 'No connection';
    trouble =
      'This page has lost its server; it tries again. ' +
      `All figures are of ${clock(model.at)}, ${span(Math.floor(age))} ago.`;
  } else if (silence && (silence.error || silent >= 2)) {
    state = 'lost';
    line = `Redis is silent for ${span(Math.floor(silent))}`;
    const old = model ? ` All figures are of ${clock(model.at)}.` : '';
    const why = silence.error ? ` (${silence.error})` : '';
    trouble = `Redis has not answered for ${span(Math.floor(silent))}${why}.${old}`;
  } else if (!model) {
    state = 'waiting';
  } else if (held) {
    state = 'held';
    line = `Held at ${clock(shown.at)}, ${span((model.at - shown.at) / 1000)} behind`;
  }
  attribute(live, 'data-state', state);
  text(byId('live-text'), line);
  const banner = byId('connection');
  banner.hidden = trouble === '';
  if (trouble) attribute(banner, 'data-state', 'bad');
  if (banner.childElementCount === 0) banner.append(el('strong', {}, '✖ '), el('span'));
  text(banner.lastElementChild, trouble);
  // A screen reader says it once, not every second.
  if (trouble && !document.body.classList.contains('stale')) text(byId('announcer'), trouble);
  document.body.classList.toggle('stale', trouble !== '');
}

function notice(line, fine) {
  const node = el(
    'p',
    { class: 'banner', 'data-state': fine ? 'fine' : 'bad' },
    el('strong', {}, fine ? '✓ ' : '✖ '),
    el('bdi', {}, line),
    el('button', { type: 'button', class: 'quiet', click: () => node.remove() }, 'Close'),
  );
  byId('notices').append(node);
  while (byId('notices').children.length > 3) byId('notices').firstElementChild.remove();
  if (fine) setTimeout(() => node.remove(), 15_000);
}

function hold() {
  held = !held;
  attribute(byId('hold'), 'aria-pressed', String(held));
  text(byId('hold'), held ? 'Go on' : 'Hold');
  if (model) show();
}

function act(verb, process) {
  control.open(verb, {
    model,
    hello,
    process,
    done: (result) => {
      if (result.pending) notice(result.text, true);
    },
  });
}

function showTheme(name = theme()) {
  text(byId('theme'), `Theme: ${name}`);
}

function help() {
  const dialog = byId('help');
  if (!dialog.open) dialog.showModal();
}

function switchTheme() {
  nextTheme(showTheme);
  charts.build();
}

follow({
  hello(news) {
    if (hello && hello.build !== news.build)
      notice('The server has a newer page: reload this one.', true);
    hello = news;
    text(byId('semaphore'), news.semaphore);
    byId('read-only').hidden = news.control;
    byId('verbs').hidden = !news.control;
    document.body.classList.toggle('controls', news.control);
    processes.evict = news.control ? (process) => act('evict', process) : null;
    connected = true;
  },
  history(past) {
    recent.load(past, hello?.interval_seconds ?? 1);
    connected = true;
  },
  status(doc) {
    model = read(doc);
    heardAt = Date.now();
    silence = null;
    connected = true;
    recent.add(model);
    show();
  },
  silence(news) {
    silence = news;
    silentSince = Date.now();
    connected = true;
    // What is known without Redis, as long as it is silent. A late answer brings none.
    if (news.findings?.length && !held) showFindings(readFindings(news.findings));
    showLive();
  },
  notice(news) {
    notice(news.text, news.fine);
  },
  lost() {
    connected = false;
    showLive();
  },
});

setInterval(showLive, 1000);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => charts.build());

byId('hold').addEventListener('click', hold);
byId('theme').addEventListener('click', switchTheme);
byId('help-open').addEventListener('click', help);
for (const verb of ['capacity', 'pause', 'resume']) {
  byId(`verb-${verb}`).addEventListener('click', () => act(verb));
}
// A link to a section must not take the sort and the filter out of the address.
for (const link of document.querySelectorAll('.answer h2 a')) {
  link.addEventListener('click', (event) => {
    event.preventDefault();
    goTo(link.getAttribute('href').slice(1));
  });
}
listen({
  '/': () => byId('filter').focus(),
  '?': help,
  h: hold,
  t: switchTheme,
  j: () => processes.move(1),
  k: () => processes.move(-1),
  s: () => processes.next(),
  r: () => processes.flip(),
  C: () => act('capacity'),
  P: () => act('pause'),
  R: () => model?.pause && act('resume'),
  E: () => {
    const process = processes.focused();
    if (process) act('evict', process);
  },
});
showTheme();
