// Shows the five answers, the findings, and bars.

import { isItUs, whatChanged, whoHolds, whoWaits, whyCapacity } from './answers.js';
import { attribute, byId, el, list, text, unchanged } from './dom.js';
import { plural } from './format.js';

// A state is told by a sign and a word; its colour only repeats it.
const states = {
  fine: ['✓', 'fine'],
  look: ['▲', 'look'],
  bad: ['✖', 'trouble'],
  unknown: ['?', 'unknown'],
};

// bar shows parts of a whole. Its label has the figures.
export function bar(parts, most, label, due = 0) {
  const node = el('div', { class: 'bar', role: 'img' });
  updateBar(node, parts, most, label, due);
  return node;
}

export function updateBar(node, parts, most, label, due = 0) {
  attribute(node, 'aria-label', label);
  const width = (n) => `${((100 * n) / Math.max(most, 1)).toFixed(2)}%`;
  const visible = parts.filter((part) => part.n > 0);
  if (due > 0) visible.push({ kind: 'due', n: Math.min(due, most) });
  list(
    node,
    visible,
    () => el('span'),
    (child, part) => {
      attribute(child, 'data-bar', part.kind);
      child.style.setProperty('--part', width(part.n));
    },
  );
}

export const barLabel = (parts) =>
  parts
    .filter((part) => part.n > 0)
    .map((part) => `${part.n} ${part.name}`)
    .join(', ') || 'none';

const tiles = [
  ['answer-us', isItUs],
  ['answer-capacity', whyCapacity],
  ['answer-holds', whoHolds],
  ['answer-waits', whoWaits],
  ['answer-changed', whatChanged],
];

// showAnswers updates the five tiles.
export function showAnswers(model, recent) {
  for (const [id, ask] of tiles) {
    const tile = byId(id);
    if (!tile.querySelector('.headline')) {
      tile.append(
        el(
          'p',
          { class: 'state' },
          el('span', { class: 'sign', 'aria-hidden': 'true' }),
          el('span'),
        ),
        el('p', { class: 'headline' }),
        el('p', { class: 'detail' }),
        el('div', { class: 'more' }),
      );
    }
    const answer = ask(model, recent);
    const [sign, word] = states[answer.state];
    attribute(tile, 'data-state', answer.state);
    text(tile.querySelector('.sign'), sign);
    text(tile.querySelector('.state').lastElementChild, word);
    text(tile.querySelector('.headline'), answer.headline);
    text(tile.querySelector('.detail'), answer.detail);
    const more = tile.querySelector('.more');
    if (unchanged(more, [answer.bars, answer.rows])) continue;
    more.replaceChildren();
    if (answer.bars) {
      more.append(
        bar(answer.bars.parts, answer.bars.most, answer.bars.label),
        el(
          'p',
          { class: 'parts' },
          answer.bars.parts
            .filter((part) => part.n > 0)
            .map((part) =>
              el('span', { class: 'key', 'data-bar': part.kind }, `${part.n} ${part.name}`),
            ),
        ),
      );
    }
    if (answer.rows?.length) {
      more.append(
        el(
          'ul',
          { class: 'rows' },
          answer.rows.map((row) =>
            el(
              'li',
              {
                class: row.wrap ? 'wrap' : '',
              },
              el('bdi', { title: row.name }, row.name),
              el('span', { class: 'value' }, row.value),
              row.bar ? bar(row.bar.parts, row.bar.most, barLabel(row.bar.parts)) : null,
            ),
          ),
        ),
      );
    }
  }
}

// What the severities of findings come to.
const severities = { critical: 'bad', warning: 'look', info: 'fine' };
const severity = (f) => severities[f.severity] ?? 'look';

let all = false;
const phone = matchMedia('(max-width: 40rem)');
// few is how many findings leave room for the answers on the first screen.
const few = () => (phone.matches ? 1 : 2);

function copyButton() {
  return el(
    'button',
    {
      type: 'button',
      class: 'quiet copy',
      click: async (event) => {
        const button = event.currentTarget;
        const code = button.previousElementSibling;
        try {
          await navigator.clipboard.writeText(code.textContent);
          text(button, 'Copied');
          setTimeout(() => text(button, 'Copy'), 2000);
        } catch {
          getSelection().selectAllChildren(code); // without TLS the browser has no clipboard for us
        }
      },
    },
    'Copy',
  );
}

function makeFinding() {
  return el(
    'li',
    {},
    el('span', { class: 'sign', 'aria-hidden': 'true' }),
    el(
      'div',
      {},
      el('p', {}, el('strong', { class: 'word' }), ' ', el('bdi', { class: 'what' })),
      el(
        'p',
        { class: 'remedy' },
        el('span', { class: 'effect' }),
        ' ',
        el('code', { class: 'command' }),
        copyButton(),
      ),
    ),
  );
}

// showMarked shows a text in which `commands` are marked.
function showMarked(node, line) {
  if (unchanged(node, line)) return;
  node.replaceChildren(
    ...line.split('`').map((part, i) => (i % 2 === 1 ? el('code', {}, part) : part)),
  );
}

// showCommand shows a command that wraps between its words only, not after an option's dashes.
function showCommand(node, command) {
  if (unchanged(node, command)) return;
  node.replaceChildren(
    ...command.split(' ').flatMap((word, i) => [i > 0 ? ' ' : '', el('span', {}, word)]),
  );
}

// showFindings shows the worst, and all on request. It returns the state of the worst.
export function showFindings(findings) {
  const worst = findings.filter((f) => severity(f) !== 'fine').slice(0, few());
  list(byId('finding-list'), all ? findings : worst, makeFinding, (node, f) => {
    const state = severity(f);
    attribute(node, 'data-state', state);
    text(node.querySelector('.sign'), states[state][0]);
    text(node.querySelector('.word'), `${{ bad: 'Trouble', look: 'Look', fine: 'Note' }[state]}:`);
    showMarked(node.querySelector('.what'), f.text);
    showMarked(node.querySelector('.effect'), f.effect);
    showCommand(node.querySelector('.command'), f.command);
    node.querySelector('.remedy').hidden = !f.command && !f.effect;
    node.querySelector('.command').hidden = node.querySelector('.copy').hidden = !f.command;
  });
  const rest = findings.length - worst.length;
  const more = byId('finding-more');
  more.hidden = rest === 0;
  attribute(more, 'aria-expanded', String(all));
  text(more, all ? 'Show only the worst' : `${plural(rest, 'more finding')}`);
  more.onclick = () => {
    all = !all;
    showFindings(findings);
  };
  // Say a change of what is wrong once; its figures change all the time.
  const kinds = findings.map((f) => `${f.severity} ${f.text.replace(/[\d.,]+\w*/g, '#')}`);
  if (!unchanged(byId('announcer'), kinds)) {
    text(
      byId('announcer'),
      findings.length === 0
        ? 'No finding'
        : `${plural(findings.length, 'finding')}: ${findings[0].text}`,
    );
  }
  return findings.map(severity).sort((a, b) => order.indexOf(a) - order.indexOf(b))[0] ?? 'fine';
}

const order = ['bad', 'look', 'fine'];
