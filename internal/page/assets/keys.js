// Single keys, for people without a mouse. They can be switched off, and never act by themselves:
// verbs open a dialog.

import { byId } from './dom.js';

const storage = {
  get: (key) => {
    try {
      return localStorage.getItem(key);
    } catch {
      return null;
    }
  },
  set: (key, value) => {
    try {
      localStorage.setItem(key, value);
    } catch {
      // Storage can be forbidden: the choice lasts until the page is closed.
    }
  },
};

const themes = ['system', 'light', 'dark'];

// nextTheme goes from system to light to dark.
export function nextTheme(show) {
  const now = document.documentElement.dataset.theme ?? 'system';
  const next = themes[(themes.indexOf(now) + 1) % themes.length];
  if (next === 'system') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  storage.set('passbuddy-theme', next);
  show(next);
}

export const theme = () => document.documentElement.dataset.theme ?? 'system';

const sections = { 1: 'postgres', 2: 'capacity', 3: 'processes', 4: 'queue', 5: 'events' };

export function goTo(id) {
  const section = byId(id);
  section.scrollIntoView({ block: 'start' });
  section.focus({ preventScroll: true });
}

export function listen(actions) {
  const on = byId('keys-on');
  on.checked = storage.get('passbuddy-keys') !== 'off';
  on.addEventListener('change', () => storage.set('passbuddy-keys', on.checked ? 'on' : 'off'));
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const target = event.target;
    // The field of a dialog that has just closed can still have the focus.
    const typing =
      target.matches('input:not([type=checkbox], [type=range]), select, textarea') &&
      target.checkVisibility();
    if (typing && event.key === 'Escape' && target.id === 'filter') {
      target.value = '';
      target.dispatchEvent(new Event('input'));
      target.blur();
      return;
    }
    if (typing || document.querySelector('dialog[open]') || !on.checked) return;
    if (sections[event.key]) goTo(sections[event.key]);
    else if (actions[event.key]) actions[event.key]();
    else return;
    event.preventDefault();
  });
}
