// The live page. Names come from whoever takes part: they are only ever text (textContent), never markup.
'use strict';

const SVG = 'http://www.w3.org/2000/svg';
const at = id => document.getElementById(id);
let state = null, ahead = 0, events = null, chosen = location.hash.slice(1);
try { chosen = decodeURIComponent(chosen); } catch { chosen = ''; }

function element(tag, text = '', kind = '') {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function drawn(tag, attributes, text = '') {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

// ---- numbers as a person reads them

const count = value => value === null || value === undefined ? '–' : value.toLocaleString('en');
const short = value => value === null || value === undefined ? '–'
  : Math.abs(value) >= 1000 ? count(Math.round(value)) : String(Number(value.toPrecision(3)));

function span(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 100) return `${short(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 100) return `${minutes} min`;
  const hours = Math.round(seconds / 3600);
  return hours < 48 ? `${hours} h` : `${Math.round(seconds / 86400)} d`;
}

function bytes(value) {
  for (const [unit, size] of [['GB', 1e9], ['MB', 1e6], ['kB', 1e3]])
    if (value >= size) return `${short(value / size)} ${unit}`;
  return `${value} B`;
}

const now = () => Date.now() / 1000 - ahead;
const age = when => Math.max(0, Math.round(now() - when));
const ago = when => when === null ? '–' : `${span(age(when) || 1)} ago`.replace('1 s ago', 'now');

// ---- parts of the page

function tile(name, value, more = '', kind = '') {
  const made = element('div', '', 'tile');
  made.append(element('span', name), element('b', value, kind), element('small', more));
  return made;
}

function meter(name, value, most, text) {
  const made = element('div'), line = element('p', name), bar = document.createElement('progress');
  line.append(element('span', text));
  bar.max = Math.max(1, most);
  bar.value = Math.min(value, bar.max);
  bar.setAttribute('aria-label', name);
  made.append(line, bar);
  return made;
}

// columns: [heading, text of a row, whether it is a number]
function table(place, columns, rows, none, more = 0) {
  if (!rows.length) return place.replaceChildren(element('p', none, 'none'));
  const made = document.createElement('table'), head = made.createTHead().insertRow();
  for (const [name, , number] of columns) head.append(element('th', name, number ? 'number' : ''));
  const body = made.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const [, text, number] of columns) line.append(element('td', text(row), number ? 'number' : 'name'));
  }
  place.replaceChildren(made);
  if (more) place.append(element('p', `and ${count(more)} more`, 'none'));
}

const WIDTH = 420, HEIGHT = 170, LEFT = 46, BOTTOM = 22, TOP = 8, RIGHT = 10;

function figure(title, note) {
  const made = document.createElement('figure'), caption = document.createElement('figcaption');
  caption.append(element('b', title), element('span', note));
  const svg = drawn('svg', {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img'});
  svg.setAttribute('aria-label', `${title}: ${note}`);
  made.append(caption, svg);
  return [made, svg];
}

function axis(svg, low, high, y, shares = [0, .5, 1]) {
  for (const share of shares) {
    const value = low + share * (high - low);
    svg.append(drawn('line', {class: 'grid', x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value)}));
    svg.append(drawn('text', {x: LEFT - 6, y: y(value) + 4, 'text-anchor': 'end'}, short(value)));
  }
}

function curve({name, points}, virtual) {
  const seen = points.filter(point => point[2] !== null);
  const newest = seen.at(-1);
  const [made, svg] = figure(name, newest ? `${short(newest[2])} in version ${count(newest[0])}` : 'no number');
  if (!newest) return made;
  let low = Infinity, high = -Infinity;
  for (const [, , value] of seen) { low = Math.min(low, value); high = Math.max(high, value); }
  if (high === low) { high += Math.abs(high) || 1; low -= Math.abs(low); }
  const first = seen[0][1], last = Math.max(newest[1], first + 1e-9);
  const x = time => LEFT + (time - first) / (last - first) * (WIDTH - LEFT - RIGHT);
  const y = value => HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP);
  axis(svg, low, high, y);
  svg.append(drawn('text', {x: LEFT, y: HEIGHT - 5}, span(first)));
  svg.append(drawn('text', {x: WIDTH - RIGHT, y: HEIGHT - 5, 'text-anchor': 'end'},
    `${span(newest[1])} ${virtual ? 'of virtual time' : 'into the run'}`));
  const kind = name === 'loss' ? ' loss' : '';
  // A value that is no number leaves a gap.
  let path = '', pen = 'M';
  for (const [, time, value] of points) {
    if (value === null) { pen = 'M'; continue; }
    path += `${pen}${x(time).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = 'L';
  }
  svg.append(drawn('path', {class: `curve${kind}`, d: path}));
  svg.append(drawn('circle', {class: `dot${kind}`, cx: x(newest[1]), cy: y(newest[2]), r: 3.5}));
  return made;
}

function staleness(bars) {
  const sum = bars.reduce((a, b) => a + b, 0);
  const mean = bars.reduce((a, b, stale) => a + b * stale, 0) / (sum || 1);
  const [made, svg] = figure('staleness', sum ? `${short(mean)} versions on average` : 'no updates yet');
  if (!sum) return made;
  const high = Math.max(...bars), step = (WIDTH - LEFT - RIGHT) / Math.max(bars.length, 8);
  const y = value => HEIGHT - BOTTOM - value / high * (HEIGHT - BOTTOM - TOP);
  axis(svg, 0, high, y, [0, 1]);
  bars.forEach((updates, stale) => {
    const left = LEFT + stale * step;
    svg.append(drawn('rect', {class: 'bar', x: left + 2, width: step - 4, y: y(updates),
      height: HEIGHT - BOTTOM - y(updates), rx: 2}));
    if (bars.length <= 10 || (stale % 2 === 0 && stale < 18) || stale === 19)
      svg.append(drawn('text', {x: left + step / 2, y: HEIGHT - 6, 'text-anchor': 'middle'},
        stale === 19 ? '19+' : String(stale)));
  });
  return made;
}

// ---- a run

const KINDS = {finished: 'good', running: 'calm', aborted: 'bad', failed: 'bad'};

function silence(run) {
  const heard = age(run.changed_at), usual = run.pace_s ?? 10;
  return run.status === 'running' && heard > Math.max(30, 10 * usual);
}

function tiles(run) {
  const rejected = run.rejected.reduce((sum, [, times]) => sum + times, run.rejected_more);
  const goes = run.status === 'running', silent = silence(run);
  const made = [
    tile('version', `${count(Math.max(0, run.version))} of ${count(run.of_versions)}`,
      run.made_at === null ? 'none yet' : `made ${ago(run.made_at)}`),
    tile('last record', ago(run.changed_at), silent ? 'silent for long: does the aggregator run?'
      : run.epoch > 1 ? `started ${run.epoch} times` : '', silent ? 'warn' : ''),
    tile('time left, at most', goes ? span(run.left_s) : '–',
      run.pace_s === null ? '' : `${span(run.pace_s)} a version`),
    tile(run.virtual ? 'virtual time' : 'time so far', span(run.elapsed_s)),
    tile('updates counted', count(run.counted), `${count(run.duplicates)} came twice`),
    tile('rejected', count(rejected), '', rejected ? 'warn' : ''),
    tile('lost', count(run.failures + run.dropouts),
      `${count(run.failures)} failed, ${count(run.dropouts)} dropped`),
    tile('traffic', bytes(run.bytes_up), `up; ${bytes(run.bytes_down)} down`),
  ];
  at('tiles').replaceChildren(...made);
}

function meters(run) {
  const closed = Object.entries(run.closed_by).filter(([, times]) => times)
    .map(([why, times]) => `${count(times)} by ${why}`).join(', ');
  const buffer = run.trigger === 'examples' ? `${count(run.buffered)} updates`
    : `${count(run.buffered)} of ${count(run.quorum)}${run.trigger === 'clients' ? ' clients' : ''}`;
  const made = [
    meter('versions', Math.max(0, run.version), run.of_versions, closed && `closed: ${closed}`),
  ];
  // The ledger knows of an open buffer what a partial checkpoint has saved; most close before one.
  if (run.buffered) made.push(meter('open buffer, as saved', run.buffered, run.quorum, buffer));
  if (run.train_fraction !== null)
    made.push(meter('workers train', run.train_fraction, 1, `${short(run.train_fraction * 100)} % of their time`));
  at('meters').replaceChildren(...made);
}

function show() {
  const run = state.run;
  at('main').hidden = at('about').hidden = !run;
  at('nothing').hidden = Boolean(run);
  chooser();
  if (!run) return;
  at('name').textContent = run.label;
  document.title = `${run.status === 'running' ? `${Math.max(0, run.version)}/${run.of_versions}` : run.status} · ${run.label}`;
  at('status').textContent = run.status;
  at('status').className = `badge ${KINDS[run.status] ?? 'warn'}`;
  at('about').textContent = [run.name, run.strategy, run.task, run.mode === 'cohort' ? 'cohorts'
    : run.concurrency === null ? 'asynchronous' : `${count(run.concurrency)} in flight`, `${count(run.clients)} clients`].join(' · ');
  at('detail').hidden = !run.detail;
  at('detail').textContent = run.detail;
  tiles(run);
  meters(run);
  const curves = run.curves.length ? run.curves.map(one => curve(one, run.virtual))
    : [figure('accuracy and loss', 'nothing evaluated yet')[0]];
  at('charts').replaceChildren(...curves, staleness(run.staleness));
  table(at('recent'), [
    ['client', row => row.client], ['worker', row => row.worker],
    ['trained', row => span(row.train_s), true], ['examples', row => count(row.examples), true],
    ['from', row => count(row.base), true], ['into', row => count(row.version), true],
    ['stale', row => count(row.staleness), true],
  ], run.recent, 'No update has been recorded yet.');
  table(at('workers'), [
    ['worker', row => row.name], ['last counted', row => ago(row.seen_at), true],
    ['updates', row => count(row.updates), true], ['mean training', row => span(row.train_s), true],
  ], run.workers, 'Nobody has sent an update yet.', run.workers_more);
  at('sites-section').hidden = !run.sites.length;
  table(at('sites'), [
    ['site', row => row.name], ['last seen', row => ago(row.seen_at), true],
    ['from', row => row.version === null ? '–' : count(row.version), true], ['counted', row => count(row.counted), true],
    ['failed', row => count(row.failed), true], ['rejected', row => count(row.rejected), true],
  ], run.sites, '', run.sites_more);
  table(at('rejected'), [
    ['what', row => row[0]], ['times', row => row[1], true],
  ], [...run.rejected.map(([why, times]) => [`rejected: ${why}`, count(times)]),
      ...run.failed.map(([client, worker, why, when]) => [`client ${client} failed on ${worker}: ${why}`, ago(when)])],
  'Nothing has been rejected, nobody has failed.', run.rejected_more);
}

function chooser() {
  at('chooser').hidden = state.runs.length < 2;
  const list = at('runs');
  if (list === document.activeElement) return;  // it may be open
  list.replaceChildren(...state.runs.map(one => {
    const made = element('option', `${one.label} · ${one.status === 'running'
      ? `${Math.max(0, one.version)} of ${one.of_versions}` : one.status}`);
    made.value = one.label;
    made.selected = state.run !== null && one.label === state.run.label;
    return made;
  }));
}

// ---- the stream

function listen() {
  events?.close();
  events = new EventSource(chosen ? `events?run=${encodeURIComponent(chosen)}` : 'events');
  events.onmessage = event => {
    state = JSON.parse(event.data);
    ahead = Date.now() / 1000 - state.now;
    at('link').textContent = 'live';
    at('link').className = '';
    show();
  };
  events.onerror = () => {
    at('link').textContent = 'no connection to fluffle watch; trying again';
    at('link').className = 'lost';
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  };
}

at('runs').addEventListener('change', event => {
  chosen = event.target.value;
  history.replaceState(null, '', `#${encodeURIComponent(chosen)}`);
  event.target.blur();
  listen();
});
setInterval(() => { if (state?.run) tiles(state.run); }, 1000);
listen();
