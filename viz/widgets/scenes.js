// Written by `make bundle` from viz/browser/, do not edit. SHA-256 of the sources: b9035474caf8e94bd33ed5a8f3657c5ccaf29f04f9bdd73e87b84b9632642ae7
// elements.js
var SVG = "http://www.w3.org/2000/svg";
var DRAWN = ["svg", "g", "rect", "path", "line", "circle"];
function make(tag, attributes = {}, parent = null, text = null) {
  const isSvg = DRAWN.includes(tag) || attributes.svg;
  const element = isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (name !== "svg") element.setAttribute(name, String(value));
  if (text !== null) element.textContent = String(text);
  if (parent) parent.appendChild(element);
  return (
    /** @type {Made<T>} */
    element
  );
}
function put(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
}
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// glossary.json
var glossary_default = {
  module: "One linear layer of the model, named by its layer (transformer block) and its projection.",
  layer: "The transformer block that a module is in, counted from 0.",
  projection: "The place of a module in its layer: q, k, v and o in attention, gate, up and down in the MLP.",
  rank: "The number of rows of A: how many input directions the adapter of a module can read. White is the nominal rank, which a uniform allocation gives to every module; red is more, blue is less.",
  "nominal rank": "The rank of every module in a uniform allocation; it sets the budget.",
  budget: "What all modules share: the ranks, or the trainable parameters, of the uniform allocation. A module that gets more takes it from the others.",
  score: "The sensitivity of a module: the mean of |weight \xD7 gradient| over its weights and the calibration samples, in nats.",
  sensitivity: "How sensitive the loss is to the weights of a module: its share of all scores. Ranks by score are in proportion to it.",
  change: "Ranks more (red) or fewer (blue) than in the kept allocation.",
  scaling: "The factor s in W + s B A: how strongly an adapter acts on its module. White is alpha / rank.",
  alpha: "Numerator of the scaling: s is alpha divided by the rank.",
  temperature: "How strongly ranks follow the scores: 1 in proportion, 0 the same rank for all.",
  min_rank: "The lowest rank that a module may get; with 0, modules with low scores get no adapter.",
  max_rank: "The highest rank that a module may get, at most the number of directions computed for it.",
  "effective rank": "How many directions the inputs of a module use: the participation ratio of the eigenvalues of their covariance.",
  expert: "One of the MLPs of a layer in a mixture; a router sends each token to a few of them.",
  "tokens routed": "Tokens of the samples that the router sent to the expert, without masked ones.",
  work: "The sensitivity of an expert, summed over its weights: its share of that of all experts.",
  "squared gradient": "The squared gradient of an expert's weights on the samples: its share of that of all experts.",
  direction: "A vector in the input space of a module. Each row of A is one: it turns a token's input into one number.",
  energy: "Share of ||W C||\xB2, the covariance of the inputs seen through the weight, that lies along the first directions, of those that were computed. A high share does not say that training needs more of them.",
  variance: "Share of the variance of a module's inputs that lies along the first directions.",
  "gradient captured": "Share of the squared gradient of held-out samples that lies along the rows of A: what an adapter with A frozen can follow. Between the ranks that were measured it is interpolated.",
  neighbors: "Overlap of the directions of a module with those of the same projection in the next layers.",
  overlap: "How much two subspaces share: the mean squared cosine of their principal angles; 1 the same, 0 orthogonal.",
  "by chance": "The overlap of random subspaces: their rank divided by the dimension of the inputs.",
  update: "Norm of what training added to a module, s B A, divided by the norm of its weight.",
  "rank used": "How many directions hold 99 % of the squared norm of the trained update.",
  "first directions taken": "How many directions are counted, from the strongest on; a rank of 8 takes the first 8.",
  "cumulative share": "Share that the first directions hold together; it reaches 100 % with all of them.",
  "each direction": "Share that a single direction holds, on a logarithmic axis.",
  share: "Part of the whole, from 0 to 100 %.",
  resamples: "The scores are computed again from samples drawn with replacement: how often a module then gets a rank. A wide range means that other samples would give another rank.",
  kept: "The allocation from which changes are counted; Keep makes the present one the kept one.",
  new: "The allocation that is shown, which the next cell trains.",
  uniform: "The same rank and scaling for every module, with the same budget.",
  lora: "Plain LoRA of the nominal rank on the same modules, which trains A as well as B.",
  "by hand": "Set by you; the other modules share the rest of the budget.",
  "by score": "In proportion to the score of the module.",
  "the most allowed": "The score asks for more than max_rank, or than the directions that were computed.",
  "the least allowed": "The score asks for less than min_rank.",
  "left out": "The module has no adapter.",
  "trainable parameters": "Numbers that training changes: the entries of B while A is frozen.",
  "adapter, float32": "Size of the saved adapter, A and B, with four bytes a number.",
  "adamw states, float32": "Memory of the optimizer's two averages for each trainable parameter.",
  "peak memory of training": "Estimated upper bound of the memory that a training step needs.",
  loss: "How surprised the model is by a right answer: minus the logarithm of its probability, a mean over tokens, in nats. Lower is better.",
  nats: "Unit of the loss, with natural logarithms. 0.7 nats less means twice the probability for each token.",
  gain: "By how much the adapter raises the log-probability of the reference, in nats; without a reference, that of its own answer. A bar is red if it rose, blue if it fell.",
  "gain of a token": "By how much the adapter raises the log-probability, or the log-odds, of a token of the answer, in nats.",
  "probability in the base": "The probability that the model gives to a token without the adapter.",
  "probability with the adapter": "The probability that the model gives to a token with the adapter.",
  "probability now": "The same with the modules that are switched off left out; empty while none is.",
  "first choice now": "The token that the model would now write here instead.",
  "training loss": "Loss of the samples of a training step, before the step.",
  "held-out loss": "Loss of samples that are not trained on; differences between two adapters are compared on these.",
  "optimizer step": "One update of the trainable parameters, from one batch of samples.",
  steps: "Optimizer steps of each training; if empty, as many as fit into the time, by two steps that are timed and not recorded.",
  "learning rate": "Peak size of the optimizer's steps. For adapters with A frozen 0.001 to 0.008 is usual.",
  training: "Loss of the samples of a training step, before the step.",
  "held out": "Loss of samples that are not trained on; differences between two adapters are compared on these.",
  validation: "Loss of samples that are not trained on; differences between two adapters are compared on these.",
  "loss, nats": "How surprised the model is by a right answer: minus the logarithm of its probability, a mean over tokens, in nats. Lower is better.",
  "validation loss": "Loss of samples that are not trained on; differences between two adapters are compared on these.",
  resampled: "The scores are computed again from samples drawn with replacement: how often a module then gets a rank. A wide range means that other samples would give another rank.",
  "rank from resampled scores": "The scores are computed again from samples drawn with replacement: how often a module then gets a rank. A wide range means that other samples would give another rank.",
  "overlap, next layers": "Overlap of the directions of a module with those of the same projection in the next layers.",
  "new, of kept": "The allocation that is shown, which the next cell trains.",
  "update, kept": "Norm of what training added to a module, s B A, divided by the norm of its weight.",
  "update, new": "Norm of what training added to a module, s B A, divided by the norm of its weight.",
  "update, uniform": "Norm of what training added to a module, s B A, divided by the norm of its weight.",
  "mean of all modules": "How much two subspaces share: the mean squared cosine of their principal angles; 1 the same, 0 orthogonal.",
  "gain, nats": "By how much the adapter raises the log-probability of the reference, in nats; without a reference, that of its own answer. A bar is red if it rose, blue if it fell."
};

// explain.js
var SENTENCES = glossary_default;
function describe(element, sentence) {
  if (!sentence) return element;
  element.setAttribute("aria-description", sentence);
  const isReachable = ["BUTTON", "LABEL", "SUMMARY"].includes(element.tagName) || element.hasAttribute("tabindex");
  if (!isReachable) element.setAttribute("tabindex", "0");
  return element;
}
function explained(element, words = element.textContent ?? "") {
  return describe(element, SENTENCES[words.toLowerCase()]);
}
function explainer(root) {
  const box = make("div", { class: "tip term", "aria-hidden": "true" }, root);
  const hide = () => {
    box.style.display = "none";
  };
  function show(event) {
    const word = event.target instanceof Element ? event.target.closest("[aria-description]") : null;
    if (!word) return hide();
    box.textContent = word.getAttribute("aria-description");
    box.style.display = "block";
    const frame = root.getBoundingClientRect(), at = word.getBoundingClientRect();
    box.style.left = `${Math.max(0, Math.min(at.left - frame.left, frame.width - box.offsetWidth - 4))}px`;
    box.style.top = `${at.bottom - frame.top + 4}px`;
  }
  for (const event of ["pointerover", "focusin"]) root.addEventListener(event, show);
  for (const event of ["pointerleave", "focusout", "click"]) root.addEventListener(event, hide);
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
}

// controls.js
var STEPS = { ArrowRight: 1, ArrowLeft: -1 };
function button(parent, label, sentence, action, attributes = {}) {
  const element = describe(make("button", { type: "button", ...attributes }, parent, label), sentence);
  element.addEventListener("click", action);
  return element;
}
var labeled = (parent, label) => make("label", { class: "control" }, parent, label);
var group = (parent, name) => make("span", { class: "group", role: "group", "aria-label": name }, parent);
function choose(parent, label, options, selected, action) {
  const select = make("select", {}, labeled(parent, label));
  fillOptions(select, options, selected);
  select.addEventListener("change", () => action(select.value));
  return select;
}
function fillOptions(select, options, selected) {
  select.replaceChildren();
  for (const [value, text] of options) make("option", { value }, select, text).selected = value === selected;
}
function onArrows(row, then = () => {
}) {
  row.addEventListener("keydown", (event) => {
    const step3 = STEPS[event.key];
    if (!step3) return;
    const buttons = [...row.querySelectorAll("button")].filter((button2) => !button2.hidden);
    const at = buttons.findIndex((button2) => button2 === event.target);
    const target = buttons[(at + step3 + buttons.length) % buttons.length];
    then(target);
    target.focus();
    event.preventDefault();
  });
}

// text.js
var MINUS = "\u2212";
var percent = (x) => (x >= 0.0995 || x === 0 ? (100 * x).toFixed(0) : (100 * x).toPrecision(2)) + "\xA0%";
var number = (x) => Math.abs(x) >= 10 ? x.toFixed(0) : String(+x.toPrecision(2));
var lossText = (x) => x < 1e-3 ? "below 0.001" : x < 100 ? x.toPrecision(3) : x.toFixed(0);
var whole = (x) => Math.abs(x).toLocaleString("en-US");
var capitalized = (words) => words[0].toUpperCase() + words.slice(1);

// scenes/matrix.js
function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}
var transpose = (a) => a[0].map((_, j) => a.map((row) => row[j]));
var times = (a, factor) => a.map((row) => row.map((value) => value * factor));
var plus = (a, b, factor = 1) => a.map((row, i) => row.map((value, j) => value + factor * b[i][j]));
var squaredNorm = (a) => a.reduce((sum, row) => sum + dot(row, row), 0);
var zeros = (rows, columns) => Array.from({ length: rows }, () => Array(columns).fill(0));
function product(a, b) {
  const columns = b[0].length;
  return a.map((row) => {
    const sums = Array(columns).fill(0);
    for (let k = 0; k < row.length; k++) {
      for (let j = 0; j < columns; j++) sums[j] += row[k] * b[k][j];
    }
    return sums;
  });
}
var productTransposed = (a, b) => a.map((row) => b.map((other) => dot(row, other)));
var meanRow = (a) => transpose(a).map((column) => column.reduce((sum, value) => sum + value, 0) / a.length);
function covariance(rows, centered = true) {
  const mean = centered ? meanRow(rows) : rows[0].map(() => 0);
  const columns = transpose(rows.map((row) => row.map((value, i) => value - mean[i])));
  return times(productTransposed(columns, columns), 1 / rows.length);
}
function eigen(symmetric) {
  const a = symmetric.map((row) => [...row]), n = a.length;
  const vectors = a.map((_, i) => a.map((_2, j) => Number(i === j)));
  const tiny = 1e-28 * squaredNorm(a);
  const rest = () => squaredNorm(a.map((row, i) => row.filter((_, j) => j > i)));
  for (let sweep = 0; sweep < 60 && rest() > tiny; sweep++) {
    for (let p = 0; p < n; p++) for (let q = p + 1; q < n; q++) rotate(a, vectors, p, q);
  }
  const order = a.map((_, i) => i).sort((i, j) => a[j][j] - a[i][i]);
  return { values: order.map((i) => a[i][i]), vectors: order.map((i) => withSign(vectors[i])) };
}
function rotate(a, vectors, p, q) {
  if (a[p][q] === 0) return;
  const ratio = (a[q][q] - a[p][p]) / (2 * a[p][q]);
  const tangent = (ratio < 0 ? -1 : 1) / (Math.abs(ratio) + Math.hypot(ratio, 1));
  const cosine = 1 / Math.hypot(tangent, 1), sine = tangent * cosine;
  const mix = (left, right) => [cosine * left - sine * right, sine * left + cosine * right];
  for (const row of a) [row[p], row[q]] = mix(row[p], row[q]);
  for (const rows of [a, vectors]) {
    const pairs = rows[p].map((value, j) => mix(value, rows[q][j]));
    rows[p] = pairs.map(([first]) => first);
    rows[q] = pairs.map(([, second]) => second);
  }
}
function withSign(vector) {
  const peak = vector.reduce((most, value) => Math.abs(value) > Math.abs(most) ? value : most, 0);
  return peak < 0 ? vector.map((value) => -value) : vector;
}
var rightSingular = (a) => eigen(productTransposed(transpose(a), transpose(a)));
function solve(a, b) {
  const { values, vectors } = eigen(a), parts = product(vectors, b);
  return product(transpose(vectors), parts.map((row, i) => row.map((value) => value / values[i])));
}

// scenes/random.js
function generator(seed) {
  let state = seed >>> 0;
  function uniform() {
    state = state + 1831565813 >>> 0;
    let bits = Math.imul(state ^ state >>> 15, state | 1);
    bits ^= bits + Math.imul(bits ^ bits >>> 7, bits | 61);
    return ((bits ^ bits >>> 14) >>> 0) / 2 ** 32;
  }
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  const normals = (rows, columns) => Array.from({ length: rows }, () => Array.from({ length: columns }, normal));
  return { uniform, normal, normals };
}

// scenes/layer.js
var INPUTS = 12;
var OUTPUTS = 8;
var RANK = 2;
var SAMPLES = 64;
function makeLayer(seed) {
  const { uniform, normals } = generator(seed);
  const scales = Array.from({ length: INPUTS }, (_, i) => 1.5 * 3 ** (-i / (INPUTS - 1)));
  const rows = normals(SAMPLES, INPUTS).map((row) => row.map((value, i) => value * scales[i]));
  const moment = covariance(rows, false), raw = product(normals(OUTPUTS, RANK), normals(RANK, INPUTS));
  const change = times(raw, 1 / Math.sqrt(lossOf(zeros(OUTPUTS, INPUTS), { moment, change: raw })));
  const bound = 1 / Math.sqrt(INPUTS);
  const random = zeros(RANK, INPUTS).map((row) => row.map(() => bound * (2 * uniform() - 1)));
  const leading = rightSingular(product(change, moment)).vectors.slice(0, RANK);
  return { moment, change, random, gradient: leading.map((row) => likeRandom(row, moment)) };
}
function likeRandom(row, moment) {
  const mean = moment.reduce((sum, line, i) => sum + line[i], 0) / (3 * INPUTS);
  const factor = Math.sqrt(mean / dot(row, moment.map((line) => dot(line, row))));
  return row.map((value) => factor * value);
}
function lossOf(update, { moment, change }) {
  const rest = plus(update, change, -1);
  return product(rest, moment).reduce((sum, row, i) => sum + dot(row, rest[i]), 0) / 2;
}
function floorOf(a, layer) {
  const seen = product(a, layer.moment), b = transpose(solve(productTransposed(seen, a), productTransposed(seen, layer.change)));
  return lossOf(product(b, a), layer);
}
function begin(layer, method) {
  const a = method === "gradient" ? layer.gradient : layer.random;
  return { method, a, b: zeros(OUTPUTS, RANK), update: zeros(OUTPUTS, INPUTS) };
}
function step(layer, { method, a, b, update }, rate) {
  const gradient = product(plus(update, layer.change, -1), layer.moment);
  if (method === "full") return { method, a, b, update: plus(update, gradient, -rate) };
  const nextB = plus(b, productTransposed(gradient, a), -rate);
  const nextA = method === "lora" ? plus(a, product(transpose(b), gradient), -rate) : a;
  return { method, a: nextA, b: nextB, update: product(nextB, nextA) };
}
function lossesByRate(layer, method, rates, steps) {
  return rates.map((rate) => {
    let training = begin(layer, method);
    for (let n = 0; n < steps; n++) training = step(layer, training, rate);
    const loss = lossOf(training.update, layer);
    return Number.isFinite(loss) ? loss : Infinity;
  });
}
function storedNumbers(method, inputs, outputs, rank) {
  const frozen = { trained: rank * outputs, kept: rank };
  const lora = { trained: rank * (inputs + outputs), kept: inputs + rank };
  const full = { trained: inputs * outputs, kept: inputs };
  const { trained, kept } = { random: frozen, gradient: frozen, lora, full }[method];
  return { trained, states: 2 * trained, kept };
}

// table.js
function fillTable(table, { head, rows, look = () => ({}), term = (name) => name }) {
  if (head.length) {
    const tr = make("tr", {}, make("thead", {}, table));
    head.forEach((name, i) => {
      const cell = name ? make("th", { scope: "col", ...look(i) }, tr, name) : make("td", {}, tr, name);
      explained(cell, term(name));
    });
  }
  const body = make("tbody", {}, table);
  for (const row of rows) {
    const tr = make("tr", {}, body);
    row.forEach((text, i) => {
      if (i) make("td", look(i), tr, text);
      else explained(make("th", { scope: "row", ...look(i) }, tr, text));
    });
  }
}
function drawTable(parent, { caption, head, rows, text = [0], folded = false }) {
  const details = folded ? make("details", {}, parent) : null;
  if (details) make("summary", {}, details, caption);
  const scroll = { class: "scroll", role: "region", tabindex: 0, "aria-label": caption };
  const table = make("table", {}, make("div", scroll, details ?? parent));
  if (!folded) make("caption", {}, table, caption);
  fillTable(table, { head, rows, look: (i) => ({ class: text.includes(i) ? "words" : "count" }) });
}

// chart.js
var LEFT = 50;
var RIGHT = 8;
var TOP = 6;
var BOTTOM = 32;
var LETTER = 7.4;
var APART = 13;
var RAISED = "\u2070\xB9\xB2\xB3\u2074\u2075\u2076\u2077\u2078\u2079";
function ticks(low, high, log, most) {
  if (log) return logTicks(low, high, most);
  const ticks2 = [], power = 10 ** Math.floor(Math.log10((high - low) / most || 1));
  const step3 = ([1, 2, 5].find((f) => f * power >= (high - low) / most) ?? 10) * power;
  for (let v = Math.ceil(low / step3 - 1e-9) * step3; v <= high + step3 * 1e-6; v += step3) ticks2.push(+v.toPrecision(12));
  return ticks2;
}
function logTicks(low, high, most) {
  const all = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
    for (const f of [1, 2, 5]) all.push(+`${f}e${p}`);
  }
  const inside = all.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  if (inside.length < 2) return ticks(low, high, false, most);
  if (inside.length <= most) return inside;
  const powers = inside.filter((v) => v.toExponential().startsWith("1e")), every = Math.ceil(powers.length / most);
  return powers.filter((_, i) => i % every === 0);
}
function tickText(axis, v) {
  if (axis.percent) return `${+(100 * v).toFixed(4)}\xA0%`;
  if (!axis.log || v >= 0.01 && v <= 99999) return String(+v.toPrecision(6)).replace("-", MINUS);
  const [digits, power] = v.toExponential().split("e");
  const raised = [...String(Number(power))].map((c) => c === "-" ? "\u207B" : RAISED[Number(c)]).join("");
  return `${digits === "1" ? "" : `${digits}\xB7`}10${raised}`;
}
function span(axis, values) {
  const low = axis.min ?? Math.min(...values), high = axis.max ?? Math.max(...values);
  if (low !== high) return [low, high];
  return axis.log ? [low / 2, high * 2] : [low - Math.abs(low) / 10 - 1e-9, high + Math.abs(high) / 10 + 1e-9];
}
function place(v, [low, high], log) {
  return log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
}
function valueUnder(svg, { min, max, log }, clientX) {
  const box = svg.getBoundingClientRect(), width = Number(svg.getAttribute("width"));
  const pixels = (clientX - box.left) * width / (box.width || width) - LEFT;
  const share = Math.max(0, Math.min(1, pixels / (width - LEFT - RIGHT)));
  return log ? min * (max / min) ** share : min + share * (max - min);
}
function chart(parent, contents) {
  const { title, lines, bars = [], x, y, width = 340, height = 150, legend = true, named = false } = contents;
  const usable = ([a, b]) => Number.isFinite(a) && Number.isFinite(b) && (!x.log || a > 0) && (!y.log || b > 0);
  const points = lines.flatMap((line) => line.points).concat(bars).filter(usable);
  if (legend && !named) drawKey(parent, lines);
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  const svg = make("svg", { class: "chart", role: "group", ...size, "aria-label": title }, parent);
  if (!points.length) return svg;
  const right = width - (named ? RIGHT + LETTER * Math.max(...lines.map(({ label = "" }) => label.length)) : RIGHT);
  const xs = span(x, points.map(([a]) => a)), ys = span(y, points.map(([, b]) => b));
  const at = (v) => LEFT + (right - LEFT) * place(v, xs, x.log);
  const up = (v) => TOP + (height - TOP - BOTTOM) * (1 - place(v, ys, y.log));
  const frame = { svg, x, y, xs, ys, at, up, right, height };
  drawAxes(frame);
  drawBars(frame, bars, contents.cursor ?? null);
  const spare = 1e-6 * (ys[1] - ys[0]);
  const isInside = ([, b]) => b >= ys[0] - spare && b <= ys[1] + spare;
  let color = 0;
  const drawn = lines.map((line) => {
    const look = line.gray ? "gray" : `c${line.color ?? color++} ${line.name ?? ""}`;
    const inside = line.points.filter(usable).filter(isInside);
    drawLine(frame, line, look, inside);
    return { line, look, end: inside.at(-1) };
  });
  if (named) drawNames(frame, drawn);
  return svg;
}
function drawKey(parent, lines) {
  const inColor = lines.filter((line) => !line.gray), named = inColor.filter((line) => line.label);
  if (!named.length) return;
  const key = make("div", { class: "key" }, parent);
  for (const line of named) {
    const entry = make("span", { class: `c${line.color ?? inColor.indexOf(line)} ${line.name ?? ""}` }, key);
    make("span", { class: `swatch${line.dash ? " dash" : ""}${line.thin ? " thin" : ""}` }, entry);
    entry.append(line.label ?? "");
    explained(entry, line.term ?? line.label);
  }
}
function drawAxes({ svg, x, y, xs, ys, at, up, right, height }) {
  const bottom = height - BOTTOM;
  const line = (look, ends) => make("line", { class: look, ...ends }, svg);
  const tick = (attributes, text) => make("text", { svg: true, class: "tick", ...attributes }, svg, text);
  for (const v of ticks(ys[0], ys[1], y.log, y.log ? 6 : 4)) {
    line("guide", { x1: LEFT, x2: right, y1: up(v), y2: up(v) });
    tick({ x: LEFT - 5, y: up(v) + 3.5, "text-anchor": "end" }, tickText(y, v));
  }
  for (const v of ticks(xs[0], xs[1], x.log, Math.floor((right - LEFT) / 38))) {
    line("axis", { x1: at(v), x2: at(v), y1: bottom, y2: bottom + 4 });
    tick({ x: at(v), y: bottom + 14, "text-anchor": "middle" }, tickText(x, v));
  }
  line("axis", { x1: LEFT, x2: right, y1: bottom, y2: bottom });
  line("axis", { x1: LEFT, x2: LEFT, y1: TOP, y2: bottom });
  explained(tick({ x: (LEFT + right) / 2, y: height - 3, "text-anchor": "middle" }, x.label));
  const turned2 = `translate(10 ${(TOP + bottom) / 2}) rotate(-90)`;
  explained(tick({ transform: turned2, "text-anchor": "middle" }, y.label));
}
function drawBars({ svg, xs, ys, at, up, height }, bars, cursor) {
  const wide = bars.length ? Math.max(1, 0.8 * (at(xs[0] + 1) - at(xs[0]))) : 0;
  for (const [a, b] of bars) {
    make("rect", { class: "bar", x: at(a) - wide / 2, width: wide, y: up(b), height: up(ys[0]) - up(b) }, svg);
  }
  if (cursor !== null && cursor >= xs[0] && cursor <= xs[1]) {
    make("line", { class: "cursor", x1: at(cursor), x2: at(cursor), y1: TOP, y2: height - BOTTOM }, svg);
  }
}
function drawLine({ svg, at, up }, line, look, points) {
  const path = points.map(([a, b], k) => `${k ? "L" : "M"}${at(a).toFixed(1)} ${up(b).toFixed(1)}`).join("");
  make("path", { class: `curve ${look}${line.thin ? " thin" : ""}${line.dash ? " dash" : ""}`, d: path }, svg);
  if (!line.dots && (points.length !== 1 || line.gray)) return;
  for (const [a, b] of points) make("circle", { class: look, cx: at(a), cy: up(b), r: 2.8 }, svg);
}
function drawNames({ svg, at, up, height }, drawn) {
  const named = drawn.flatMap(({ line, look, end }) => line.label && end ? [{ line, look, end }] : []);
  const places = spread(named.map(({ end }) => up(end[1])), APART, height - BOTTOM);
  named.forEach(({ line: { label = "", term = label }, look, end }, i) => {
    const spot = { class: `end ${look}`, x: at(end[0]) + 6, y: places[i] + 4 };
    explained(make("text", { svg: true, ...spot }, svg, label), term);
  });
}
function spread(places, distance, most) {
  const moved = [...places], order = places.map((_, i) => i).sort((a, b) => places[a] - places[b]);
  order.forEach((i, n) => {
    if (n) moved[i] = Math.max(moved[i], moved[order[n - 1]] + distance);
  });
  let edge = most;
  for (const i of order.reverse()) {
    moved[i] = Math.min(moved[i], edge);
    edge = moved[i] - distance;
  }
  return moved;
}

// scenes/slider.js
function slider(parent, label, { min, max, step: step3, text = String }, action) {
  const box = labeled(parent, label), input = make("input", { type: "range", min, max, step: step3 }, box);
  const output = make("output", {}, box);
  input.addEventListener("input", () => action(Number(input.value)));
  function set(value) {
    input.value = String(value);
    input.setAttribute("aria-valuetext", text(value));
    output.textContent = text(value);
  }
  return { set, box };
}
function onDrag(picture, grip, move) {
  let held = null;
  picture.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    held = grip(event);
    if (held === null) return;
    event.preventDefault();
    picture.setPointerCapture?.(event.pointerId);
    move(event, held);
  });
  picture.addEventListener("pointermove", (event) => {
    if (held !== null) move(event, held);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    picture.addEventListener(end, () => {
      held = null;
    });
  }
}

// scenes/drag_chart.js
var NARROWEST = 280;
var WIDEST = 640;
function dragChart(parent, action) {
  const root = make("div", { class: "drag-chart" }, parent);
  let axis = null;
  onDrag(root, ({ target }) => target instanceof Element && target.closest("svg") ? true : null, (event) => {
    const svg = root.querySelector("svg");
    if (svg && axis) action(valueUnder(svg, axis, event.clientX));
  });
  function draw(contents) {
    axis = contents.x;
    root.replaceChildren();
    const width = Math.max(NARROWEST, Math.min(WIDEST, root.clientWidth || WIDEST));
    chart(root, { ...contents, width, height: contents.height ?? 210 });
  }
  return { draw };
}

// allocate.js
function refuse() {
  throw new RangeError("the limits cannot be met");
}
var total = (units, costs) => units.reduce((sum, count, i) => sum + count * costs[i], 0);
function integers(values) {
  const bits = values.map((value) => new DataView(new Float64Array([value]).buffer).getBigUint64(0, true));
  const powers = bits.map((b) => Math.max(1, Number(b >> 52n)));
  const least = Math.min(...powers.filter((_, i) => values[i]), 2046);
  const fraction = (b) => b & 0xfffffffffffffn | (b >> 52n ? 1n << 52n : 0n);
  return { least, numerators: bits.map((b, i) => values[i] ? fraction(b) << BigInt(powers[i] - least) : 0n) };
}
function apportion(weights, budget, low, high, costs = ones(weights)) {
  if (total(low, costs) > budget) refuse();
  budget = Math.min(budget, total(high, costs));
  const full = weights.map((weight, i) => weight ? high[i] : low[i]);
  if (total(full, costs) <= budget) [low, weights] = [full, ones(weights)];
  const { numerators } = integers(weights), { rest, scale } = level(numerators, budget, low, high, costs);
  const ideal = (i) => Number(numerators[i] * rest / scale);
  const units = weights.map((_, i) => Math.min(Math.max(ideal(i), low[i]), high[i]));
  const lack = (i) => BigInt(units[i]) * scale - numerators[i] * rest;
  const lacks = units.map((_, i) => lack(i));
  for (let left = budget - total(units, costs); ; ) {
    let next = -1;
    units.forEach((count, i) => {
      if (count < high[i] && costs[i] <= left && (next < 0 || lacks[i] < lacks[next])) next = i;
    });
    if (next < 0) return units;
    units[next]++;
    left -= costs[next];
    lacks[next] = lack(next);
  }
}
function level(numerators, budget, low, high, costs) {
  const [floor, ceiling, cost] = [low, high, costs].map((column) => column.map(BigInt));
  const sum = (members, of) => members.reduce((all, i) => all + of(i), 0n);
  let free = [...numerators.keys()], rest = BigInt(budget);
  for (; ; ) {
    const scale = sum(free, (i) => numerators[i] * cost[i]);
    const beyond = (limit2, i) => numerators[i] * rest - limit2[i] * scale;
    const cut = free.filter((i) => beyond(ceiling, i) > 0n), raised = free.filter((i) => beyond(floor, i) < 0n);
    const surplus = sum(cut, (i) => beyond(ceiling, i) * cost[i]) + sum(raised, (i) => beyond(floor, i) * cost[i]);
    if (!surplus) return { rest, scale };
    const fixed = surplus > 0n ? cut : raised, limit = surplus > 0n ? ceiling : floor, isFixed = new Set(fixed);
    rest -= sum(fixed, (i) => limit[i] * cost[i]);
    free = free.filter((i) => !isFixed.has(i));
  }
}
function apportionByGain(gains, budget, low, high, costs) {
  const units = [...low], open = new Set(units.flatMap((count, i) => count < high[i] ? [i] : []));
  for (let rest = budget - total(units, costs); rest && open.size; ) {
    let next = -1, most = -1;
    for (const i of open) {
      const gain = gains[i][units[i]] / costs[i];
      if (gain > most || gain === most && units[i] < units[next]) [next, most] = [i, gain];
    }
    if (costs[next] <= rest) {
      units[next]++;
      rest -= costs[next];
      if (units[next] < high[next]) continue;
    }
    open.delete(next);
  }
  return units;
}
var ones = (values) => values.map(() => 1);

// scenes/network.js
var WIDTH = 8;
var LAYERS = 4;
var BUDGET = 8;
var SAMPLES2 = 64;
var STEPS2 = 120;
var RATE = 0.1;
var TASKS = {
  large: { ranks: [0, 2, 5, 0], sizes: [0, 0.6, 1.2, 0], gains: [0.2, 0.6, 1.2, 0.2] },
  small: { ranks: [0, 1, 0, 6], sizes: [0, 0.5, 0, 1.2], gains: [0.3, 1.2, 0.5, 0.2] }
};
function makeNetwork(seed, task) {
  const { normals } = generator(seed);
  const weights = task.gains.map((gain) => times(normals(WIDTH, WIDTH), gain / Math.sqrt(WIDTH)));
  const inputs = normals(SAMPLES2, WIDTH);
  const changed = weights.map((weight, l) => plus(weight, changeOf(normals, task.ranks[l]), task.sizes[l]));
  const targets = run(changed, inputs)[LAYERS];
  const { loss: start, gradients } = gradientsOf(weights, inputs, targets);
  const scores = sensitivities(weights, inputs, targets);
  const singular = gradients.map((gradient) => rightSingular(gradient));
  const captured = singular.map(({ values }) => values.map((value) => Math.max(0, value)));
  const directions = singular.map(({ vectors }) => vectors);
  return { weights, inputs, targets, start, directions, captured, scores };
}
function changeOf(normals, rank) {
  if (!rank) return zeros(WIDTH, WIDTH);
  const raw = product(normals(WIDTH, rank), normals(rank, WIDTH));
  return times(raw, 1 / Math.sqrt(squaredNorm(raw)));
}
function run(weights, inputs) {
  const values = [inputs];
  weights.forEach((weight, l) => {
    const sums = productTransposed(values[l], weight);
    values.push(plus(values[l], sums.map((row) => row.map(Math.tanh))));
  });
  return values;
}
function gradientsOf(weights, inputs, targets) {
  const values = run(weights, inputs), count = inputs.length;
  let errors = plus(values[weights.length], targets, -1);
  const loss = squaredNorm(errors) / (2 * count);
  const gradients = [];
  for (let l = weights.length - 1; l >= 0; l--) {
    const added = plus(values[l + 1], values[l], -1);
    const inner = errors.map((row, n) => row.map((error, i) => error * (1 - added[n][i] ** 2)));
    gradients[l] = times(product(transpose(inner), values[l]), 1 / count);
    errors = plus(errors, product(inner, weights[l]));
  }
  return { loss, gradients };
}
function sensitivities(weights, inputs, targets) {
  const scores = weights.map(() => 0);
  inputs.forEach((row, n) => {
    const { gradients } = gradientsOf(weights, [row], [targets[n]]);
    gradients.forEach((gradient, l) => {
      const sizes = gradient.map(
        (line, i) => line.reduce((sum, value, j) => sum + Math.abs(value * weights[l][i][j]), 0)
      );
      scores[l] += sizes.reduce((sum, size) => sum + size, 0) / (WIDTH * WIDTH * inputs.length);
    });
  });
  return scores;
}
var each = (value) => Array(LAYERS).fill(value);
function ranksBy(rule, { scores, captured }) {
  if (rule === "captured") return apportionByGain(captured, BUDGET, each(0), each(WIDTH), each(1));
  return apportion(rule === "uniform" ? each(1) : scores, BUDGET, each(0), each(WIDTH), each(1));
}
function begin2(network, ranks) {
  const a = network.directions.map((rows, l) => rows.slice(0, ranks[l]));
  return evaluated(network, a, a.map((rows) => zeros(rows.length, WIDTH)), []);
}
function step2(network, { a, b, gradients, losses }) {
  const next = b.map((columns, l) => plus(columns, productTransposed(a[l], gradients[l]), -RATE));
  return evaluated(network, a, next, losses);
}
function evaluated({ weights, inputs, targets, start }, a, b, losses) {
  const adapted = weights.map((weight, l) => a[l].length ? plus(weight, product(transpose(b[l]), a[l])) : weight);
  const { loss, gradients } = gradientsOf(adapted, inputs, targets);
  return { a, b, gradients, losses: [...losses, loss / start] };
}

// scenes/player.js
var PER_SECOND = 60;
function player(parent, { advance, restart }) {
  const row = group(parent, "Training");
  let started = 0, done = 0, request = 0;
  const run2 = button(row, "Run", "", () => request ? stop() : start(), { class: "primary" });
  button(row, "Step", "", () => {
    stop();
    advance(1);
  });
  button(row, "Start again", "", () => {
    stop();
    restart();
  });
  function start() {
    run2.textContent = "Pause";
    [started, done] = [performance.now(), 0];
    request = requestAnimationFrame(frame);
  }
  function frame() {
    const due = Math.max(1, Math.round((performance.now() - started) * PER_SECOND / 1e3) - done);
    done += due;
    if (advance(due)) request = requestAnimationFrame(frame);
    else stop();
  }
  function stop() {
    cancelAnimationFrame(request);
    request = 0;
    run2.textContent = "Run";
  }
  return { stop };
}

// scenes/rank_bars.js
var UNIT = 20;
var WIDE = 62;
var GAP = 22;
var TOP2 = 8;
var STEPS3 = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, "+": 1, "=": 1, "-": -1 };
function rankBars(parent, { layers, budget }, action) {
  const left = make("p", { class: "left", role: "status" }, parent);
  const width = layers * (WIDE + GAP), height = TOP2 + budget * UNIT + 40;
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  const svg = make("svg", { class: "ranks", role: "group", "aria-label": "Ranks by layer", ...size }, parent);
  const bars = Array.from({ length: layers }, (_, l) => drawBar(svg, l, budget));
  let ranks = Array(layers).fill(0);
  let isRefused = false;
  const rest = () => budget - ranks.reduce((sum, value) => sum + value, 0);
  function set(l, rank) {
    const most = rest() + ranks[l], next = Math.max(0, Math.min(rank, most));
    isRefused = Math.min(rank, budget) > most;
    if (next !== ranks[l]) action(ranks.with(l, next));
    else writeRest();
  }
  function writeRest() {
    const reason = isRefused ? ": to raise a layer, lower another one first" : "";
    write(left, `${rest()} of ${budget} ranks left${reason}`);
  }
  const ends = { Home: 0, End: budget };
  bars.forEach(
    ({ g }, l) => g.addEventListener("keydown", (event) => {
      const rank = ends[event.key] ?? (event.key in STEPS3 ? ranks[l] + STEPS3[event.key] : null);
      if (rank === null) return;
      set(l, rank);
      event.preventDefault();
    })
  );
  const grip = ({ target }) => {
    const l = bars.findIndex(({ g }) => target instanceof Node && g.contains(target));
    if (l >= 0) bars[l].g.focus({ preventScroll: true });
    return l >= 0 ? l : null;
  };
  onDrag(svg, grip, (event, l) => {
    const box = svg.getBoundingClientRect(), up = (event.clientY - box.top) * height / (box.height || height);
    set(l, Math.round(budget - (up - TOP2) / UNIT + 0.25));
  });
  function draw(values, notes) {
    ranks = values;
    writeRest();
    bars.forEach((bar, l) => paintBar(bar, ranks[l], notes[l]));
  }
  return { draw };
}
function drawBar(svg, l, budget) {
  const x = l * (WIDE + GAP) + GAP / 2, bottom = TOP2 + budget * UNIT;
  const limits = { "aria-valuemin": 0, "aria-valuemax": budget, "aria-valuenow": 0 };
  const g = make("g", { role: "slider", tabindex: 0, "aria-label": `Rank of layer ${l + 1}`, ...limits }, svg);
  make("rect", { class: "ground", x, y: TOP2, width: WIDE, height: budget * UNIT }, g);
  const units = Array.from({ length: budget }, (_, k) => {
    const at = { x: x + 3, y: bottom - (k + 1) * UNIT + 2, width: WIDE - 6, height: UNIT - 3, rx: 2 };
    return make("rect", at, g);
  });
  const middle = { svg: true, x: x + WIDE / 2, "text-anchor": "middle" };
  make("text", { ...middle, class: "tick", y: bottom + 15 }, g, `layer ${l + 1}`);
  const note = make("text", { ...middle, class: "tick", y: bottom + 30 }, g);
  return { g, units, note };
}
function paintBar({ g, units, note }, rank, words) {
  put(g, "aria-valuenow", rank);
  units.forEach((unit2, k) => put(unit2, "class", k < rank ? "unit taken" : "unit"));
  write(note, words);
}

// scenes/ranks_steps.js
var HARD_FROM = 4;
var CLEARLY = 0.97;
var TRIED = 10;
var TASK_NAMES = [
  ["large", "changes layers of large weights"],
  ["small", "changes a layer of small weights"]
];
var RULES = [
  { rule: "uniform", name: "uniform", from: 1, color: 5 },
  { rule: "sensitivity", name: "by sensitivity", from: 3, color: 1 },
  { rule: "captured", name: "by captured gradient", from: 5, color: 2 }
];
var lossOf2 = (tries, rule) => tries.byRule(rule).loss;
var ranksOf = (tries, rule) => tries.byRule(rule).ranks.join(", ");
function ranksSteps(tasks) {
  return [...stepsOfOneTask(tasks), ...stepsOfBothTasks(tasks)];
}
function compared(tries) {
  const uniform = tries.byRule("uniform"), scored = tries.byRule("sensitivity"), { loss } = scored;
  const words = `Ranks ${scored.ranks.join(", ")} leave ${lossText(loss)} of the loss, uniform ones ${lossText(uniform.loss)}.`;
  if (String(uniform.ranks) === String(scored.ranks)) return [2, words];
  return [loss < uniform.loss ? 0 : 1, words];
}
function stepsOfOneTask({ large }) {
  return [
    {
      heading: "Four layers, eight ranks",
      text: [
        "A network of four layers with 8 inputs each has learned something, and a new task asks for changes in some of its layers. You do not know in which.",
        "Hand out the ranks: drag a bar up or down. Then press Run: A is the gradient\u2019s leading directions in each layer, B is trained. Try at least twice."
      ],
      question: {
        ask: "will your best try beat two ranks for every layer?",
        options: ["Yes", "No"],
        answer: () => {
          const uniform = lossOf2(large, "uniform"), losses = large.finished.map(({ loss }) => loss);
          if (!losses.length) {
            return [1, `Nothing was tried yet. Two ranks each leave ${lossText(uniform)} of the loss.`];
          }
          const best = Math.min(...losses), words = `Your best try leaves ${lossText(best)} of the loss`;
          return [best < uniform ? 0 : 1, `${words}, two ranks each leave ${lossText(uniform)}.`];
        }
      }
    },
    {
      heading: "Uniform ranks are hard to beat",
      text: [
        "The dashed line is uniform: two ranks each, whatever the task. The table keeps your tries, the best on top.",
        "A rule has to do without tries: it sees the network before training. Sensitivity is the mean of |weight \xD7 gradient| over the entries of a layer and the samples."
      ],
      question: {
        ask: "which layer has the highest score?",
        options: ["Layer 1", "Layer 2", "Layer 3", "Layer 4"],
        answer: () => {
          const { scores } = large.network, most = scores.indexOf(Math.max(...scores));
          return [
            most,
            `The scores are ${scores.map((score) => (1e3 * score).toFixed(0)).join(", ")}, in thousandths.`
          ];
        }
      }
    },
    {
      heading: "A score per layer",
      text: [
        "The scores stand below the bars. Ranks follow them by largest remainders, as in the workbench: rank = 8 \xB7 score / sum of scores, rounded so that the sum is 8.",
        "Work the ranks out, set them with the bars, and run them."
      ],
      question: {
        ask: "do ranks by these scores beat uniform ranks on this task?",
        options: ["Yes", "No", "The ranks are the same"],
        answer: () => compared(large)
      }
    }
  ];
}
function stepsOfBothTasks({ large, small }) {
  return [
    {
      heading: "When sensitivity is right",
      text: [
        "Here the task changes layers 2 and 3, whose weights are large: there |weight \xD7 gradient| is large too.",
        "That is luck, not logic. The score says how much the loss depends on the weights as they are, not how many directions of change a task needs."
      ],
      question: {
        ask: "another task needs six directions in layer 4, whose weights are the smallest. How many ranks does sensitivity give it?",
        options: ["1 or none", "2, as uniform", "3 or more"],
        answer: () => {
          const ranks = small.byRule("sensitivity").ranks, rank = ranks[3];
          return [rank < 2 ? 0 : rank === 2 ? 1 : 2, `By sensitivity the ranks are ${ranks.join(", ")}.`];
        }
      }
    },
    {
      heading: "When sensitivity is wrong",
      get text() {
        return [
          `This is the other task; choose between both above. By sensitivity the loss ends at ${lossText(lossOf2(small, "sensitivity"))}, with uniform ranks at ${lossText(lossOf2(small, "uniform"))}: small weights make a small score, however much the layer has to change.`,
          "Find ranks that beat both."
        ];
      },
      question: {
        ask: "a third rule gives each rank to the direction with the largest squared gradient (captured). On which task does it end clearly below uniform, by 3 % or more?",
        options: ["Both", "The first only", "The second only", "Neither"],
        answer: () => {
          const [first, second] = [large, small].map(
            (tries) => lossOf2(tries, "captured") < CLEARLY * lossOf2(tries, "uniform")
          );
          const right = first ? second ? 0 : 1 : second ? 2 : 3;
          const words = [large, small].map(
            (tries) => `${lossText(lossOf2(tries, "captured"))} against ${lossText(lossOf2(tries, "uniform"))}`
          );
          return [right, `Captured against uniform: ${words.join(" on the first task, ")} on the second.`];
        }
      }
    },
    {
      heading: "No rule replaces a comparison",
      get text() {
        return [
          `Captured gives ${ranksOf(large, "captured")} on the first task and ${ranksOf(small, "captured")} on the second. The gradient of the first step says where training starts to move, not where it ends.`,
          "So compare on held-out data, with the same budget and the same batches, before you trust a rule: that is what \u201CTrain both\u201D in the workbench and tlora.race do. Change the seed and see whether your conclusion stays."
        ];
      }
    }
  ];
}

// scenes/ranks.js
var SCORES_FROM = 2;
var OWN_COLOR = 0;
function ranksScene(parent, seed) {
  const tasks = triesOf(seed);
  const state = { task: "large", story: 0 }, now = () => tasks[state.task];
  const root = make("div", { class: "picture" }, parent), bar = make("div", { class: "bar" }, root);
  const select = choose(bar, "Task", TASK_NAMES, state.task, (task) => change({ task }));
  const training = player(bar, { advance, restart: () => move(0) });
  const step3 = slider(bar, "Step", { min: 0, max: STEPS2, step: 1 }, (value) => move(value));
  const pair = make("div", { class: "pair" }, root), shape = { layers: LAYERS, budget: BUDGET };
  const bars = rankBars(make("div", {}, pair), shape, (ranks) => {
    training.stop();
    begin3(ranks);
  });
  const losses = dragChart(make("div", { class: "grow" }, pair), (value) => move(Math.round(value)));
  const table = make("div", {}, root);
  function begin3(ranks) {
    now().begin(ranks);
    redraw();
  }
  function move(at) {
    training.stop();
    now().move(at);
    redraw();
  }
  function advance(count) {
    const { at } = now();
    now().move(at === STEPS2 ? count : at + count);
    redraw();
    return now().at < STEPS2;
  }
  function change(values) {
    training.stop();
    Object.assign(state, values);
    select.value = state.task;
    redraw();
  }
  function redraw() {
    const tries = now(), { scores } = tries.network;
    const notes = scores.map((score) => state.story < SCORES_FROM ? "" : `score ${(1e3 * score).toFixed(0)}`);
    bars.draw(tries.ranks, notes);
    step3.set(tries.at);
    drawLosses(losses, tries, rulesOf(state));
    drawTries(table, tries, rulesOf(state));
  }
  function show(story2) {
    select.parentElement?.toggleAttribute("hidden", story2 < HARD_FROM);
    const isNew = story2 >= HARD_FROM && state.story < HARD_FROM;
    change({ story: story2, task: story2 < HARD_FROM ? "large" : isNew ? "small" : state.task });
  }
  return { steps: ranksSteps(tasks), show, stop: training.stop };
}
var triesOf = (seed) => ({ large: new Tries(seed, "large"), small: new Tries(seed, "small") });
var rulesOf = ({ story: story2 }) => RULES.filter(({ from }) => story2 >= from);
var Tries = class {
  at = 0;
  /** @type {number[]} */
  ranks = Array(LAYERS).fill(0);
  /** @type {Try[]} */
  finished = [];
  /** @type {Partial<Record<Rule, Trained>>} */
  rules = {};
  /**
   * @param {number} seed
   * @param {string} task
   */
  constructor(seed, task) {
    this.network = makeNetwork(seed, TASKS[task]);
    this.training = begin2(this.network, this.ranks);
  }
  /** @type {(ranks: number[]) => void} */
  begin(ranks) {
    this.ranks = ranks;
    this.training = begin2(this.network, ranks);
    this.at = 0;
  }
  /**
   * Shows a step, and trains up to it; a training that ends is a try.
   *
   * @type {(at: number) => void}
   */
  move(at) {
    this.at = Math.min(at, STEPS2);
    while (this.training.losses.length <= this.at) this.training = step2(this.network, this.training);
    if (this.at < STEPS2) return;
    const ranks = this.ranks, loss = this.training.losses[STEPS2];
    if (!this.finished.some((tried) => String(tried.ranks) === String(ranks))) this.finished.push({ ranks, loss });
  }
  /**
   * The ranks by a rule, and the losses of training with them.
   *
   * @type {(rule: Rule) => Trained}
   */
  byRule(rule) {
    return this.rules[rule] ??= this.trained(ranksBy(rule, this.network));
  }
  /** @type {(ranks: number[]) => Trained} */
  trained(ranks) {
    let training = begin2(this.network, ranks);
    for (let n = 0; n < STEPS2; n++) training = step2(this.network, training);
    return { ranks, losses: training.losses, loss: training.losses[STEPS2] };
  }
};
function drawLosses(picture, tries, rules) {
  const line = (label, losses2, color) => ({ label, term: "", points: losses2.map((loss, n) => [n, loss]), color });
  const losses = tries.training.losses.slice(0, tries.at + 1);
  const lines = rules.map(({ rule, name, color }) => ({ ...line(name, tries.byRule(rule).losses, color), dash: true }));
  picture.draw({
    title: "Loss of your allocation and of the rules, by step",
    lines: [...lines, line("yours", losses, OWN_COLOR)],
    x: { label: "step", min: 0, max: STEPS2 },
    y: { label: "loss, share of the first", log: true, min: 0.01, max: 1 },
    cursor: tries.at,
    height: 220
  });
}
function drawTries(root, tries, rules) {
  root.replaceChildren();
  const byRule = rules.map(({ rule, name }) => {
    const { ranks, loss } = tries.byRule(rule);
    return { name, ranks, loss };
  });
  const own = tries.finished.map((tried, i) => ({ name: `try ${i + 1}`, ...tried }));
  const rows = [...own, ...byRule].sort((a, b) => a.loss - b.loss).slice(0, TRIED);
  if (!rows.length) return;
  const layers = tries.ranks.map((_, l) => `layer ${l + 1}`);
  drawTable(root, {
    caption: `Loss after ${STEPS2} steps, the lowest first`,
    head: ["", ...layers, "loss left"],
    rows: rows.map(({ name, ranks, loss }) => [name, ...ranks, lossText(loss)])
  });
}

// scenes/inputs.js
var SAMPLES3 = 160;
var NOISE = 0.1;
var unit = (angle) => [Math.cos(angle), Math.sin(angle)];
function makeInputs(seed) {
  const { uniform, normals } = generator(seed), along = Math.PI * uniform(), stretched = along + 0.9;
  const [long, wide] = [unit(along), unit(along + Math.PI / 2)];
  const cloud = product(normals(SAMPLES3, 2), [long.map((v) => 1.3 * v), wide.map((v) => 0.75 * v)]);
  const mean = wide.map((v) => 1.9 * v);
  const [left, across] = [Math.PI * uniform(), stretched + Math.PI / 2];
  const weight = plus(
    outer(unit(left), unit(stretched).map((v) => 2 * v)),
    outer(unit(left + Math.PI / 2), unit(across).map((v) => v / 2))
  );
  const change = outer(unit(Math.PI * uniform()), unit(along - 0.25));
  const noise = times(normals(SAMPLES3, 2), NOISE);
  return { cloud, mean, weight, change, noise, random: Math.PI * uniform(), stretched };
}
var outer = (left, right) => left.map((value) => right.map((other) => value * other));
var inputRows = ({ cloud, mean }) => cloud.map((row) => row.map((value, i) => value + mean[i]));
function measure(inputs, centered = true) {
  const rows = inputRows(inputs), c = covariance(rows, centered), wc = product(inputs.weight, c);
  const errors = plus(times(productTransposed(rows, inputs.change), -1), inputs.noise, -1);
  const gradient = times(product(transpose(errors), rows), 1 / rows.length);
  return { c, wc, gradient, outputs: trace(productTransposed(wc, inputs.weight)) };
}
var trace = (a) => a.reduce((sum, row, i) => sum + row[i], 0);
function sharesAt({ c, wc, gradient, outputs }, angle) {
  const a = unit(angle), through = wc.map((row) => dot(row, a)), along = dot(a, c.map((row) => dot(row, a)));
  const followed = gradient.map((row) => dot(row, a));
  return {
    input: along / trace(c),
    output: dot(through, through) / (along * outputs),
    gradient: dot(followed, followed) / squaredNorm(gradient)
  };
}
function leadingAngles({ c, wc, gradient }) {
  return { principal: angleOf(c), wc: angleOf(wc), gradient: angleOf(gradient) };
}
function angleOf(matrix) {
  const [x, y] = rightSingular(matrix).vectors[0];
  return (Math.atan2(y, x) + Math.PI) % Math.PI;
}
function between(one, other) {
  const turn = Math.abs(one - other) % Math.PI;
  return Math.min(turn, Math.PI - turn);
}
function randomShares(seed, dimension, count = 200) {
  const { normals } = generator(seed);
  return normals(count, dimension).map((row) => row[0] ** 2 / dot(row, row));
}

// scenes/reads_steps.js
function readsSteps(seed) {
  const inputs = makeInputs(seed), found = measure(inputs), angles = leadingAngles(found);
  const facts = { seed, inputs, angles, at: (angle) => sharesAt(found, angle) };
  return [...stepsToTheWeight(facts), ...stepsToTheTask(facts)];
}
var degrees = (angle) => Math.round(180 * angle / Math.PI);
function turned(angles, stretched) {
  if (between(angles.wc, angles.principal) < 0.03) return 0;
  return between(angles.wc, stretched) < between(angles.principal, stretched) ? 1 : 2;
}
function stepsToTheWeight({ inputs, angles, at }) {
  return [
    {
      heading: "An adapter of rank 1 reads one number",
      text: [
        "Each dot is the input of one token. A of rank 1 is one direction a: the adapter gets a\xB7x of each input, and nothing else. The color of a dot is that number.",
        "Turn the line: drag it, or move the slider. The curve shows how much of the inputs\u2019 variance the number catches at each angle."
      ],
      question: {
        ask: "which direction catches most of the inputs\u2019 variance?",
        options: ["Along the cloud", "Across the cloud", "All the same"],
        answer: () => [
          0,
          `The principal direction, the first eigenvector of the covariance C, catches ${percent(at(angles.principal).input)}, the direction across it the rest.`
        ]
      }
    },
    {
      heading: "The weight stretches what it reads",
      text: [
        "The second picture shows the outputs of the same tokens, W times their distance from the mean, in the same colors. W doubles one direction of the inputs and halves the one across it. The line there is the best guess of the output from the number alone.",
        "The principal direction is marked, and the random one that LoRA would start with. Turn the line to each and watch how far the outputs lie from theirs."
      ],
      question: {
        ask: "will the direction that tells most about the outputs be the principal one?",
        options: ["Yes, the same", "No, turned to what W stretches", "No, turned away from it"],
        answer: () => [
          turned(angles, inputs.stretched),
          `The leading direction of W C lies ${degrees(between(angles.wc, angles.principal))}\xB0 from the principal one, and ${degrees(between(angles.wc, inputs.stretched))}\xB0 from what W stretches.`
        ]
      }
    },
    {
      heading: "W C: seen through the weight",
      text: [
        "TLoRA takes A from W C. The second curve is the share of the outputs\u2019 variance that a\xB7x explains; W C lies between the principal direction and the peak of that curve, whose direction tlora calls wc_half.",
        "So far nothing has been said about the task: inputs and weight are the same, whatever the loss asks for."
      ],
      question: {
        ask: "how much of the loss\u2019s gradient does the direction of W C catch here?",
        options: ["Less than 40 %", "40 to 80 %", "More than 80 %"],
        answer: () => {
          const share = at(angles.wc).gradient;
          return [share < 0.4 ? 0 : share <= 0.8 ? 1 : 2, `It catches ${percent(share)} of the squared gradient.`];
        }
      }
    }
  ];
}
function stepsToTheTask({ seed, inputs, angles, at }) {
  return [
    {
      heading: "The gradient has a direction of its own",
      get text() {
        const { output, gradient } = at(angles.gradient);
        return [
          `G is the gradient of the loss in W. With A frozen, a step of B can only follow the part of G that lies along a. The third curve is that share: ${percent(gradient)} at the gradient\u2019s direction.`,
          `That direction explains ${percent(output)} of the outputs\u2019 variance, the one of W C ${percent(at(angles.wc).output)}. A task need not depend on what varies most.`
        ];
      },
      question: {
        ask: "C subtracts the mean of the inputs. If it did not, where would the principal direction point?",
        options: ["The same way", "Towards the mean of the cloud", "Away from it, by 90\xB0"],
        answer: () => {
          const { principal } = leadingAngles(measure(inputs, false)), mean = Math.atan2(inputs.mean[1], inputs.mean[0]);
          const turn = between(principal, angles.principal), far = between(principal, mean);
          return [far < turn ? 1 : 0, `It turns by ${degrees(turn)}\xB0, to within ${degrees(far)}\xB0 of the mean.`];
        }
      }
    },
    {
      heading: "What centering does",
      text: [
        "Switch \u201CSubtract the mean\u201D off: the line now passes through the origin, and the principal direction points at the mean, which is the same for all tokens and tells them apart in nothing.",
        "Drag the ring, the mean of the inputs, or use its sliders. With the mean subtracted, C and W C stay where they are. The gradient does not: it depends on the inputs as they are."
      ],
      question: {
        ask: "in two dimensions a random direction catches a half on average. In 576, as in SmolLM2-135M?",
        options: ["About 1/24, one by the root of 576", "About 1/576", "Still a half"],
        answer: () => {
          const shares = randomShares(seed, 576);
          return [1, `The mean of 200 is ${percent(shares.reduce((sum, share) => sum + share, 0) / shares.length)}.`];
        }
      }
    },
    {
      heading: "Why a random direction catches so little",
      text: [
        "The squared cosines of a direction with d axes at right angles sum to 1, so on average each gets 1/d. Drag the line, or move the slider.",
        "A random A of rank 8 catches about 8 of 576 parts, 1.4 %. LoRA can start there since it trains A too; if A stays frozen, its directions must be chosen."
      ]
    }
  ];
}

// scenes/training_steps.js
var STEPS4 = 120;
var DEFAULT_RATE = 0.3;
var RATES = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.4, 2, 3, 4, 6, 8];
var METHODS = [
  { method: "random", name: "B alone, random A", from: 0 },
  { method: "gradient", name: "B alone, A from the gradient", from: 1 },
  { method: "lora", name: "A and B (LoRA)", from: 3 },
  { method: "full", name: "full", from: 3 }
];
var NAMES = METHODS.map(({ name }) => name);
var TOLERATED = 1;
function trainingSteps(layer) {
  const floors = { random: floorOf(layer.random, layer), gradient: floorOf(layer.gradient, layer) };
  return [...stepsOfAFrozenA(layer, floors), ...stepsOfAllMethods(layer)];
}
function tolerated(layer, method) {
  const losses = lossesByRate(layer, method, RATES, STEPS4);
  return RATES[losses.findLastIndex((loss) => loss < TOLERATED)];
}
function stepsOfAFrozenA(layer, floors) {
  return [
    {
      heading: "One layer, and a change of rank 2",
      text: [
        "A layer with 12 inputs and 8 outputs needs a change of its weight: the first map, a matrix of rank 2, with entries above zero in red and below zero in blue. Before training the loss is 1, and the update B A is zero: the second map.",
        "A is random and frozen, B is trained by gradient descent. Before you press Run, predict; the dashed line is the lowest loss that any B can reach with this A."
      ],
      question: {
        ask: "A reads 2 random directions of 12. How much of the loss is left?",
        options: ["Nearly nothing", "About a half", "More than two thirds"],
        answer: () => [
          floors.random > 2 / 3 ? 2 : floors.random > 0.25 ? 1 : 0,
          `No B gets below ${lossText(floors.random)}. What A does not read, B cannot change.`
        ]
      }
    },
    {
      heading: "The right directions",
      text: [
        "Now the rows of A are the two leading directions of the loss\u2019s gradient, which is known before training. Their length is such that the inputs vary along them as along random rows.",
        "Run both. Drag the line of the chart back to see the update grow from zero."
      ],
      question: {
        ask: "does B alone reach a loss of zero with the gradient\u2019s directions?",
        options: [
          "Yes, the change has rank 2, and so has A",
          "No, but it gets below a half",
          "No, it stays above a half"
        ],
        answer: () => [
          floors.gradient < 0.01 ? 0 : floors.gradient < 0.5 ? 1 : 2,
          `It gets to ${lossText(floors.gradient)}: the gradient is the change times the inputs\u2019 second moment, so it leans to inputs that are large.`
        ]
      }
    },
    {
      heading: "A frozen A has a floor",
      text: [
        "Each dashed line is a floor: min over B of \xBD mean \u2016(B A \u2212 \u0394W) x\u2016\xB2. More steps do not help, and neither does another learning rate.",
        "LoRA trains A too. At first B is zero, so A gets no gradient: \u2202L/\u2202A = B\u1D40 G. It moves once B has grown."
      ],
      question: {
        ask: `LoRA starts from the random A. After ${STEPS4} steps at the same rate, is its loss below the floor of the gradient\u2019s A?`,
        options: ["Yes", "No"],
        answer: () => {
          const [loss] = lossesByRate(layer, "lora", [DEFAULT_RATE], STEPS4);
          return [
            loss < floors.gradient ? 0 : 1,
            `LoRA ends at ${lossText(loss)}, the floor is ${lossText(floors.gradient)}.`
          ];
        }
      }
    }
  ];
}
function stepsOfAllMethods(layer) {
  return [
    {
      heading: "LoRA turns A, full training has no A",
      text: [
        "Run all four at one rate. LoRA is slow at first, then turns A towards what the task needs. Full training changes every entry of W.",
        "Move the learning rate up, start again, and see which training breaks first."
      ],
      question: {
        ask: "which training tolerates the largest learning rate?",
        options: ["B alone, A frozen", "A and B (LoRA)", "full"],
        answer: () => {
          const limits = METHODS.map(({ method }) => tolerated(layer, method)), most = Math.max(...limits);
          const words = limits.map((limit, i) => `${NAMES[i]} ${number(limit)}`).join(", ");
          return [
            Math.max(0, limits.indexOf(most) - 1),
            `The largest rates after which the loss was lower than before: ${words}.`
          ];
        }
      }
    },
    {
      heading: "How much learning rate each tolerates",
      text: [
        `Below are the losses after ${STEPS4} steps at every rate; a line ends where the training diverges. Drag the rate: the curves above follow.`,
        "With A frozen the loss is a quadratic function of B, as steep as the inputs along A are large. Full training sees the largest inputs of all; LoRA gets steeper while A and B grow."
      ],
      question: {
        ask: "to change B, a step needs of each token what B reads. How many numbers does B alone keep for a token?",
        options: ["12, the input", "2, what A reads of it", "14, both"],
        answer: () => {
          const kept = (method) => storedNumbers(method, INPUTS, OUTPUTS, RANK).kept;
          return [1, `B alone keeps ${kept("random")}, LoRA ${kept("lora")}, full training ${kept("full")}.`];
        }
      }
    },
    {
      heading: "What freezing A saves",
      text: [
        "Choose a layer and a rank. B alone trains about half as many numbers as LoRA, and for each token it keeps r numbers instead of the whole input.",
        "In a large model the kept inputs of all layers are most of what a step needs, unless they are computed again (gradient checkpointing)."
      ]
    }
  ];
}

// scenes/handout.js
function drawHandout(parent, seed) {
  parent.replaceChildren();
  make(
    "p",
    {},
    parent,
    `Seed ${seed}. Answer each question before you press Next; then write down what the page shows.`
  );
  const scenes = {
    "1. What does an adapter read?": readsSteps(seed),
    "2. What does training do with it?": trainingSteps(makeLayer(seed)),
    "3. Where should the rank go?": ranksSteps(triesOf(seed))
  };
  for (const [title, steps] of Object.entries(scenes)) {
    make("h2", {}, parent, title);
    const list = make("ol", {}, parent);
    for (const { question } of steps) {
      if (question) {
        make(
          "li",
          {},
          list,
          `${capitalized(question.ask)} ${question.options.map((option) => `\u2610 ${option}`).join("  ")}`
        );
      }
    }
  }
}

// colors.js
var RED = [178, 24, 43];
var BLUE = [33, 102, 172];
var rgb = (text) => (text.match(/[\d.]+/g) ?? []).slice(0, 3).map(Number);
function luminance(color) {
  const linear = (c) => c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = color.map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
var isDark = (element) => luminance(rgb(getComputedStyle(element).color || "rgb(0, 0, 0)")) > 0.4;
var groundOf = (dark) => dark ? [17, 17, 17] : [255, 255, 255];
var inkOn = (color) => luminance(color) > 0.179 ? "#000" : "#fff";
var blend = (ground, hue, share) => ground.map((c, i) => Math.round(c + (hue[i] - c) * Math.min(1, Math.abs(share))));
function tint(share, dark) {
  const fill = blend(groundOf(dark), share > 0 ? RED : BLUE, share);
  return { fill: `rgb(${fill})`, ink: inkOn(fill) };
}
var largest = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6);

// scenes/plane.js
var SIZE = 300;
var MIDDLE = SIZE / 2;
var NAMED_AT = [1, 0.85, 0.7, 0.55];
function plane(parent, label, reach) {
  const factor = MIDDLE / reach;
  const scale = { x: (v) => MIDDLE + factor * v, y: (v) => MIDDLE - factor * v, reach }, { x, y } = scale;
  const size = { width: SIZE, height: SIZE, viewBox: `0 0 ${SIZE} ${SIZE}` };
  const svg = make("svg", { class: "plane chart", role: "img", "aria-label": label, ...size }, parent);
  make("line", { class: "guide", x1: 0, x2: SIZE, y1: MIDDLE, y2: MIDDLE }, svg);
  make("line", { class: "guide", y1: 0, y2: SIZE, x1: MIDDLE, x2: MIDDLE }, svg);
  make("text", { svg: true, class: "tick", x: 6, y: 14 }, svg, label);
  const dots = make("g", {}, svg), drawn = make("g", {}, svg);
  function draw(points, numbers, lines, mean) {
    while (dots.children.length < points.length) make("circle", { r: 2.6 }, dots);
    const most = largest(numbers), dark = isDark(svg);
    points.forEach(([a, b], i) => {
      const dot2 = dots.children[i];
      put(dot2, "cx", x(a).toFixed(1));
      put(dot2, "cy", y(b).toFixed(1));
      put(dot2, "style", `fill: ${tint(numbers[i] / most, dark).fill}`);
    });
    drawn.replaceChildren();
    for (const line of lines) drawLine2(drawn, line, scale);
    nameLines(drawn, lines, scale);
    if (mean) make("circle", { class: "mean", cx: x(mean[0]), cy: y(mean[1]), r: 7 }, drawn);
  }
  function locate(event) {
    const box = svg.getBoundingClientRect(), zoom = SIZE / (box.width || SIZE);
    const [right, down] = [(event.clientX - box.left) * zoom, (event.clientY - box.top) * zoom];
    return [(right - MIDDLE) / factor, (MIDDLE - down) / factor];
  }
  return { svg, draw, locate };
}
function drawLine2(parent, { at: [a, b], angle, look }, { x, y, reach }) {
  const [cosine, sine] = unit(angle), far = 3 * reach;
  const ends = { x1: x(a - far * cosine), y1: y(b - far * sine), x2: x(a + far * cosine), y2: y(b + far * sine) };
  make("line", { class: `through ${look}`, ...ends }, parent);
  if (look.includes("turned")) {
    make("circle", { class: "grip", cx: x(a + 0.5 * reach * cosine), cy: y(b + 0.5 * reach * sine), r: 8 }, parent);
  }
}
function nameLines(parent, lines, scale) {
  const taken = [{ x: 30, y: 14 }];
  for (const line of lines) {
    if (!line.name) continue;
    const sides = line.isFlipped ? [-1, 1] : [1, -1];
    const ends = NAMED_AT.flatMap((share) => sides.map((side) => pointOfLine(line, share * side, scale)));
    const isFree = (end2) => taken.every(({ x, y }) => Math.abs(x - end2.x) > 64 || Math.abs(y - end2.y) > 15);
    const end = ends.find(isFree) ?? ends[0];
    taken.push(end);
    make("text", { svg: true, class: `mark-name ${line.look}`, ...end, "text-anchor": "middle" }, parent, line.name);
  }
}
function pointOfLine({ at: [a, b], angle }, share, { x, y, reach }) {
  const [cosine, sine] = unit(angle), side = Math.sign(share);
  const away = share * roomAlong(a, b, side * cosine, side * sine, reach);
  const inside = (pixels, margin) => Math.max(margin, Math.min(SIZE - margin, pixels));
  return { x: inside(x(a + away * cosine), 32), y: inside(y(b + away * sine) + 4, 14) };
}
function roomAlong(a, b, cosine, sine, edge) {
  const room = (from, step3) => Math.abs(step3) < 1e-9 ? Infinity : ((step3 > 0 ? edge : -edge) - from) / step3;
  return Math.max(0, Math.min(room(a, cosine), room(b, sine)));
}

// scenes/readings.js
function shareReadings(parent, entries) {
  const list = make("dl", { class: "readings" }, parent);
  const drawn = entries.map(({ name, formula, color }) => {
    const row = make("div", { class: `reading c${color}` }, list);
    make("dt", {}, row, name);
    const value = make("dd", { class: "value" }, row), bar = make("dd", { class: "track" }, row);
    make("dd", { class: "formula" }, row, formula);
    return { row, value, fill: make("span", {}, bar) };
  });
  return (shares) => {
    drawn.forEach(({ row, value, fill }, i) => {
      row.hidden = shares[i] === null;
      if (shares[i] === null) return;
      write(value, `${(100 * shares[i]).toFixed(1)}\xA0%`);
      fill.style.width = `${100 * shares[i]}%`;
    });
  };
}

// scenes/reads.js
var MEASURES = [
  { key: "input", name: "of the inputs\u2019 variance", formula: "a\u1D40 C a / tr C", from: 0 },
  { key: "output", name: "of the outputs\u2019 variance", formula: "\u2016W C a\u2016\xB2 / (a\u1D40 C a \xB7 tr W C W\u1D40)", from: 2 },
  { key: "gradient", name: "of the squared gradient", formula: "\u2016G a\u2016\xB2 / \u2016G\u2016\xB2", from: 3 }
];
var MARKS = [
  { key: "principal", name: "principal", look: "c0", from: 1 },
  { key: "wc", name: "W C", look: "c1", from: 2 },
  { key: "gradient", name: "gradient", look: "c2", from: 3 },
  { key: "random", name: "random", look: "c5", from: 1, isFlipped: true }
];
var OUTPUTS_FROM = 1;
var MEAN_FROM = 4;
var DIMENSION_FROM = 5;
var REACH = 5.5;
var DIMENSIONS = [2, 3, 5, 8, 12, 24, 48, 96, 192, 384, 576];
var START = Math.PI / 6;
var degrees2 = (angle) => Math.round(180 * angle / Math.PI);
function readsScene(parent, seed) {
  const inputs = makeInputs(seed);
  const state = { inputs, seed, angle: START, centered: true, step: 0, dimension: 576 };
  const plain = make("div", { class: "picture" }, parent), many = make("div", { class: "picture" }, parent);
  const redraw = drawTurning(plain, state), drawMany = drawDimensions(many, state);
  function show(step3) {
    state.step = step3;
    plain.hidden = step3 >= DIMENSION_FROM;
    many.hidden = !plain.hidden;
    if (step3 < MEAN_FROM) state.centered = true;
    if (many.hidden) redraw();
    else drawMany();
  }
  return { steps: readsSteps(seed), show, stop: () => {
  } };
}
function drawTurning(root, state) {
  const planes = make("div", { class: "planes" }, root);
  const left = plane(planes, "inputs x", REACH), right = plane(planes, "outputs", 5.5);
  left.svg.classList.add("turning");
  const bar = make("div", { class: "bar" }, root);
  function change(values) {
    Object.assign(state, values);
    redraw();
  }
  const turn = (angle2) => change({ angle: Math.PI * ((degrees2(angle2) + 180) % 180) / 180 });
  const range = { min: 0, max: 179, step: 1, text: (value) => `${value}\xB0` };
  const angle = slider(bar, "Angle of a", range, (value) => turn(Math.PI * value / 180));
  const turnTo = ({ key }) => turn(anglesOf(state, measure(state.inputs, state.centered))[key]);
  const followMarks = markButtons(bar, state, turnTo);
  const followMean = meanControls(bar, state, change);
  const readings = shareReadings(root, MEASURES.map((measure2, color) => ({ ...measure2, color })));
  const curves = dragChart(root, (value) => turn(Math.PI * value / 180));
  function grip(event) {
    const mark = markNamed(event.target);
    if (!mark) return gripAt(state, left.locate(event));
    turnTo(mark);
    return null;
  }
  onDrag(left.svg, grip, (event, held) => {
    const [x, y] = left.locate(event);
    if (held === "mean") return change({ inputs: { ...state.inputs, mean: clipped([x, y]) } });
    const [a, b] = centerOf(state);
    turn(Math.atan2(y - b, x - a));
  });
  function redraw() {
    const found = measure(state.inputs, state.centered);
    angle.set(degrees2(state.angle) % 180);
    followMarks();
    followMean();
    drawPlanes(state, found, left, right);
    right.svg.toggleAttribute("hidden", state.step < OUTPUTS_FROM);
    const shares = sharesAt(found, state.angle);
    readings(MEASURES.map(({ key, from }) => state.step >= from ? shares[key] : null));
    drawCurves(curves, state, found);
  }
  return redraw;
}
var anglesOf = ({ inputs }, found) => ({ ...leadingAngles(found), random: inputs.random });
function markButtons(bar, state, turnTo) {
  const row = group(bar, "Turn a to");
  row.append("Turn a to");
  const buttons = MARKS.map((mark) => button(row, mark.name, "", () => turnTo(mark)));
  return () => {
    row.hidden = state.step < Math.min(...MARKS.map(({ from }) => from));
    MARKS.forEach(({ from }, i) => buttons[i].hidden = state.step < from);
  };
}
function markNamed(target) {
  const name = target instanceof Element ? target.closest(".mark-name") : null;
  return MARKS.find((mark) => mark.name === name?.textContent);
}
var clipped = (point) => point.map((v) => Math.max(-3, Math.min(3, v)));
var centerOf = ({ inputs, centered }) => centered ? meanRow(inputRows(inputs)) : [0, 0];
function gripAt({ inputs, step: step3 }, point) {
  const [a, b] = meanRow(inputRows(inputs));
  return step3 >= MEAN_FROM && Math.hypot(point[0] - a, point[1] - b) < 0.45 ? "mean" : "line";
}
function meanControls(bar, state, change) {
  const box = make("label", { class: "control" }, bar), tick = make("input", { type: "checkbox" }, box);
  box.append("Subtract the mean");
  tick.addEventListener("change", () => change({ centered: tick.checked }));
  const range = { min: -3, max: 3, step: 0.1, text: (value) => value.toFixed(1) };
  const sliders = ["Mean, across", "Mean, up"].map(
    (label, i) => slider(
      bar,
      label,
      range,
      (value) => change({ inputs: { ...state.inputs, mean: state.inputs.mean.with(i, value) } })
    )
  );
  return () => {
    tick.checked = state.centered;
    for (const part of [box, ...sliders.map((each2) => each2.box)]) part.hidden = state.step < MEAN_FROM;
    sliders.forEach((each2, i) => each2.set(state.inputs.mean[i]));
  };
}
function drawPlanes(state, found, left, right) {
  const { inputs, angle, step: step3 } = state, rows = inputRows(inputs), center = centerOf(state), a = unit(angle);
  const numbers = rows.map((row) => dot(a, row.map((value, i) => value - center[i])));
  const angles = anglesOf(state, found);
  const marks = MARKS.filter(({ from }) => step3 >= from).map((mark) => ({
    ...mark,
    at: center,
    angle: angles[mark.key]
  }));
  const through = (point) => inputs.weight.map((row) => dot(row, point));
  left.draw(rows, numbers, [...marks, { at: center, angle, look: "turned" }], step3 >= MEAN_FROM ? meanRow(rows) : null);
  if (step3 < OUTPUTS_FROM) return;
  const [x, y] = found.wc.map((row) => dot(row, a)), told = { at: [0, 0], angle: Math.atan2(y, x), look: "told" };
  right.draw(rows.map((row) => through(row.map((value, i) => value - center[i]))), numbers, [told], null);
}
function drawCurves(curves, state, found) {
  const ends = Array.from({ length: 91 }, (_, i) => 2 * i);
  const lines = MEASURES.flatMap(({ key, name, from }, color) => {
    const points = ends.map((end) => [end, sharesAt(found, Math.PI * end / 180)[key]]);
    return state.step >= from ? [{ label: name, points, color }] : [];
  });
  curves.draw({
    title: "What a direction catches, by its angle",
    lines,
    x: { label: "angle of a, degrees", min: 0, max: 180 },
    y: { label: "share caught", percent: true, min: 0, max: 1 },
    cursor: degrees2(state.angle),
    legend: lines.length > 1,
    height: 170
  });
}
function drawDimensions(root, state) {
  const finding = make("p", { class: "finding", role: "status" }, root);
  const bar = make("div", { class: "bar" }, root);
  const nearest = (value) => DIMENSIONS.reduce((a, b) => Math.abs(Math.log(b / value)) < Math.abs(Math.log(a / value)) ? b : a);
  const range = { min: 0, max: DIMENSIONS.length - 1, step: 1, text: (i) => String(DIMENSIONS[i]) };
  const dimension = slider(bar, "Dimension", range, (i) => move(DIMENSIONS[i]));
  const picture = dragChart(root, (value) => move(nearest(value)));
  make("p", { class: "formula" }, root, "share of a random a = cos\xB2 of its angle to the direction; mean 1 / d");
  let caught = null;
  function move(value) {
    state.dimension = value;
    draw();
  }
  function draw() {
    caught ??= DIMENSIONS.map((d) => randomShares(state.seed, d));
    const means = caught.map((shares) => shares.reduce((sum, share) => sum + share, 0) / shares.length);
    const i = DIMENSIONS.indexOf(state.dimension), most = caught.map((shares) => Math.max(...shares));
    dimension.set(i);
    const words = `In ${state.dimension} dimensions a random direction catches ${percent(means[i])} on average, and the best of 200 catches ${percent(most[i])}.`;
    write(finding, words);
    picture.draw(dimensionChart(means, most, state.dimension));
  }
  return draw;
}
function dimensionChart(means, most, cursor) {
  const line = (label, values, color) => ({
    label,
    color,
    points: DIMENSIONS.map((d, i) => [d, values[i]]),
    dots: true
  });
  return {
    title: "What random directions catch, by the number of dimensions",
    lines: [
      line("best of 200", most, 1),
      line("mean of 200", means, 0),
      { label: "1 / d", color: 5, dash: true, points: DIMENSIONS.map((d) => [d, 1 / d]) }
    ],
    x: { label: "dimension d", log: true, min: 2, max: 576 },
    y: { label: "share caught", log: true, percent: true, min: 1e-3, max: 1 },
    cursor,
    height: 260
  };
}

// scenes/story.js
function story(parent, scene) {
  const { steps } = scene, guesses = steps.map(() => -1);
  const box = make("section", { class: "story", "aria-label": "Text" }, parent);
  const status = make("div", { role: "status" }, box), body = make("div", {}, box);
  const bar = make("div", { class: "bar" }, box);
  const back = button(bar, "Back", "The step before", () => go(at - 1));
  const next = button(bar, "Next", "Show the answer and go on", () => go(at + 1), { class: "primary" });
  let at = 0;
  function go(step3) {
    const isFirst = body.childElementCount === 0;
    at = step3;
    status.replaceChildren();
    const before = step3 ? steps[step3 - 1].question : null;
    if (before) drawAnswer(status, before, guesses[step3 - 1]);
    const { heading: title, text, question } = steps[step3];
    body.replaceChildren();
    make("div", { class: "count" }, body, `Step ${step3 + 1} of ${steps.length}`);
    const heading = make("h2", { tabindex: -1 }, body, title);
    for (const words of text) make("p", {}, body, words);
    if (question) drawQuestion(body, question, guesses, step3);
    back.disabled = step3 === 0;
    next.disabled = step3 === steps.length - 1;
    scene.show(step3);
    if (!isFirst) heading.focus({ preventScroll: true });
  }
  go(0);
}
function drawQuestion(parent, { ask, options }, guesses, step3) {
  const box = make("div", { class: "question" }, parent);
  make("p", { class: "ask" }, box, `Predict: ${ask}`);
  const row = group(box, ask);
  const buttons = options.map(
    (option, i) => button(row, option, "", () => {
      guesses[step3] = i;
      mark();
    })
  );
  const mark = () => buttons.forEach((element, i) => put(element, "aria-pressed", guesses[step3] === i));
  mark();
}
function drawAnswer(parent, { options, answer }, guess) {
  const [right, sentence] = answer(), box = make("p", { class: "answered" }, parent);
  const verdict = guess < 0 ? "The answer" : guess === right ? "Right" : `You said \u201C${options[guess]}\u201D, but it is`;
  make("b", {}, box, `${verdict}: ${options[right]}. `);
  box.append(sentence);
}

// scenes/matrix_map.js
var CELL = 11;
function matrixMap(parent, name, rows, columns) {
  const root = make("figure", { class: "matrix" }, parent), size = { width: CELL * columns, height: CELL * rows };
  const svg = make("svg", { role: "img", "aria-label": name, ...size }, root);
  const cells = [];
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const at = { x: CELL * j, y: CELL * i, width: CELL - 1, height: CELL - 1 };
      cells.push(make("rect", at, svg));
    }
  }
  const caption = make("figcaption", {}, root);
  make("b", {}, caption, name);
  const words = make("span", {}, caption);
  function draw(matrix, most, text) {
    const dark = isDark(root);
    matrix.flat().forEach((value, k) => {
      const fill = Number.isFinite(value) ? tint(value / most, dark).fill : "gray";
      put(cells[k], "fill", fill);
    });
    write(words, text);
  }
  return { root, draw };
}

// scenes/training.js
var RATE_FROM = 4;
var STORED_FROM = 5;
var DIVERGED = 1.5;
function trainingScene(parent, seed) {
  const layer = makeLayer(seed);
  const state = { layer, rate: DEFAULT_RATE, at: 0, story: 0, runs: {}, swept: null };
  const root = make("div", { class: "picture" }, parent);
  const bar = make("div", { class: "bar" }, root);
  const training = player(bar, { advance, restart: () => move(0) });
  const step3 = slider(bar, "Step", { min: 0, max: STEPS4, step: 1 }, (value) => move(value));
  const rate = slider(
    bar,
    "Learning rate",
    { min: 0, max: RATES.length - 1, step: 1, text: (i) => number(RATES[i]) },
    (i) => setRate(RATES[i])
  );
  const parts = { losses: dragChart(root, (value) => move(Math.round(value))), ...drawMaps(root) };
  const sweep = make("div", {}, root), sweepChart = dragChart(sweep, (value) => setRate(nearestRate(value)));
  const stored = drawStored(make("div", {}, root));
  function move(at) {
    training.stop();
    state.at = at;
    redraw();
  }
  function advance(count) {
    if (state.at === STEPS4) state.at = 0;
    state.at = Math.min(STEPS4, state.at + count);
    redraw();
    return state.at < STEPS4;
  }
  function setRate(value) {
    if (value === state.rate) return;
    Object.assign(state, { rate: value, runs: {} });
    redraw();
  }
  function redraw() {
    step3.set(state.at);
    rate.set(RATES.indexOf(state.rate));
    drawLosses2(parts.losses, state);
    paintMaps(parts.maps, state);
    if (state.story === RATE_FROM) drawSweep(sweepChart, state);
  }
  function show(story2) {
    training.stop();
    if (story2 >= RATE_FROM && story2 > state.story) state.at = STEPS4;
    state.story = story2;
    rate.box.hidden = story2 < RATE_FROM - 1;
    sweep.hidden = story2 !== RATE_FROM;
    stored.hidden = story2 < STORED_FROM;
    parts.root.hidden = story2 >= RATE_FROM;
    redraw();
  }
  return { steps: trainingSteps(layer), show, stop: training.stop };
}
var nearestRate = (value) => RATES.reduce((a, b) => Math.abs(Math.log(b / value)) < Math.abs(Math.log(a / value)) ? b : a);
var shownMethods = ({ story: story2 }) => METHODS.filter(({ from }) => story2 >= from);
function runOf(state, method) {
  const { layer, rate, runs, at } = state;
  const run2 = runs[method] ??= [{ training: begin(layer, method), loss: 1 }];
  while (run2.length <= at) {
    const training = step(layer, run2[run2.length - 1].training, rate);
    run2.push({ training, loss: lossOf(training.update, layer) });
  }
  return run2;
}
function drawLosses2(picture, state) {
  const lines = shownMethods(state).map(({ method, name }, color) => {
    const run2 = runOf(state, method).slice(0, state.at + 1), end = run2.findIndex(({ loss }) => !(loss < DIVERGED));
    const points = run2.slice(0, end < 0 ? void 0 : end).map(({ loss }, n) => [n, loss]);
    const text = end < 0 ? `${name}: ${lossText(run2[state.at].loss)}` : `${name}: diverged`;
    return { label: text, term: "", points, color };
  });
  const floors = shownMethods(state).flatMap(({ method }, color) => {
    if (method !== "random" && method !== "gradient") return [];
    const floor = floorOf(state.layer[method], state.layer);
    return [{ points: [[0, floor], [STEPS4, floor]], color, dash: true, thin: true }];
  });
  picture.draw({
    title: "Loss of each way to train, by step",
    lines: [...lines, ...floors],
    x: { label: "step", min: 0, max: STEPS4 },
    y: { label: "loss of the layer", min: 0, max: 1.2 },
    cursor: state.at
  });
}
function drawMaps(parent) {
  const root = make("div", { class: "matrices" }, parent), [rows, columns] = [OUTPUTS, INPUTS];
  const needed = matrixMap(root, "Needed change", rows, columns);
  const updates = METHODS.map(({ name }) => matrixMap(root, name, rows, columns));
  return { root, maps: { needed, updates } };
}
function paintMaps({ needed, updates }, state) {
  const most = largest(state.layer.change.flat());
  needed.draw(state.layer.change, most, "rank 2");
  METHODS.forEach(({ method, from }, i) => {
    updates[i].root.hidden = state.story < from;
    if (state.story < from) return;
    const { training, loss } = runOf(state, method)[state.at];
    updates[i].draw(training.update, most, loss < DIVERGED ? `loss ${lossText(loss)}` : "diverged");
  });
}
function drawSweep(picture, state) {
  const swept = state.swept ??= METHODS.map(({ method }) => lossesByRate(state.layer, method, RATES, STEPS4));
  const lines = METHODS.map(({ name }, color) => {
    const points = RATES.map((rate, i) => [rate, swept[color][i]]).filter(([, loss]) => loss < DIVERGED);
    return { label: name, term: "", points, color, dots: true };
  });
  picture.draw({
    title: `Loss after ${STEPS4} steps, by learning rate`,
    lines,
    x: { label: "learning rate of the descent", log: true, min: RATES[0], max: RATES[RATES.length - 1] },
    y: { label: `loss after ${STEPS4} steps`, min: 0, max: 1.2 },
    cursor: state.rate,
    height: 190
  });
}
var SIZES = { this: [INPUTS, OUTPUTS], small: [576, 576], large: [4096, 4096] };
var SIZE_NAMES = [
  ["this", "this layer: 12 to 8"],
  ["small", "SmolLM2-135M: 576 to 576"],
  ["large", "LLaMA-2-7B: 4,096 to 4,096"]
];
function drawStored(root) {
  const bar = make("div", { class: "bar" }, root), table = make("div", {}, root), state = { size: "this", rank: RANK };
  choose(bar, "Layer", SIZE_NAMES, state.size, (size) => change({ size }));
  const rank = slider(bar, "Rank", { min: 1, max: 8, step: 1 }, (value) => change({ rank: value }));
  const words = make("p", { class: "formula" }, root);
  function change(values) {
    Object.assign(state, values);
    const [inputs, outputs] = SIZES[state.size];
    rank.set(state.rank);
    table.replaceChildren();
    const rows = METHODS.map(({ method, name }) => {
      const { trained, states, kept } = storedNumbers(method, inputs, outputs, state.rank);
      return [name, whole(trained), whole(states), whole(kept)];
    });
    const head = ["", "trained", "AdamW states", "kept for each token"];
    drawTable(table, { caption: "Numbers that a training step stores", head, rows });
    write(
      words,
      "A frozen: r\xB7d_out trained, r kept for each token \xB7 LoRA: r\xB7(d_in + d_out), d_in + r \xB7 full: d_in\xB7d_out, d_in"
    );
  }
  change({});
  return root;
}

// scenes.js
var SCENES = [
  { title: "1. What does an adapter read?", draw: readsScene },
  { title: "2. What does training do with it?", draw: trainingScene },
  { title: "3. Where should the rank go?", draw: ranksScene }
];
var LARGEST = 9999;
function renderScenes(el, seed = 5) {
  const root = make("div", { class: "tlora scenes" }, el), bar = make("div", { class: "tabs" }, root);
  const tabs = make("div", { role: "tablist", "aria-label": "Scenes" }, bar);
  const input = make("input", { type: "number", min: 0, max: LARGEST, step: 1, value: seed }, labeled(bar, "Seed"));
  button(bar, "Print the questions", "A hand-out of one page, with room for answers", () => print());
  const panel = make("div", { role: "tabpanel", class: "scene" }, root);
  const handout = make("section", { class: "handout", "aria-hidden": "true" }, root);
  explainer(root);
  let shown = 0, stop = () => {
  };
  const buttons = SCENES.map(({ title }, i) => {
    const tab = make("button", { type: "button", role: "tab", id: `scene-${i + 1}` }, tabs, title);
    tab.addEventListener("click", () => show(i));
    return tab;
  });
  onArrows(tabs, (target) => show(buttons.indexOf(target)));
  input.addEventListener("change", () => {
    if (input.value === "" || !input.validity.valid) return;
    seed = Number(input.value);
    show(shown);
  });
  function show(i) {
    stop();
    shown = i;
    panel.replaceChildren();
    panel.setAttribute("aria-labelledby", `scene-${i + 1}`);
    buttons.forEach((tab, k) => {
      put(tab, "aria-selected", k === i);
      put(tab, "tabindex", k === i ? 0 : -1);
    });
    const text = make("div", { class: "text" }, panel), picture = make("div", { class: "stage" }, panel);
    const scene = SCENES[i].draw(picture, seed);
    story(text, scene);
    stop = scene.stop;
  }
  addEventListener("beforeprint", () => drawHandout(handout, seed));
  show(0);
}
export {
  renderScenes
};
