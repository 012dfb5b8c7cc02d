'use strict';
// A row is [number, [diameter, area, depth, volume, status, left, top, confidence, seen], texts of the first four].
const rows = JSON.parse(document.getElementById('rows').textContent);
const statuses = JSON.parse(document.getElementById('statuses').textContent);
const details = document.getElementById('details').textContent.split('\n');
const indexOf = new Map(rows.map((row, index) => [row[0], index]));
const [STATUS, LEFT, TOP, CONFIDENCE, SEEN] = [4, 5, 6, 7, 8];
const printing = location.hash === '#print';  // to PDF: the widest first, no pages
const pageSize = printing ? Math.min(rows.length, 500) : rows.length <= 60 ? 60 : 30;
const cardCount = printing ? 60 : pageSize;
const element = (id) => document.getElementById(id);
const escape = (text) => String(text).replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
let sortKey = printing ? 0 : -1, descending = printing, shown = rows, page = 0;

const value = (row, key) => (key < 0 ? row[0] : row[1][key]);

function select() {
  const number = element('f-number').value.trim();
  const limit = (id, otherwise) => (element(id).value === '' ? otherwise : Number(element(id).value));
  const [low, high] = [limit('f-low', -Infinity), limit('f-high', Infinity)];
  const confidence = limit('f-confidence', -Infinity) / 100;
  const status = element('f-status').value;
  shown = rows.filter(([id, values]) =>
    (number === '' || String(id) === number) &&
    (low === -Infinity || values[0] >= low) && (high === Infinity || (values[0] !== null && values[0] <= high)) &&
    (confidence === -Infinity || values[CONFIDENCE] >= confidence) && (status === '' || values[STATUS] === Number(status)));
  const sign = descending ? -1 : 1;
  // Unknown comes last, whichever way; equals stay in the order of their numbers.
  shown.sort((a, b) => {
    const [x, y] = [value(a, sortKey), value(b, sortKey)];
    if (x === y) return a[0] - b[0];
    if (x === null) return 1;
    if (y === null) return -1;
    return sign * (x - y);
  });
}

function cells(row) {
  const [id, values, texts] = row;
  const [word, color] = statuses[values[STATUS]];
  const place = (key) => (values[key] === null ? '–' : values[key].toFixed(0));
  return `<td><a href="#airhole-${id}">${id}</a></td>${texts.map((text) => `<td>${escape(text)}</td>`).join('')}` +
    `<td class="text"><span class="dot" style="background: ${color}"></span>${word}</td>` +
    `<td>${place(LEFT)}</td><td>${place(TOP)}</td><td>${Math.round(100 * values[CONFIDENCE])}</td><td>${values[SEEN]}</td>`;
}

function section(points) {
  if (points.length < 2) return '<svg role="img" aria-label="No range points"><text x="50%" y="50%" text-anchor="middle" font-size="12">no range points</text></svg>';
  const xs = points.map((point) => point[0]), ds = points.map((point) => point[1]);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [high, low] = [Math.min(0, ...ds), Math.max(0.2, ...ds)];
  const scale = Math.min(200 / Math.max(right - left, 0.1), 86 / (low - high));  // the same for length and depth
  const x = (length) => (120 + (length - (left + right) / 2) * scale).toFixed(1);
  const y = (depth) => (22 + (depth - high) * scale).toFixed(1);
  const line = points.map(([length, depth]) => `${x(length)},${y(depth)}`).join(' ');
  return `<svg viewBox="0 0 240 130" role="img" aria-label="Section: ${low.toFixed(1)} mm deep at most">` +
    `<path d="M${x(left)} ${y(0)}H${x(right)}" stroke="var(--faint)" stroke-dasharray="4 3"/>` +
    `<polyline points="${line}" fill="none" stroke="var(--accent)" stroke-width="1.8"/>` +
    // Few readings are no profile, and look it.
    (points.length > 25 ? '' : points.map(([length, depth]) => `<circle cx="${x(length)}" cy="${y(depth)}" r="3" fill="var(--accent)"/>`).join('')) +
    `<text x="6" y="14" font-size="11">surface</text><text x="234" y="125" font-size="11" text-anchor="end">section of ${(right - left).toFixed(0)} mm, ${low.toFixed(1)} mm deep</text></svg>`;
}

function card(row) {
  const [id, values, texts] = row;
  const detail = JSON.parse(details[indexOf.get(id)]);
  const [word, color] = statuses[values[STATUS]];
  const rim = (detail.r || []).map(([x, y]) => `${100 * x},${100 * y}`).join(' ');
  const picture = detail.c
    ? `<svg viewBox="0 0 100 100" role="img" aria-label="Airhole ${id} with its rim"><image href="data:image/jpeg;base64,${detail.c}" width="100" height="100"/><polygon points="${rim}" fill="none" stroke="#000" stroke-width="2.2"/><polygon points="${rim}" fill="none" stroke="${color}" stroke-width="1.2"/></svg>`
    : '<svg role="img" aria-label="No picture"><text x="50%" y="50%" text-anchor="middle" font-size="12">no picture</text></svg>';
  const line = (name, text, unit, interval) =>
    `<dt>${name}</dt><dd>${escape(text)}${text === '–' ? '' : ' ' + unit}${interval && interval !== '–' ? ` <small>95 %: ${escape(interval)}</small>` : ''}</dd>`;
  const seen = `${detail.o[0]} time${detail.o[0] === 1 ? '' : 's'}${detail.o[1] ? `, missed ${detail.o[1]} time${detail.o[1] === 1 ? '' : 's'} where it should show` : ''}, ${detail.o[2]} range points`;
  return `<article class="card" id="airhole-${id}" tabindex="-1"><h3>Airhole ${id}</h3><div class="views">${picture}${section(detail.d || [])}</div><dl>` +
    line('Diameter', texts[0], 'mm') + line('Axes', detail.a.join(' × '), 'mm') + line('Area', texts[1], 'mm²', detail.i[0]) +
    line('Depth', texts[2], 'mm', detail.i[1]) + line('Volume', texts[3], 'mm³', texts[3].startsWith('<') ? '' : detail.i[2]) +
    `<dt>Status</dt><dd><span class="dot" style="background: ${color}"></span>volume: ${word}${detail.s === values[STATUS] ? '' : `; area: ${statuses[detail.s][0]}`}${detail.w ? `<br><small>${escape(detail.w)}</small>` : ''}</dd>` +
    `<dt>Confidence</dt><dd>${Math.round(100 * values[CONFIDENCE])} %</dd><dt>Seen</dt><dd>${seen}</dd>` +
    `<dt>Place</dt><dd>${escape(detail.p)} m <small>in ${escape(detail.f)}</small></dd><dt>Time</dt><dd>${detail.t[0] === detail.t[1] ? detail.t[0] : detail.t.join(' to ')}</dd></dl></article>`;
}

function draw() {
  const pages = Math.max(Math.ceil(shown.length / pageSize), 1);
  page = Math.min(Math.max(page, 0), pages - 1);
  const listed = shown.slice(page * pageSize, (page + 1) * pageSize);
  document.querySelector('#table tbody').innerHTML = listed.map((row) => `<tr data-id="${row[0]}">${cells(row)}</tr>`).join('');
  element('cards').innerHTML = listed.slice(0, cardCount).map(card).join('');
  element('shown').textContent = shown.length === rows.length ? `${rows.length} airholes` : `${shown.length} of ${rows.length} airholes`;
  element('page').textContent = `Page ${page + 1} of ${pages}`;
  element('previous').disabled = page === 0;
  element('next').disabled = page === pages - 1;
  document.querySelectorAll('#table th').forEach((head) => {
    const chosen = Number(head.querySelector('button').dataset.key) === sortKey;
    head.setAttribute('aria-sort', chosen ? (descending ? 'descending' : 'ascending') : 'none');
  });
}

function update() { page = 0; select(); draw(); }

function open(id) {
  if (!indexOf.has(id)) return;
  if (!shown.some((row) => row[0] === id)) { element('filter').reset(); select(); }
  page = Math.floor(shown.findIndex((row) => row[0] === id) / pageSize);
  draw();
  const target = element(`airhole-${id}`);
  target.scrollIntoView({ block: 'center' });
  target.focus({ preventScroll: true });
  const values = rows[indexOf.get(id)][1], mark = element('mark');
  if (mark && values[LEFT] !== null) { mark.setAttribute('cx', values[LEFT]); mark.setAttribute('cy', values[TOP]); }
}

const fromHash = () => { const found = location.hash.match(/^#airhole-(\d+)$/); if (found) open(Number(found[1])); };

element('filter').addEventListener('input', update);
element('filter').addEventListener('submit', (event) => event.preventDefault());
element('filter').addEventListener('reset', () => setTimeout(update));
element('previous').addEventListener('click', () => { page -= 1; draw(); });
element('next').addEventListener('click', () => { page += 1; draw(); });
document.querySelectorAll('#table th button').forEach((button) => button.addEventListener('click', () => {
  const key = Number(button.dataset.key);
  descending = key === sortKey ? !descending : key >= 0 && key !== STATUS;
  sortKey = key;
  update();
}));
const sheet = element('sheet');
if (sheet) sheet.addEventListener('click', (event) => {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(sheet.getScreenCTM().inverse());
  let best = null, distance = Infinity;
  for (const row of rows) {
    if (row[1][LEFT] === null) continue;
    const away = Math.hypot(row[1][LEFT] - point.x, row[1][TOP] - point.y) - (row[1][0] || 0) / 2;
    if (away < distance) [best, distance] = [row[0], away];
  }
  if (best !== null) { if (location.hash === `#airhole-${best}`) open(best); else location.hash = `#airhole-${best}`; }
});
addEventListener('hashchange', fromHash);
update();
fromHash();
