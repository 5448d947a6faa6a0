"""The page's only script: it moves the lens of a confusion matrix. Everything is
readable without it.

Names reach the page as text nodes alone, never as HTML. The page's security policy names this
script by its SHA-256, so that no other one runs in it, whatever a data set calls its classes.
"""

import base64
import hashlib

SCRIPT = """
for (const home of document.querySelectorAll('[data-matrix]')) {
  const data = JSON.parse(home.querySelector('script').textContent);
  const over = home.querySelector('.over'), ring = home.querySelector('.ring');
  const size = data.names.length, counts = new Map(), totals = new Array(size).fill(0);
  for (const [r, c, n] of data.cells) { counts.set(r * size + c, n); totals[r] += n; }
  let at = data.at;
  const make = (kind, text, more) => Object.assign(document.createElement(kind), {textContent: text}, more);
  const span = (middle) => {
    if (size <= data.whole) return [0, size];
    const first = Math.min(Math.max(middle - Math.floor(data.lens / 2), 0), size - data.lens);
    return [first, data.lens];
  };
  const tell = ([r, c]) => {
    const n = counts.get(r * size + c) || 0, of = totals[r];
    const words = home.querySelector('.told');
    words.replaceChildren(make('b', data.names[r]));
    if (r === c) words.append(`: ${n} of ${of} right`);
    else words.append(' taken for ', make('b', data.names[c]), `: ${n} of ${of}`);
    if (of) words.append(` (${Math.round(100 * n / of)} %)`);
  };
  const draw = () => {
    const [top, high] = span(at[0]), [left, wide] = span(at[1]);
    const table = make('table', '', {className: 'cells'}), head = table.createTHead().insertRow();
    head.insertCell();
    for (let c = left; c < left + wide; c++) {
      const cell = make('th', '', {scope: 'col', title: data.names[c]});
      cell.append(make('i', data.names[c]));
      head.append(cell);
    }
    const body = table.createTBody();
    for (let r = top; r < top + high; r++) {
      const row = body.insertRow();
      row.append(make('th', data.names[r], {scope: 'row', title: data.names[r]}));
      for (let c = left; c < left + wide; c++) {
        const n = counts.get(r * size + c) || 0, cell = row.insertCell();
        if (n) {
          const strong = Math.round(40 * (0.25 + 0.75 * n / totals[r]));
          cell.textContent = n;
          cell.style.background = `color-mix(in srgb,var(--${r === c ? 's0' : 's1'}) ${strong}%,var(--ground))`;
        }
        if (r === at[0] && c === at[1]) cell.className = 'here';
        cell.dataset.cell = `${r} ${c}`;
      }
    }
    home.querySelector('.part').replaceChildren(table);
    const mark = {x: left, y: top, width: wide, height: high};
    for (const name in mark) ring.setAttribute(name, mark[name]);
    tell(at);
  };
  const move = (r, c) => {
    at = [Math.min(Math.max(r, 0), size - 1), Math.min(Math.max(c, 0), size - 1)];
    draw();
  };
  over.addEventListener('pointermove', (event) => {
    const box = over.querySelector('svg').getBoundingClientRect();
    move(Math.floor(size * (event.clientY - box.top) / box.height),
      Math.floor(size * (event.clientX - box.left) / box.width));
  });
  const steps = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
    PageUp: [-data.lens, 0], PageDown: [data.lens, 0], Home: [-size, -size], End: [size, size]};
  over.addEventListener('keydown', (event) => {
    const step = steps[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move(at[0] + step[0], at[1] + step[1]);
  });
  home.querySelector('.part').addEventListener('pointerover', (event) => {
    const place = event.target.dataset && event.target.dataset.cell;
    if (place) tell(place.split(' ').map(Number));
  });
  draw();
}
"""


def policy() -> str:
    """What the page may do: its own style, its own script, pictures that it carries;
    nothing from anywhere."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
