// The events from the server. The stream is closed while nobody can see the page: then the server
// need not ask Redis.

const hiddenFor = 60_000; // ms until a hidden page lets go
const retryAfter = 3_000; // ms after the server refused
const silentFor = 20_000; // ms without any event, after which the connection counts as dead

export function follow(handlers) {
  let source = null;
  let retry = 0;
  let hidden = 0;
  let heard = Date.now();

  function close() {
    clearTimeout(retry);
    source?.close();
    source = null;
  }

  function open() {
    close();
    heard = Date.now();
    const mine = (source = new EventSource('events'));
    for (const kind of ['hello', 'history', 'status', 'silence', 'notice']) {
      mine.addEventListener(kind, (event) => {
        if (mine !== source) return;
        heard = Date.now();
        handlers[kind](JSON.parse(event.data));
      });
    }
    mine.addEventListener('error', () => {
      if (mine !== source) return;
      handlers.lost();
      // The browser connects again by itself, unless the server refused.
      if (mine.readyState === EventSource.CLOSED) retry = setTimeout(open, retryAfter);
    });
  }

  setInterval(() => {
    if (!source || Date.now() - heard < silentFor) return;
    handlers.lost();
    open();
  }, 1000);

  document.addEventListener('visibilitychange', () => {
    clearTimeout(hidden);
    if (document.hidden) hidden = setTimeout(close, hiddenFor);
    else if (!source) open();
  });
  addEventListener('pagehide', close);
  addEventListener('pageshow', (event) => {
    if (event.persisted) open();
  });
  open();
}
