// Builds elements. Text from Redis and Postgres becomes text nodes only: nothing here takes markup.

const attributes = new RegExp(
  '^(aria-[a-z]+|data-[a-z-]+|autocapitalize|autocomplete|class|colspan|for|href|id|inputmode|' +
    'max|maxlength|min|name|placeholder|role|scope|spellcheck|step|tabindex|title|type|value)$',
);

// el makes an element. Props that are functions are listeners of the event of that name; hidden,
// disabled, required and checked are booleans.
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (typeof value === 'function') node.addEventListener(name, value);
    else if (typeof value === 'boolean') node[name] = value;
    else if (name === 'href' && !/^(#|[a-z.]+$)/.test(value))
      throw new Error('bug: a link to elsewhere');
    else if (attributes.test(name)) node.setAttribute(name, value);
    else throw new Error(`bug: el does not set ${name}`);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

// text sets an element's text, and touches nothing if it has that text already.
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

export function attribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

// list brings the children of a parent to the number of items, and updates each in its place. So
// the focus stays where it is while figures change.
export function list(parent, items, make, update) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  items.forEach((item, i) => {
    let child = parent.children[i];
    if (!child) {
      child = make(item);
      parent.append(child);
    }
    update(child, item);
  });
}

// unchanged reports whether a value is as at the last call for that node: then its children are
// up to date.
const shown = new WeakMap();
export function unchanged(node, value) {
  const now = JSON.stringify(value);
  if (shown.get(node) === now) return true;
  shown.set(node, now);
  return false;
}
