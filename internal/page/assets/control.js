// The dialogs of the verbs. Each says its effect first, and is confirmed by typing the semaphore's
// name. The token is kept in this module's memory only, for a quarter of an hour.

import { byId, el, text } from './dom.js';
import { number, plural, shorten } from './format.js';

const tokenFor = 15 * 60_000;

let token = '';
let name = '';
let forget = 0;

function keep(value) {
  clearTimeout(forget);
  token = value;
  if (value) {
    forget = setTimeout(() => {
      token = '';
    }, tokenFor);
  }
}

// perform sends a verb. It returns { ok, pending, text }.
async function perform(verb, args) {
  try {
    const response = await fetch(`control/${verb}`, {
      method: 'POST',
      cache: 'no-store',
      redirect: 'error',
      credentials: 'same-origin',
      headers: {
        'Content-Type': 'application/json',
        'X-PassBuddy-Control': '1',
        Authorization: `Bearer ${token}`,
      },
      body: JSON.stringify(args),
    });
    if (response.status === 401) keep('');
    const reply = await response.json();
    return { ok: response.ok, pending: Boolean(reply.pending), text: String(reply.text) };
  } catch {
    return {
      ok: false,
      pending: false,
      text: 'The server cannot be reached, or does not understand.',
    };
  }
}

function field(label, input, hint) {
  return el(
    'label',
    { class: 'field' },
    el('span', {}, label),
    input,
    hint ? el('small', {}, hint) : null,
  );
}

const input = (props) =>
  el('input', { autocomplete: 'off', spellcheck: 'false', autocapitalize: 'off', ...props });
const box = (label, props = {}) => {
  const check = el('input', { type: 'checkbox', ...props });
  return [check, el('label', { class: 'field check' }, check, el('span', {}, label))];
};
const seconds = (label, value, hint) => {
  const node = input({
    type: 'number',
    min: '0',
    max: '604800',
    step: '1',
    value: String(value),
    inputmode: 'numeric',
  });
  return [node, field(label, node, hint)];
};

// The verbs: what each says, asks, and sends.
const dialogs = {
  capacity(model) {
    const capacity = input({
      type: 'number',
      min: '0',
      max: '1000000',
      step: '1',
      required: true,
      value: String(model.operatorCapacity || model.capacity),
      inputmode: 'numeric',
    });
    return {
      title: 'Capacity of the fleet',
      effect:
        `It is ${number(model.capacity)} now. Yours is in force at once for the whole fleet, ` +
        'whatever sessions declare, until somebody sets another. A lower one cuts no connection ' +
        'that is in use: permits above it are not granted again. A higher one opens more ' +
        'backends: leave room for others.',
      fields: [field('New capacity', capacity, '0: back to what the sessions declare')],
      args: () => ({ capacity: Number(capacity.value) }),
      button: 'Set the capacity',
    };
  },
  pause(model) {
    const [drain, drainField] = box(
      'Drain: also recall everything, until no backend of the fleet is left',
    );
    const [timeout, timeoutField] = seconds(
      'Give up the drain after, in seconds',
      60,
      'The fleet then resumes by itself.',
    );
    const [lasts, lastsField] = seconds(
      'Resume by itself after, in seconds',
      300,
      '0: stay paused until somebody resumes',
    );
    const reason = input({ type: 'text', maxlength: '200' });
    timeoutField.hidden = true;
    drain.addEventListener('change', () => {
      timeoutField.hidden = !drain.checked;
    });
    return {
      title: 'Pause the fleet',
      effect:
        (model.pause ? 'It is paused already: this replaces how long, and why. ' : '') +
        `No process is granted anything new. What is held now, ${plural(model.held, 'permit')}, ` +
        'stays held, and open connections serve their pools. Callers who need a new connection ' +
        'wait, and time out by their own bounds.',
      fields: [drainField, timeoutField, lastsField, field('Reason, shown to others', reason)],
      args: () => ({
        drain: drain.checked,
        ...(drain.checked ? { timeout_seconds: Number(timeout.value) } : {}),
        for_seconds: Number(lasts.value),
        reason: reason.value,
      }),
      button: 'Pause',
    };
  },
  resume(model) {
    return {
      title: 'Resume the fleet',
      effect:
        `It was paused by ${shorten(model.pause?.by || 'an operator', 60)}` +
        `${model.pause?.reason ? `: “${model.pause.reason}”` : ''}. ` +
        'Waiting requests are granted at once. Permits that were recalled and not given back yet ' +
        'stay where they are.',
      fields: [],
      args: () => ({}),
      button: 'Resume',
    };
  },
  evict(model, process) {
    const [force, forceField] = box(
      'By force: revoke what it still holds then. Its queries are cut.',
    );
    const [timeout, timeoutField] = seconds(
      'Wait for, in seconds',
      10,
      'Connections close as their callers return them.',
    );
    const reason = input({ type: 'text', maxlength: '200' });
    return {
      title: `Evict ${shorten(process.owner, 60)}`,
      effect:
        `Recalls what this session holds: ${plural(process.permits, 'permit')}, with ` +
        `${plural(process.inUse, 'connection')} in use. It stays in the fleet, and may ask for ` +
        'new ones behind those that wait. Permits that no pool holds go only by force.',
      fields: [timeoutField, forceField, field('Reason, shown to others', reason)],
      args: () => ({
        session: process.session,
        timeout_seconds: Number(timeout.value),
        force: force.checked,
        reason: reason.value,
      }),
      button: 'Evict',
    };
  },
};

// open shows the dialog of a verb.
export function open(verb, { model, hello, process, done }) {
  const dialog = byId('act');
  if (dialog.open || !model || !hello?.control) return;
  const { title, effect, fields, args, button } = dialogs[verb](model, process);
  const confirm = input({ type: 'text', 'aria-describedby': 'act-effect' });
  const secret = input({ type: 'password', required: true, autocomplete: 'off' });
  const who = input({ type: 'text', maxlength: '64', value: name });
  const answer = el('p', { class: 'answer-line', role: 'alert' });
  const go = el('button', { class: 'danger', disabled: true }, `${button}`);
  confirm.addEventListener('input', () => {
    go.disabled = confirm.value !== hello.semaphore;
  });
  const secretField = field('Token', secret, 'Kept in this page’s memory for 15 minutes.');
  secretField.hidden = token !== '';
  secret.required = token === '';
  const form = el(
    'form',
    {
      submit: async (event) => {
        event.preventDefault();
        if (confirm.value !== hello.semaphore || go.disabled) return;
        if (!secretField.hidden) keep(secret.value);
        secret.value = '';
        name = who.value;
        go.disabled = true;
        text(answer, 'Asking…');
        const result = await perform(verb, {
          ...args(),
          confirm: confirm.value,
          ...(hello.names ? { operator: name } : {}),
        });
        text(answer, result.text);
        if (result.ok) {
          dialog.close();
          done(result);
          return;
        }
        secretField.hidden = token !== '';
        secret.required = token === '';
        go.disabled = confirm.value !== hello.semaphore;
        if (!secretField.hidden) secret.focus();
      },
    },
    el('h2', { id: 'act-title' }, title),
    el('p', { id: 'act-effect', class: 'effect' }, effect),
    ...fields,
    hello.names ? field('Your name, shown to others', who) : null,
    secretField,
    field(
      el('span', {}, 'Type ', el('strong', {}, el('bdi', {}, hello.semaphore)), ' to confirm'),
      confirm,
    ),
    answer,
    el(
      'div',
      { class: 'buttons' },
      el('button', { type: 'button', click: () => dialog.close() }, 'Cancel'),
      go,
    ),
  );
  dialog.replaceChildren(form);
  // The event comes late: the next dialog may be open by then.
  dialog.onclose = () => {
    if (!dialog.open) dialog.replaceChildren();
  };
  dialog.showModal();
  (form.querySelector('input:not([hidden])') ?? go).focus();
}
