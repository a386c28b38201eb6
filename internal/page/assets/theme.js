// This script runs before the page is drawn, so that a dark page does not flash white.
'use strict';
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem('passbuddy-theme');
  } catch {
    // Storage can be forbidden: then the system decides.
  }
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
})();
