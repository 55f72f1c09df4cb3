// Written by `make bundle` from viz/browser/, do not edit. SHA-256 of the sources: b9035474caf8e94bd33ed5a8f3657c5ccaf29f04f9bdd73e87b84b9632642ae7
// elements.js
var SVG = "http://www.w3.org/2000/svg";
var DRAWN = ["svg", "g", "rect", "path", "line", "circle"];
function make(tag, attributes = {}, parent = null, text = null) {
  const isSvg = DRAWN.includes(tag) || attributes.svg;
  const element = isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value2] of Object.entries(attributes)) if (name !== "svg") element.setAttribute(name, String(value2));
  if (text !== null) element.textContent = String(text);
  if (parent) parent.appendChild(element);
  return (
    /** @type {Made<T>} */
    element
  );
}
function put(element, name, value2) {
  if (element.getAttribute(name) !== String(value2)) element.setAttribute(name, String(value2));
}
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
var focusIn = (element) => (
  /** @type {Document | ShadowRoot} */
  element.getRootNode().activeElement ?? null
);
function download(name, blob) {
  const link = make("a", { download: name, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1e3);
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
function describe(element, sentence2) {
  if (!sentence2) return element;
  element.setAttribute("aria-description", sentence2);
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

// text.js
var MINUS = "\u2212";
var SIGNS = { "\n": "\u23CE", "	": "\u21E5", "\r": "\u240D" };
var percent = (x) => (x >= 0.0995 || x === 0 ? (100 * x).toFixed(0) : (100 * x).toPrecision(2)) + "\xA0%";
var sign = (x) => x > 0 ? "+" : x < 0 ? MINUS : "";
var signed = (x) => sign(x) + Math.abs(x);
var signedNumber = (x, digits = 2) => sign(x) + Math.abs(x).toFixed(digits);
var number = (x) => Math.abs(x) >= 10 ? x.toFixed(0) : String(+x.toPrecision(2));
var whole = (x) => Math.abs(x).toLocaleString("en-US");
var signedWhole = (x) => (x < 0 ? MINUS : "+") + whole(x);
var nats = (x) => signedNumber(x, Math.abs(x) >= 9.95 ? 1 : 2);
var unsignedNats = (x) => nats(x).replace("+", "");
var capitalized = (words) => words[0].toUpperCase() + words.slice(1);
function sizeText(bytes) {
  for (const unit of ["bytes", "kB", "MB"]) {
    if (bytes < 999.5) return `${+bytes.toPrecision(3)} ${unit}`;
    bytes /= 1e3;
  }
  return `${+bytes.toPrecision(3)} GB`;
}
function probability(logarithm) {
  const p = Math.exp(logarithm);
  return p > 0.9995 ? "100\xA0%" : p < 1e-5 ? "< .001\xA0%" : percent(p);
}
var visible = (token) => token.replace(/[\n\t\r]/g, (c) => SIGNS[c]);
var quoted = (token) => `\u201C${visible(token)}\u201D`;
var isSpecial = (token) => /^\s*(<[^\s<>]+>|\[[A-Z]+\])\s*$/.test(token);

// chart.js
var LEFT = 50;
var RIGHT = 8;
var TOP = 6;
var BOTTOM = 32;
var LETTER = 7.4;
var APART = 13;
var WIDE = 10;
var RAISED = "\u2070\xB9\xB2\xB3\u2074\u2075\u2076\u2077\u2078\u2079";
function ticks(low, high, log, most) {
  if (log) return logTicks(low, high, most);
  const ticks2 = [], power = 10 ** Math.floor(Math.log10((high - low) / most || 1));
  const step = ([1, 2, 5].find((f) => f * power >= (high - low) / most) ?? 10) * power;
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) ticks2.push(+v.toPrecision(12));
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
  const line = (look, ends2) => make("line", { class: look, ...ends2 }, svg);
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
  const turned = `translate(10 ${(TOP + bottom) / 2}) rotate(-90)`;
  explained(tick({ transform: turned, "text-anchor": "middle" }, y.label));
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
function lossCurves(parent, arms, width) {
  const names = Object.keys(arms), isAlone = names.length === 1;
  const lines = names.flatMap((name, i) => {
    const { losses = [], held = [] } = arms[name];
    const look = { name: isAlone ? "" : `arm${i}`, dash: i === 1 };
    return [
      { label: isAlone ? "training" : "", term: "training loss", points: losses, thin: true, ...look, color: i },
      {
        label: isAlone ? "validation" : name,
        term: "held-out loss",
        points: held,
        dots: true,
        ...look,
        color: isAlone ? 1 : i
      }
    ];
  }).filter((line) => line.points.length || !isAlone);
  const values = lines.flatMap(({ points }) => points.map(([, loss]) => loss));
  const low = Math.min(...values), steps = Math.max(1, ...names.map((name) => arms[name].planned ?? 1));
  const isThin = !isAlone && names.some((name) => arms[name].losses?.length);
  return chart(parent, {
    title: `Losses of ${names.join(" and ")} over the optimizer steps`,
    lines,
    x: { label: "optimizer step", min: 0, max: steps },
    y: {
      label: isThin ? "loss, nats (thin: training)" : "loss, nats",
      log: low > 0 && Math.max(...values) > WIDE * low
    },
    width,
    height: 190,
    named: true
  });
}

// colors.js
var RED = [178, 24, 43];
var BLUE = [33, 102, 172];
var GREEN = [0, 104, 116];
var rgb = (text) => (text.match(/[\d.]+/g) ?? []).slice(0, 3).map(Number);
function luminance(color) {
  const linear = (c) => c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = color.map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
var isDark = (element) => luminance(rgb(getComputedStyle(element).color || "rgb(0, 0, 0)")) > 0.4;
var groundOf = (dark) => dark ? [17, 17, 17] : [255, 255, 255];
var unknown = (dark) => dark ? [58, 58, 58] : [220, 220, 220];
var inkOn = (color) => luminance(color) > 0.179 ? "#000" : "#fff";
var blend = (ground, hue, share) => ground.map((c, i) => Math.round(c + (hue[i] - c) * Math.min(1, Math.abs(share))));
function tint(share, dark) {
  const fill2 = blend(groundOf(dark), share > 0 ? RED : BLUE, share);
  return { fill: `rgb(${fill2})`, ink: inkOn(fill2) };
}
var largest = (values) => values.reduce((most, value2) => Math.max(most, Math.abs(value2)), 1e-6);

// grid.js
var LETTER2 = 6.3;
var HEIGHT = 22;
var TIGHT = 5.6;
var MOVES = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
var STEPS = { "+": 1, "=": 1, "-": -1 };
var membersOf = (modules, which, at) => modules[which].flatMap((place2, k) => place2 === at ? [k] : []);
function labelMembers(modules, event) {
  const { row, column } = (
    /** @type {HTMLElement | SVGElement} */
    event.target.dataset
  );
  if (row !== void 0) return membersOf(modules, "row", Number(row));
  return column === void 0 ? null : membersOf(modules, "column", Number(column));
}
function neighbor(modules, from, [right, down]) {
  let i = modules.column[from], j = modules.row[from], k = -1;
  while (k < 0 && i >= 0 && j >= 0 && i < modules.columns.length && j < modules.rows.length) {
    [i, j] = [i + right, j + down];
    k = modules.row.findIndex((row, n) => row === j && modules.column[n] === i);
  }
  return k;
}
var cross = (w, h) => `M5 5L${w - 5} ${h - 5}M5 ${h - 5}L${w - 5} 5`;
function bandHeight(modules, { top: top2, gaps = [] }, below) {
  return top2 + modules.rows.length * HEIGHT + (gaps.at(-1) ?? 0) + below;
}
function moduleGrid(svg, modules, shape, words) {
  const grid = { svg, modules, shape, words, cells: [], bars: [] };
  const bands = shape.bands ?? 1, length = Math.ceil(modules.columns.length / bands);
  svg.replaceChildren();
  for (let b = 0; b < bands; b++) drawBand(grid, b * bandHeight(modules, shape, 20) + shape.top, b * length, length);
  return { cells: grid.cells, bars: grid.bars };
}
function drawBand(grid, y0, first, length) {
  const { svg, modules, shape } = grid, { left, w, gaps = [] } = shape;
  const here = modules.columns.slice(first, first + length);
  const x = (i) => left + w * (i - first);
  const bottom = bandHeight(modules, shape, 14) - shape.top + y0, every = Math.ceil(18 / w);
  const head = make("g", { role: "row" }, svg);
  drawLabel(head, { x: left - 6, y: bottom, "text-anchor": "end", role: "columnheader" }, "layer");
  here.forEach((layer, n) => drawColumn(grid, head, { layer, i: first + n, x: x(first + n), y0, bottom, every }));
  modules.rows.forEach((name, j) => {
    const row = make("g", { role: "row" }, svg), y = y0 + HEIGHT * j + (gaps[j] ?? 0);
    drawRow(grid, row, { name, j, y, end: left + w * here.length });
    for (const k of membersOf(modules, "row", j)) {
      const i = modules.column[k];
      if (i >= first && i < first + length) grid.cells[k] = drawCell(row, k, x(i), y, shape);
    }
  });
}
var drawLabel = (parent, attributes, text) => make("text", { svg: true, class: "label", ...attributes }, parent, text);
function drawColumn({ svg, shape, words, bars }, head, { layer, i, x, y0, bottom, every }) {
  const { w, inset } = shape, rect = make("rect", { class: "total", x: x + inset, width: w - 2 * inset }, svg);
  bars.push({ which: "column", at: i, rect, room: shape.tall, base: y0 - shape.above });
  const [text, name] = words.layer(layer), at = { x: x + w / 2, y: bottom, "text-anchor": "middle" };
  const label = { ...at, role: "columnheader", "data-column": i, "aria-label": name };
  make("title", { svg: true }, drawLabel(head, label, i % every ? "\xB7" : text), words.column(name));
}
function drawRow({ svg, shape, words, bars }, row, { name, j, y, end }) {
  const { left, right, letters, inset } = shape;
  const short = name.length > letters ? "\u2026" + name.slice(-Math.floor(letters) + 2) : name;
  const label = { x: left - 6, y: y + HEIGHT / 2 + 4, "text-anchor": "end", role: "rowheader", "data-row": j };
  make("title", { svg: true }, drawLabel(row, label, short), words.row(name));
  const at = { x: end + 4, y: y + inset + 1, height: HEIGHT - 2 * inset - 2 };
  bars.push({ which: "row", at: j, rect: make("rect", { class: "total", ...at }, svg), room: right - 8, base: 0 });
}
function drawCell(row, k, x, y, { w, font }) {
  const h = HEIGHT, at = { "data-k": k, transform: `translate(${x} ${y})` };
  const g = make("g", { class: "cell", role: "gridcell", tabindex: -1, ...at }, row);
  const rect = make("rect", { x: 1, y: 1, width: w - 2, height: h - 2, rx: 2 }, g);
  const middle = { x: w / 2, y: h / 2 + 4, "text-anchor": "middle", "font-size": font };
  const text = make("text", { svg: true, ...middle }, g);
  return { g, rect, text, mark: make("path", { class: "mark" }, g), w, h };
}
function setLength(bar, share) {
  const length = share * bar.room;
  put(bar.rect, bar.which === "column" ? "height" : "width", length);
  if (bar.which === "column") put(bar.rect, "y", bar.base - length);
}
function cellGrid(parent, { title, rows, columns, cells, most = 1, fill: colorOf, width = 560, height: h = 17 }) {
  const left = 6.2 * Math.max(...rows.map((name) => Math.min(name.length, 22))) + 10;
  const w = Math.min(26, (width - left) / columns.length), every = Math.ceil(18 / w), ground = groundOf(isDark(parent));
  const isFine = h < 8, gap = isFine ? 0 : 1, top2 = Math.max(0, 6 - h / 2);
  const apart = [1, 2, 5, 10].find((rows2) => rows2 * h >= 12) ?? 20;
  const size = { width: left + w * columns.length, height: top2 + h * rows.length + 18 };
  const view = { ...size, viewBox: `0 0 ${size.width} ${size.height}` };
  const svg = make("svg", { class: "chart", role: "img", ...view, "aria-label": title }, parent);
  const fillOf = colorOf ?? ((value2) => blend(ground, GREEN, value2 === null || !most ? 0 : value2 / most));
  const tick = (x, y, anchor, text) => make("text", { svg: true, class: "tick", x, y, "text-anchor": anchor }, svg, text);
  rows.forEach((name, j) => {
    if (j % apart === 0) tick(left - 6, top2 + h * (j + 0.5) + 3.5, "end", name.slice(-22));
  });
  columns.forEach((name, i) => {
    if (i % every === 0) tick(left + w * (i + 0.5), top2 + h * rows.length + 13, "middle", name);
  });
  for (const [row, column, value2, text] of cells) {
    const fill2 = fillOf(value2);
    const at = { x: left + w * column + gap / 2, y: top2 + h * row + gap / 2, width: w - gap, height: h - gap };
    const rect = make("rect", { class: isFine ? "grid fine" : "grid", ...at, fill: `rgb(${fill2})` }, svg);
    if (text) make("title", { svg: true }, rect, `layer ${columns[column]} ${rows[row]}: ${text}`);
    if (!text || w <= 15 || w < TIGHT * text.length) continue;
    const middle = { x: left + w * (column + 0.5), y: top2 + h * row + 12, "text-anchor": "middle" };
    make("text", { svg: true, ...middle, "font-size": 9, fill: inkOn(fill2) }, svg, text);
  }
  return svg;
}

// monitor.js
var STOP = "End training after this step and keep the run";
var NOTES = {
  training: "Interrupting the kernel stops training too. Either way the run is kept.",
  stopping: "Ends after this step."
};
function renderMonitor({ model, el }) {
  const root = make("div", { class: "tlora monitor", "data-lm-suppress-shortcuts": "true" }, el);
  const bar = make("div", { class: "bar" }, root), stop = describe(make("button", { type: "button" }, bar), STOP);
  make("span", { "aria-hidden": "true" }, stop, "\u25A0 ");
  const label = make("span", {}, stop), note = make("span", {}, bar);
  const status = make("div", { class: "status" }, root), curves = make("div", {}, root);
  explainer(root);
  stop.addEventListener("click", () => model.send({ call: "stop" }));
  function follow3() {
    const button2 = model.get("button");
    label.textContent = button2.label;
    stop.disabled = button2.disabled;
  }
  function draw() {
    const state = model.get("state");
    drawNote(note, state);
    status.replaceChildren();
    if (state.line) make("b", {}, status, state.line);
    make("div", {}, status, state.detail ?? "");
    curves.replaceChildren();
    if (state.arms) drawCurves(curves, state, Math.max(320, Math.min(820, el.clientWidth || 640)));
  }
  model.on("change:button", follow3);
  model.on("change:state", draw);
  follow3();
  draw();
}
function drawNote(note, { status }) {
  note.textContent = NOTES[status] ?? "";
  if (status !== "waiting") return;
  make("code", {}, note, "tlora.train(..., callbacks=[monitor])");
  note.prepend("Pass it to ");
  note.append(".");
}
function drawCurves(parent, { arms = {}, rows = [], columns = [], cells = [] }, width) {
  lossCurves(parent, arms, width);
  if (!cells.length) return;
  const most = Math.max(...cells.map(([, , share]) => share ?? 0), 1e-12);
  const words = `Update of each module relative to its weight, up to ${percent(most)}`;
  make("div", { class: "key" }, parent, `${words}: projections down, layers across`);
  cellGrid(parent, { title: "Update of each module", rows, columns, cells, most, width });
}

// workbench/requests.js
var REST = 400;
var Requests = class {
  /** @type {Message[]} */
  queue = [];
  isBusy = false;
  hasMore = false;
  // resamples of this version
  version = 1;
  // of the ranks
  resampled = 0;
  // the version whose resamples were asked for
  gestures = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  timer = void 0;
  /**
   * @param {Pick<Model, "send">} model
   * @param {() => boolean} resamples Whether ranks are resampled at all.
   * @param {() => boolean} isDragging
   */
  constructor(model, resamples, isDragging) {
    this.model = model;
    this.resamples = resamples;
    this.isDragging = isDragging;
  }
  get isIdle() {
    return !this.isBusy && !this.queue.length;
  }
  /** The number of a new gesture. */
  gesture() {
    return ++this.gestures;
  }
  /**
   * @param {string} call
   * @param {object} args
   * @param {string | null} gesture Which gesture it is part of.
   */
  ask(call, args = {}, gesture = null) {
    if (gesture !== null && this.queue.at(-1)?.gesture === gesture) this.queue.pop();
    this.queue.push({ call, args, gesture });
    this.next();
  }
  next() {
    if (this.isBusy) return;
    const request = this.queue.shift();
    if (!request) return this.rest();
    this.isBusy = true;
    this.model.send({ ...request, id: this.version });
  }
  /** When the user rests, asks for ranks from resampled scores, in parts: the next request does not wait for all. */
  rest() {
    if (!this.resamples()) return;
    this.stop();
    if (!this.hasMore && this.resampled >= this.version || this.isDragging()) return;
    this.timer = setTimeout(() => {
      this.resampled = this.version;
      this.ask("resample");
    }, this.hasMore ? 0 : REST);
  }
  /** The ranks have changed. */
  changed() {
    this.version++;
    this.hasMore = false;
    this.rest();
  }
  /** @type {(more: boolean) => void} */
  answered(more) {
    this.isBusy = false;
    this.hasMore = more;
    this.next();
  }
  stop() {
    clearTimeout(this.timer);
  }
};

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

// controls.js
var STEPS2 = { ArrowRight: 1, ArrowLeft: -1 };
function button(parent, label, sentence2, action, attributes = {}) {
  const element = describe(make("button", { type: "button", ...attributes }, parent, label), sentence2);
  element.addEventListener("click", action);
  return element;
}
var labeled = (parent, label) => make("label", { class: "control" }, parent, label);
var group = (parent, name) => make("span", { class: "group", role: "group", "aria-label": name }, parent);
function choose(parent, label, options, selected, action) {
  const select2 = make("select", {}, labeled(parent, label));
  fillOptions(select2, options, selected);
  select2.addEventListener("change", () => action(select2.value));
  return select2;
}
function fillOptions(select2, options, selected) {
  select2.replaceChildren();
  for (const [value2, text] of options) make("option", { value: value2 }, select2, text).selected = value2 === selected;
}
function onArrows(row, then = () => {
}) {
  row.addEventListener("keydown", (event) => {
    const step = STEPS2[event.key];
    if (!step) return;
    const buttons = [...row.querySelectorAll("button")].filter((button2) => !button2.hidden);
    const at = buttons.findIndex((button2) => button2 === event.target);
    const target = buttons[(at + step + buttons.length) % buttons.length];
    then(target);
    target.focus();
    event.preventDefault();
  });
}
function drawBar(parent, { words, done, total: total2 }) {
  const share = total2 !== null && total2 > 1 ? { max: total2, value: done } : null;
  make("progress", { ...share, "aria-label": words }, parent);
  parent.append(words + (share ? `: ${done} of ${total2}` : ""));
}
function copyable(parent) {
  const line = make("code", { tabindex: 0 }, parent);
  const copy = button(parent, "Copy", "Copy the line of Python", async () => {
    await navigator.clipboard.writeText(line.textContent ?? "");
    copy.textContent = "Copied";
    setTimeout(() => {
      copy.textContent = "Copy";
    }, 1200);
  });
  return line;
}
function fold(parent, word) {
  const menu = make("details", { class: "fold" }, parent);
  make("summary", {}, menu, word);
  return make("div", {}, menu);
}

// modules.js
var placeOf = ({ rows, columns, row, column }, k) => `layer ${columns[column[k]]} ${rows[row[k]]}`;
var sum = (values) => values.reduce((all, value2) => all + value2, 0);
var mean = (values) => sum(values) / (values.length || 1);

// panels/alignment.js
function alignmentPart(parent, { pairs }, { about, model }) {
  const start = model?.get("compared") ?? {};
  const found = pairs.findIndex(({ sides }) => sides[0] === start.left && sides[1] === start.right);
  let pair = pairs[Math.max(0, found)], rank = Math.min(start.rank ?? 8, pair.rank);
  const bar = make("div", { class: "bar" }, parent);
  const names = pairs.map(({ sides }, i) => [i, sides.join(" and ")]);
  choose(bar, "Pair", names, pairs.indexOf(pair), (i) => {
    pair = pairs[Number(i)];
    slider.max = String(pair.rank);
    rank = Math.min(rank, pair.rank);
    slider.value = String(rank);
    draw();
  });
  const box = labeled(bar, "Rank");
  const slider = make("input", { type: "range", min: 1, max: pair.rank, step: 1, value: rank }, box);
  const output = make("output", {}, box), below = make("div", {}, parent);
  slider.addEventListener("input", () => {
    rank = Number(slider.value);
    draw();
  });
  function draw() {
    output.textContent = String(rank);
    below.replaceChildren();
    drawPair(below, about, pair, rank);
  }
  draw();
}
function drawPair(parent, about, pair, rank) {
  const known = about.names.flatMap((_, k) => pair.overlaps[k].length ? [k] : []);
  const means = (r) => mean(known.map((k) => pair.overlaps[k][r - 1]));
  const chance = (r) => mean(known.map((k) => r * pair.chance[k][0]));
  const overlap = (k) => pair.overlaps[k][rank - 1];
  const sides = pair.sides.join(" and ");
  const top2 = known.reduce((best2, k) => overlap(k) > overlap(best2) ? k : best2, known[0]);
  const first = rank === 1 ? "direction overlaps" : `${rank} directions overlap`;
  const finding = `first ${first} by ${percent(means(rank))}, by chance ${percent(chance(rank))}`;
  const most = `most in ${placeOf(about, top2)}, ${percent(overlap(top2))}`;
  make("p", { class: "finding" }, parent, `${sides}: ${finding}; ${most}`);
  const side = make("div", { class: "pair" }, parent), map = make("div", {}, side), curve = make("div", {}, side);
  make("div", { class: "key" }, map, "Overlap of each module, percent: projections down, layers across");
  const cells = known.map((k) => [about.row[k], about.column[k], overlap(k), (100 * overlap(k)).toFixed(0)]);
  const title = `Overlap of ${sides} at rank ${rank}`;
  cellGrid(map, { title, rows: about.rows, columns: about.columns, cells, most: 1, width: 640 });
  const ranks = Array.from({ length: pair.rank }, (_, i) => i + 1);
  chart(curve, {
    title: "Mean overlap by rank",
    lines: [
      { label: "mean of all modules", points: ranks.map((r) => [r, means(r)]) },
      { label: "by chance", dash: true, points: ranks.map((r) => [r, chance(r)]) }
    ],
    cursor: rank,
    x: { label: "rank", min: 1, max: Math.max(2, pair.rank) },
    y: { label: "overlap", percent: true, min: 0, max: 1 },
    height: 190
  });
  drawProjections(parent, about, pair, rank, known);
}
function drawProjections(parent, about, pair, rank, known) {
  const rows = about.rows.flatMap((name, j) => {
    const members = known.filter((k) => about.row[k] === j);
    if (!members.length) return [];
    const overlap = percent(mean(members.map((k) => pair.overlaps[k][rank - 1])));
    const chance = percent(mean(members.map((k) => rank * pair.chance[k][0])));
    const angles = [0, 1, 2].map((i) => number(mean(members.map((k) => pair.angles[k][i]))));
    return [[name, overlap, chance, ...angles]];
  });
  drawTable(parent, {
    caption: `By projection, means over layers; angles at rank ${pair.rank} in degrees`,
    head: ["projection", "overlap", "by chance", "smallest angle", "median", "largest"],
    rows
  });
}

// panels/explaining.js
var STOP2 = "Give this answer up; the others stay";
function drawButtons(parent, look, ask) {
  const begin = make("button", look, parent, "Take apart");
  const stop = button(parent, "Stop", STOP2, () => ask?.("stop_explaining"));
  const said = make("span", { role: "status" }, parent);
  function follow3({ row, running = false, said: words = "", bar } = {}, isThis) {
    const isMine = isThis(row), hadFocus = focusIn(begin) === begin;
    begin.disabled = running;
    stop.hidden = !running || !isMine;
    if (hadFocus && !stop.hidden) stop.focus();
    said.replaceChildren(...isMine ? [words] : []);
    if (isMine && running && bar) drawBar(make("div", {}, said), bar);
  }
  return { begin, follow: follow3 };
}
function drawTakeApart(parent, row, model, ask) {
  const { begin, follow: follow3 } = drawButtons(make("div", {}, parent), { type: "button", class: "primary" }, ask);
  begin.addEventListener("click", () => ask?.("explain_row", { row }));
  const now = () => follow3(model.get("explaining"), (other) => other === row);
  now();
  return now;
}
function drawRequestForm(parent, model, ask) {
  const form2 = make("form", { class: "bar own" }, parent);
  const field = (label) => make("input", { type: "text" }, labeled(form2, label));
  const request = field("A request of your own"), answer = field("Its answer (default: the adapter's)");
  const { follow: follow3 } = drawButtons(form2, { type: "submit" }, ask);
  form2.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!request.value.trim()) return;
    ask?.("explain", { prompt: request.value, answer: answer.value.trim() ? answer.value : null });
  });
  const now = () => follow3(model.get("explaining"), (row) => row === null);
  now();
  return now;
}

// panels/follow_kernel.js
function followKernel(root, model, events) {
  let wasOnPage = root.isConnected;
  const listeners = Object.entries(events).map(([event, follow3]) => {
    const listener = () => {
      if (!root.isConnected && wasOnPage) return listeners.forEach(([name, each]) => model.off?.(name, each));
      wasOnPage = root.isConnected;
      follow3();
    };
    return (
      /** @type {const} */
      [event, listener]
    );
  });
  for (const [event, listener] of listeners) model.on(event, listener);
}

// ramp.js
function drawColors(legend, colors, [low, middle, high], words) {
  const gradient = colors.map((color) => `rgb(${color})`);
  make("span", {}, legend, low);
  make("span", { class: "ramp", style: `background: linear-gradient(to right, ${gradient})` }, legend, middle);
  make("span", {}, legend, `${high} (${words})`);
}

// strip.js
var tokenClass = (text) => `token${isSpecial(text) ? " special" : ""}`;
function plainToken(parent, text) {
  return make("span", { class: tokenClass(text) }, parent, visible(text));
}
function coloredToken(parent, text, share, dark) {
  const { fill: fill2, ink } = tint(share, dark), style = `background: ${fill2}; color: ${ink}`;
  return make("span", { class: tokenClass(text), style }, parent, visible(text));
}
function drawStrip(parent, tokens, dark) {
  const strip = make("span", { class: "strip" }, parent);
  for (const token of tokens) {
    if (typeof token === "string") {
      strip.append(token);
      continue;
    }
    const drawn = coloredToken(strip, token.narrow ? "" : token.text, token.share, dark);
    if (token.title) drawn.title = token.title;
    drawn.classList.add(...token.look ?? [], ...token.narrow ? ["narrow"] : []);
    if (token.ends) make("br", {}, strip);
  }
}
function drawRamp(parent, most, words, dark) {
  const legend = make("div", { class: "legend" }, parent), ends2 = [signedNumber(-most), "0", signedNumber(most)];
  drawColors(legend, [BLUE, groundOf(dark), RED], ends2, words);
}

// panels/answer_table/conversation.js
var SIGNS2 = { right: "\u2713", wrong: "\u2717" };
function drawMark(parent, right) {
  if (right === null) return;
  const word = right ? "right" : "wrong";
  make("span", { class: `mark ${word}`, role: "img", "aria-label": word, title: word }, parent, SIGNS2[word]);
}
function drawConversation(parent, row, { about, take }) {
  const box = make("div", { class: "conversation" }, parent), turns = make("div", { class: "turns" }, box);
  drawTurn(turns, "request", row.request, null);
  drawTurn(turns, "base", row.base, row.base_right);
  drawTurn(turns, "adapter", row.adapter, row.adapter_right);
  if (row.reference !== null) drawTurn(turns, "reference", row.reference, null);
  const gained2 = make("div", { class: "gained" }, box);
  if (row.apart) drawApart(gained2, row, row.apart, about);
  else if (take) offerToTake(gained2, row, take);
  else sayHow(gained2, row);
}
function drawTurn(parent, speaker, text, right) {
  const turn2 = make("div", { class: `turn ${speaker}` }, parent), name = make("div", { class: "speaker" }, turn2, speaker);
  drawMark(name, right);
  make("div", { class: "said" }, turn2, text || "(nothing)");
}
function drawApart(parent, { reference, gain }, { tokens, modules }, about) {
  const whose = reference === null ? "the adapter's answer" : "the reference";
  make("p", {}, parent, `What each token of ${whose} gained, ${nats(gain)} nats together:`);
  const chips = make("div", { class: "chips" }, parent), most = largest(tokens.map(([, gain2]) => gain2));
  for (const [token, gain2] of tokens) {
    const chip = make("span", { class: "chip" }, chips);
    coloredToken(chip, token, gain2 / most, isDark(parent));
    make("span", { class: "nats" }, chip, nats(gain2));
  }
  make("p", {}, parent, "The modules that contributed most of it, nats:");
  const table = make("table", { class: "modules" }, parent), longest = largest(modules.map(([, value2]) => value2));
  for (const [place2, value2] of modules) {
    const line = make("tr", {}, table);
    make("th", { scope: "row" }, line, place2);
    make("td", {}, line, nats(value2));
    drawShare(make("td", { class: "bars" }, line), value2 / longest);
  }
  if (!about.panels.some(({ name }) => name === "attribution")) return;
  make("p", { class: "note" }, parent, "What leaving a module out costs is another number: panel Attribution.");
}
function drawShare(parent, share) {
  const look = { class: share < 0 ? "share less" : "share more", style: `width: ${100 * Math.abs(share)}%` };
  make("span", look, make("span", { class: "shares", "aria-hidden": "true" }, parent));
}
function offerToTake(parent, { row, reference }, take) {
  const whose = reference === null ? "the adapter's answer" : "the reference";
  make("p", {}, parent, `What each token of ${whose} gained, and by which modules, is not known yet.`);
  take(parent, row);
}
function sayHow(parent, { row }) {
  const line = make("p", { class: "note" }, parent, "To see what each token gained, and by which modules, add ");
  make("code", {}, line, `--rows ${row}`);
  line.append(" to ");
  make("code", {}, line, "tlora explain --data");
  line.append(", or ");
  make("code", {}, line, `explain=[${row}]`);
  line.append(" to ");
  make("code", {}, line, "tlora.compare_answers");
  line.append(".");
}

// panels/answer_table/rows.js
function withKnown(rows, known) {
  const byRow = new Map(known.map((row) => [row.row, row]));
  const own = known.filter(({ row }) => row < 0).sort((a, b) => a.row - b.row);
  return [...own, ...rows.map((row) => byRow.get(row.row) ?? row)];
}
var rowName = (row) => row < 0 ? `own ${-row}` : String(row);
var FILTERS = {
  "all": { sentence: "All rows", keeps: () => true },
  "newly right": {
    sentence: "Right with the adapter, wrong before",
    keeps: (row) => row.adapter_right === true && row.base_right === false
  },
  "newly wrong": {
    sentence: "Wrong with the adapter, right before",
    keeps: (row) => row.adapter_right === false && row.base_right === true
  },
  "changed": { sentence: "The adapter's answer is not the base's", keeps: (row) => row.changed },
  "wrong": { sentence: "Wrong with the adapter", keeps: (row) => row.adapter_right === false }
};
var markKey = (right) => right === null ? 2 : Number(right);
var COLUMNS = {
  "row": ({ row }) => [row],
  "request": ({ request }) => [request],
  "base": ({ base, base_right }) => [markKey(base_right), base],
  "adapter": ({ adapter, adapter_right }) => [markKey(adapter_right), adapter],
  "reference": ({ reference }) => [Number(reference === null), reference ?? ""],
  "changed": ({ changed }) => [Number(!changed)],
  "gain, nats": ({ gain }) => [gain]
};
function compare(a, b) {
  for (const [i, left] of a.entries()) {
    const right = b[i];
    const order = typeof left === "number" ? left - Number(right) : left.localeCompare(String(right), "en", NUMERIC);
    if (order) return order;
  }
  return 0;
}
var NUMERIC = { numeric: true };
function chosenRows(rows, { filter, column, descending }) {
  const kept2 = rows.filter(FILTERS[filter].keeps);
  if (column === null) return kept2;
  const key = COLUMNS[column], sign2 = descending ? -1 : 1;
  return kept2.sort((a, b) => sign2 * compare(key(a), key(b)));
}
function filterCounts(rows) {
  const isMarked = rows.some(({ adapter_right }) => adapter_right !== null);
  const names = Object.keys(FILTERS).filter((name) => isMarked || name === "all" || name === "changed");
  return names.map((name) => [name, rows.filter(FILTERS[name].keeps).length]);
}

// panels/answer_table/answer_table.js
var LISTED = 8;
var LONGEST = 160;
var ROLES = { table: "table", group: "rowgroup", row: "row", head: "columnheader", name: "rowheader", cell: "cell" };
function answerTablePart(parent, part, { about, model, ask }) {
  const choice = part.choice ??= { filter: "all", column: null, descending: false, isWhole: false, open: /* @__PURE__ */ new Set() };
  if (!about.stages) make("p", { class: "finding" }, parent, part.sentence);
  const filters = group(make("div", { class: "bar" }, parent), "Rows");
  onArrows(filters);
  const table = make("table", { role: ROLES.table, "aria-label": "Answers" }, parent);
  const head = make("tr", { role: ROLES.row }, make("thead", { role: ROLES.group }, table));
  const body = make("tbody", { role: ROLES.group }, table), foot = make("div", { class: "key", role: "status" }, parent);
  const rows = withKnown(part.rows, model?.get("explained")?.rows ?? []), waiting = /* @__PURE__ */ new Map();
  const most = largest(rows.map(({ gain }) => gain));
  const take = model && part.live ? takeRow(waiting, model, ask) : null;
  const panel = { rows, choice, filters, heads: /* @__PURE__ */ new Map(), body, foot, most, waiting, opening: { about, take } };
  drawFilters(panel);
  drawHeads(panel, head);
  drawRows(panel);
  if (model && part.live) followModel(panel, part, model, drawRequestForm(parent, model, ask));
}
var takeRow = (waiting, model, ask) => (parent, row) => void waiting.set(row, drawTakeApart(parent, row, model, ask));
function followModel(panel, part, model, followForm) {
  const { choice, body } = panel;
  function followRows() {
    const known = model.get("explained")?.rows ?? [], last = known.at(-1);
    panel.rows = withKnown(part.rows, known);
    panel.most = largest(panel.rows.map(({ gain }) => gain));
    if (last && last.row < 0) Object.assign(choice, { filter: "all", column: null });
    if (last) choice.open.add(last.row);
    const hadFocus = body.contains(focusIn(body));
    drawFilters(panel);
    drawRows(panel);
    if (hadFocus && last) body.querySelector(`[data-row="${last.row}"]`)?.focus();
  }
  followKernel(body, model, {
    "change:explained": followRows,
    "change:explaining": () => {
      for (const follow3 of panel.waiting.values()) follow3();
      followForm();
    }
  });
}
function drawFilters(panel) {
  const { rows, choice, filters } = panel;
  filters.replaceChildren();
  const buttons = filterCounts(rows).map(([name, count2]) => {
    const filter = button(filters, `${name} ${count2}`, FILTERS[name].sentence, () => {
      Object.assign(choice, { filter: name, isWhole: false });
      press3();
      drawRows(panel);
    });
    filter.disabled = !count2;
    return { name, filter };
  });
  const press3 = () => buttons.forEach(({ name, filter }) => put(filter, "aria-pressed", name === choice.filter));
  press3();
}
function drawHeads(panel, head) {
  const { choice } = panel;
  for (const column of Object.keys(COLUMNS)) {
    const cell = make("th", { role: ROLES.head, scope: "col", class: classOf(column) }, head);
    const sort = button(cell, column, "", () => {
      const descending = choice.column === column && !choice.descending;
      Object.assign(choice, { column, descending });
      drawRows(panel);
    });
    explained(sort, column);
    panel.heads.set(column, cell);
  }
}
var classOf = (column) => column.split(",")[0];
function drawRows(panel) {
  const { rows, choice, heads, body, foot } = panel, found = chosenRows(rows, choice);
  const shown = choice.isWhole ? found : found.slice(0, LISTED), hidden = found.length - shown.length;
  for (const [column, cell] of heads) {
    put(cell, "aria-sort", column !== choice.column ? "none" : choice.descending ? "descending" : "ascending");
  }
  body.replaceChildren();
  panel.waiting.clear();
  for (const row of shown) drawRow2(panel, row);
  foot.replaceChildren(`${shown.length} of ${found.length} rows`);
  if (!hidden) return;
  button(foot, `Show ${hidden} more`, "", () => {
    choice.isWhole = true;
    drawRows(panel);
    body.querySelectorAll("th button")[LISTED]?.focus();
  });
}
function drawRow2({ choice, body, most, waiting, opening }, row) {
  const line = make("tr", { role: ROLES.row, class: "answers-row" }, body);
  const cell = (column, tag = "td", role = ROLES.cell) => make(tag, { role, class: classOf(column), "data-label": column }, line);
  cell("row").textContent = rowName(row.row);
  const name = cell("request", "th", ROLES.name);
  name.setAttribute("scope", "row");
  const opener = make("button", { type: "button", "data-row": row.row }, name);
  make("span", { class: "clamped" }, opener, shortened(row.request, true));
  drawAnswer(cell("base"), row.base, row.base_right);
  drawAnswer(cell("adapter"), row.adapter, row.adapter_right);
  drawAnswer(cell("reference"), row.reference ?? "", null);
  cell("changed").textContent = row.changed ? "yes" : "no";
  const gain = cell("gain, nats");
  make("span", {}, gain, nats(row.gain));
  drawShare(gain, row.gain / most);
  let opened = null;
  function follow3() {
    const isOpen = choice.open.has(row.row);
    put(opener, "aria-expanded", isOpen);
    line.classList.toggle("open", isOpen);
    opened?.remove();
    waiting.delete(row.row);
    opened = isOpen ? drawOpened(line, row, opening) : null;
  }
  line.addEventListener("click", () => {
    if (!choice.open.delete(row.row)) choice.open.add(row.row);
    follow3();
  });
  follow3();
}
function drawAnswer(parent, text, right) {
  drawMark(parent, right);
  make("span", { class: "clamped" }, parent, shortened(text));
}
function drawOpened(line, row, opening) {
  const opened = make("tr", { role: ROLES.row, class: "opened" });
  line.after(opened);
  drawConversation(make("td", { role: ROLES.cell, colspan: Object.keys(COLUMNS).length }, opened), row, opening);
  return opened;
}
function shortened(text, end = false) {
  if (text.length <= LONGEST) return text;
  return end ? `\u2026${text.slice(1 - LONGEST)}` : `${text.slice(0, LONGEST - 1)}\u2026`;
}

// panels/attribution/contributions.js
var changedModules = ({ choice }) => Object.keys(choice.ranks).map(Number);
var switchKey = (panel) => changedModules(panel).map((k) => `${k}:${panel.choice.ranks[k]}`).join();
function answerNow({ sample, choice, known }, key) {
  const stored = sample.switched[key], added = known[`${choice.sample} ${key}`];
  return stored || added ? (
    /** @type {Answer} */
    { ...stored, ...added }
  ) : void 0;
}
var isMeasured = ({ part, sample }, k) => part.live || `${k}:0` in sample.switched;
var overTokens = ({ choice }, values) => choice.token === null ? sum(values) : values[choice.token];
var gains = ({ sample }, measure) => sample.adapter[measure].map((v, i) => v - sample.base[measure][i]);
var gained = (panel, measure) => overTokens(panel, gains(panel, measure));
var contribution = (panel, k, measure) => overTokens(panel, panel.sample.modules[measure].map((token) => token[k]));
var cost = (panel, now, measure) => overTokens(panel, panel.sample.adapter[measure].map((v, i) => v - now.values[measure][i]));
var isOutside = (part, k) => part.columns[part.column[k]] < 0;
var moduleName = (part, k) => isOutside(part, k) ? part.names[k] : placeOf(part, k);
function nameOf(part, modules) {
  if (modules.length === 1) return moduleName(part, modules[0]);
  const isWhole2 = (which) => membersOf(part, which, part[which][modules[0]]).join() === modules.join();
  if (isWhole2("row")) return `${part.rows[part.row[modules[0]]]} of all layers`;
  if (isWhole2("column")) return `layer ${part.columns[part.column[modules[0]]]}`;
  return `${modules.length} modules`;
}

// panels/attribution/answer.js
var MEASURES = ["log-probability", "log-odds"];
var WORDS = {
  gained: "gain of a token",
  base: "probability in the base",
  adapter: "probability with the adapter",
  now: "probability now",
  "now first": "first choice now"
};
var ROWS = Object.keys(WORDS);
function press(parent, label, title, action) {
  const button2 = make("button", { type: "button", title }, parent, label);
  button2.addEventListener("click", action);
  return button2;
}
function answerElements(root) {
  const request = make("div", { class: "request" }, root);
  const cards = make("div", { class: "answer", role: "group", "aria-label": "Tokens of the answer" }, root);
  onArrows(cards);
  return { request, cards };
}
function drawAnswer2({ request, cards }, panel) {
  const { sample, choice } = panel, inAnswer = new Set(sample.positions);
  request.replaceChildren();
  cards.replaceChildren();
  sample.tokens.forEach((token, n) => {
    if (!inAnswer.has(n)) plainToken(request, token);
  });
  function chooseToken(token) {
    choice.token = token;
    panel.paint();
  }
  const names = make("div", { class: "card names" }, cards);
  press(names, "whole answer", "What the modules contributed to all of its tokens", () => chooseToken(null));
  for (const [name, word] of Object.entries(WORDS)) {
    explained(make("span", { class: `${name} head` }, names, name), word);
  }
  sample.positions.forEach((position, i) => {
    const card = make("div", { class: "card" }, cards);
    const token = press(card, visible(sample.tokens[position]), "", () => chooseToken(choice.token === i ? null : i));
    token.className = "token";
    for (const name of ROWS) make("span", { class: name }, card);
  });
}
function paintAnswer({ cards }, panel, now) {
  const { root, choice } = panel, dark = isDark(root), rise = gains(panel, choice.measure), most = largest(rise);
  const [names, ...tokens] = cards.children;
  cards.classList.toggle("switched", now !== null);
  put(names.children[0], "aria-pressed", choice.token === null);
  tokens.forEach((card, i) => paintCard(card, panel, i, now, (value2) => tint(value2 / most, dark)));
}
function paintCard(card, { sample, choice }, i, now, colorOf) {
  const [token, ...values] = (
    /** @type {Iterable<HTMLElement>} */
    card.children
  );
  const below = (row) => values[ROWS.indexOf(row)];
  const { measure } = choice, rise = sample.adapter[measure][i] - sample.base[measure][i];
  const p = (values2) => probability(values2[0][i]);
  fill(token, colorOf(rise));
  put(token, "aria-pressed", choice.token === i);
  const [ofBase, ofAdapter] = sample.choices.map((choices) => quoted(choices[i]));
  const text = quoted(sample.tokens[sample.positions[i]]);
  token.title = `${text}: ${nats(rise)} nats of ${MEASURES[measure]}, from ${p(sample.base)} to ${p(sample.adapter)}; first choice of the base ${ofBase}, of the adapter ${ofAdapter}`;
  const after = below("now"), first = below("now first");
  below("gained").textContent = nats(rise);
  below("base").textContent = p(sample.base);
  below("adapter").textContent = p(sample.adapter);
  after.textContent = now === null ? "" : now ? p(now.values) : "\u2026";
  if (now) fill(after, colorOf(now.values[measure][i] - sample.adapter[measure][i]));
  else after.removeAttribute("style");
  const another = now && !now.unchanged[i] ? visible(now.choices?.[i] ?? "another") : "";
  first.textContent = another;
  first.title = another && `first choice: ${another}`;
}
function fill(element, color) {
  element.style.background = color.fill;
  element.style.color = color.ink;
}
function writeAnswers(parent, { part, sample }, now) {
  parent.replaceChildren();
  const [base, adapter] = sample.generated;
  const lines = [["base", base], ["adapter", adapter]];
  if (now && part.live) lines.push(["now", now.answer ?? now.bar ?? "\u2026"]);
  for (const [name, words] of lines) {
    if (words === void 0) continue;
    const line = make("div", { class: name }, parent, `${name} answers: `);
    if (typeof words === "string") make("code", {}, line, words);
    else drawBar(line, words);
  }
}

// panels/attribution/conclusion.js
function conclude(panel, now) {
  const { part, choice } = panel, off = changedModules(panel);
  if (!off.length) return concludeLargest(panel);
  const subject = nameOf(part, off);
  if (!now) return `Leaving out ${subject} \u2026`;
  const tokens = now.unchanged.filter((same) => !same).length;
  const choices = tokens ? `The first choice changes at ${tokens} of ${now.unchanged.length} tokens.` : "No first choice changes.";
  return `${sentence(panel, `${subject} contributed`, actOf(choice, off), off, now)} ${choices}`;
}
function actOf({ ranks }, off) {
  const isCut = off.every((k) => ranks[k]);
  if (!isCut) return `leaving ${off.length > 1 ? "them" : "it"} out`;
  return off.length === 1 ? `cutting it to rank ${ranks[off[0]]}` : "cutting them";
}
function concludeLargest(panel) {
  const { part, sample, choice } = panel;
  const size = (k2) => Math.abs(contribution(panel, k2, choice.measure));
  const order = part.names.map((_, k2) => k2).sort((a, b) => size(b) - size(a));
  const k = order.find((module) => `${module}:0` in sample.switched);
  if (k === void 0) return `The answer gained ${unsignedNats(gained(panel, choice.measure))} nats.`;
  const subject = `${moduleName(part, k)} contributed`;
  return sentence(panel, subject, "leaving it out alone", [k], sample.switched[`${k}:0`]);
}
function sentence(panel, subject, act3, modules, now) {
  const { sample, choice } = panel;
  const token = choice.token === null ? null : sample.tokens[sample.positions[choice.token]];
  const of = token === null ? "" : ` of ${quoted(token.trim())}`;
  const added = (measure) => sum(modules.map((k) => contribution(panel, k, measure)));
  const share = (measure) => `${unsignedNats(added(measure))} of`;
  const all = (measure) => unsignedNats(gained(panel, measure));
  const lost = cost(panel, now, 0), likelier = lost < -5e-3 ? ", so the answer is likelier that way" : "";
  return `${capitalized(subject)} ${share(0)} the ${all(0)} nats${of}; ${act3} costs ${unsignedNats(lost)}${likelier}. In log-odds, which have no ceiling: ${share(1)} ${all(1)}, cost ${unsignedNats(cost(panel, now, 1))}.`;
}

// panels/attribution/map.js
var PULL = 6;
var LABEL = "Modules of the adapter: projections down, layers across. Arrow keys move, Enter switches a module off and on, minus and plus change its rank, Shift and space switches its row, Control and space its column";
var WORDS2 = {
  layer: (layer) => layer < 0 ? ["\u2013", "outside"] : [layer, `layer ${layer}`],
  column: (name) => `Switch ${name} off or on`,
  row: (name) => `Switch ${name} off or on in all layers`
};
function drawMap(panel, svg) {
  const { part } = panel, w = part.columns.length > 40 ? 20 : 26, right = 60, letters = 24;
  const left = LETTER2 * Math.min(letters, Math.max(...part.rows.map((row) => row.length))) + 12;
  const shape = { left, right, top: 28, w, letters, font: 9.5, tall: 24, above: 2, inset: 3 };
  const width = left + w * part.columns.length + right, height = bandHeight(part, shape, 18);
  const size = { width, height, viewBox: `0 0 ${width} ${height}`, style: `min-width: ${Math.min(width, 560)}px` };
  for (const [name, value2] of Object.entries({ ...size, role: "grid", "aria-label": LABEL })) {
    put(svg, name, value2);
  }
  Object.assign(panel, moduleGrid(svg, part, shape, WORDS2));
  panel.titles = panel.cells.map(({ g }) => make("title", { svg: true }, g));
}
function paintMap(panel, legend) {
  const { part, choice, bars, root, sample } = panel, dark = isDark(root);
  const values = part.names.map((_, k) => contribution(panel, k, choice.measure)), most = largest(values);
  panel.cells.forEach((_, k) => paintCell(panel, k, values[k], most, tint(values[k] / most, dark)));
  const sums = bars.map(({ which, at }) => sum(membersOf(part, which, at).map((k) => values[k])));
  const longestOf = (which) => largest(sums.filter((_, n) => bars[n].which === which));
  const longest = { row: longestOf("row"), column: longestOf("column") };
  bars.forEach((bar, n) => {
    setLength(bar, Math.abs(sums[n]) / longest[bar.which]);
    put(bar.rect, "class", sums[n] > 0 ? "total gain" : "total loss");
  });
  legend.replaceChildren();
  const token = choice.token === null ? "the whole answer" : quoted(sample.tokens[sample.positions[choice.token]]);
  const isAllMeasured = part.names.every((_, k) => isMeasured(panel, k));
  const unknown2 = isAllMeasured ? "" : "; dashed: leaving it out is not measured here";
  drawRamp(legend, most, `nats of ${MEASURES[choice.measure]} contributed to ${token}; bars: sums${unknown2}`, dark);
}
function paintCell(panel, k, value2, most, color) {
  const { part, choice, sample, known, focus } = panel, cell = panel.cells[k];
  const left = choice.ranks[k], isOff = left === 0, rank = part.ranks[k], isKnown = isMeasured(panel, k);
  put(cell.rect, "fill", color.fill);
  put(cell.text, "fill", color.ink);
  put(cell.mark, "stroke", color.ink);
  put(cell.mark, "d", isOff ? cross(cell.w, cell.h) : "");
  write(cell.text, isOff ? "" : left ? `${left}/${rank}` : cellText(value2, most));
  const state = isOff ? "switched off" : `rank ${left ?? rank} of ${rank}`;
  const words = `${moduleName(part, k)}: contributed ${nats(value2)} nats; ${state}`;
  put(cell.g, "aria-label", words);
  put(cell.g, "aria-selected", left !== void 0);
  put(cell.g, "tabindex", k === focus ? 0 : -1);
  put(cell.g, "class", `cell${left ? " hand" : ""}${isKnown ? "" : " unknown"}`);
  const alone = sample.switched[`${k}:0`] ?? known[`${choice.sample} ${k}:0`];
  const { values } = alone ?? {}, price = values && unsignedNats(cost(panel, { values }, choice.measure));
  panel.titles[k].textContent = words + (price ? `; leaving it out alone costs ${price}` : "") + (isKnown ? "" : "; leaving it out is not measured here");
}
function cellText(value2, most) {
  const size = Math.abs(value2);
  return size >= 0.15 * most ? size.toFixed(size < 9.95 ? 1 : 0).replace(/^0/, "") : "";
}
var rankOf = ({ part, choice }, k) => choice.ranks[k] ?? part.ranks[k];
var clamp = ({ part }, k, rank) => Math.max(0, Math.min(part.ranks[k], rank));
function followPointer(panel, svg) {
  const { part } = panel;
  svg.addEventListener("pointerdown", (event) => {
    const members = labelMembers(part, event), cell = (
      /** @type {Element} */
      event.target.closest(".cell")
    );
    if (members) return panel.turn(members);
    if (!cell || event.button) return;
    event.preventDefault();
    const k = panel.focus = Number(cell.getAttribute("data-k"));
    panel.cells[k].g.focus({ preventScroll: true });
    panel.drag = { k, y: event.clientY, rank: rankOf(panel, k), isMoved: false };
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    const { drag: drag2 } = panel;
    if (!drag2 || !part.live) return;
    const by = Math.round((drag2.y - event.clientY) / PULL), rank = clamp(panel, drag2.k, drag2.rank + by);
    drag2.isMoved ||= by !== 0;
    if (drag2.isMoved && rank !== rankOf(panel, drag2.k)) panel.turn([drag2.k], rank);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    svg.addEventListener(end, () => {
      const { drag: drag2 } = panel;
      if (!drag2) return;
      panel.drag = null;
      if (drag2.isMoved) panel.regenerate();
      else if (end === "pointerup") panel.turn([drag2.k]);
    });
  }
}
function followKeys(panel, svg) {
  svg.addEventListener("keydown", (event) => {
    if (!act(panel, event)) return;
    event.preventDefault();
    event.stopPropagation();
  });
}
function act(panel, event) {
  const { part, focus } = panel, { key } = event, move = MOVES[key], step = STEPS[key];
  if (move) walk(panel, move);
  else if (step && part.live) panel.turn([focus], clamp(panel, focus, rankOf(panel, focus) + step));
  else if (key === " " && (event.shiftKey || event.ctrlKey)) {
    const which = event.shiftKey ? "row" : "column";
    panel.turn(membersOf(part, which, part[which][focus]));
  } else if (key === "Enter" || key === " ") panel.turn([focus]);
  else if (key === "Escape") panel.switchAllOn();
  else return false;
  return true;
}
function walk(panel, move) {
  const k = neighbor(panel.part, panel.focus, move);
  if (k < 0) return;
  panel.focus = k;
  panel.paint();
  panel.cells[k].g.focus();
}

// panels/attribution/attribution.js
var PAUSE = 400;
var MEANINGS = ["log p: ends at 0", "log p \u2212 log(1 \u2212 p): has no ceiling"];
var ALL = 'tlora.attribute(..., switch_off=["modules", "layers", "projections"]) measures all of them.';
function attributionPart(parent, part, { model, ask }) {
  const choice = part.choice ??= { sample: 0, token: null, measure: 0, ranks: {} };
  const known = part.known ??= {}, sample = part.samples[choice.sample];
  const root = make("div", { class: "attribution" }, parent), drawn = { root, cells: [], bars: [], titles: [] };
  const panel = {
    ...{ part, model, ask, choice, known, sample, focus: 0, drag: null, refused: "" },
    ...drawn,
    paint: () => paint(panel, frame),
    turn: (modules, rank = null) => turn(panel, modules, rank),
    regenerate: () => regenerate(panel),
    switchAllOn() {
      choice.ranks = {};
      change(panel);
    }
  };
  const frame = drawFrame(panel);
  if (model && part.live) frame.followForm = drawRequestForm(root, model, ask);
  followPointer(panel, frame.svg);
  followKeys(panel, frame.svg);
  if (model) followModel2(panel, frame, model);
  drawMap(panel, frame.svg);
  drawSample(panel, frame);
}
function drawFrame(panel) {
  const { root, choice } = panel, bar = make("div", { class: "bar" }, root);
  const select2 = make("select", { class: "sample" }, labeled(bar, "Answer")), box = group(bar, "Measure");
  select2.addEventListener("change", () => {
    Object.assign(choice, { sample: Number(select2.value), token: null });
    drawSample(panel, frame);
  });
  const measures = MEASURES.map(
    (name, measure) => press(box, name, MEANINGS[measure], () => {
      choice.measure = measure;
      panel.paint();
    })
  );
  const reset = press(bar, "Switch all on", "The adapter as trained (Escape)", () => panel.switchAllOn());
  const answer = answerElements(root), svg = make("svg", { class: "chart" }, make("div", { class: "scroll" }, root));
  const legend = make("div", { class: "legend" }, root);
  const finding = make("p", { class: "finding", role: "status" }, root);
  const written = make("div", { class: "written" }, root);
  const frame = { select: select2, measures, reset, answer, svg, legend, finding, written, followForm: () => {
  } };
  return frame;
}
var samplesOf = ({ part, model }) => [...part.samples, ...model?.get("explained")?.samples ?? []];
function drawSample(panel, { select: select2, answer }) {
  const samples = samplesOf(panel), { choice } = panel;
  choice.sample = Math.min(choice.sample, samples.length - 1);
  panel.sample = samples[choice.sample];
  const options = samples.map(({ prompt }, n) => [n, `${n + 1}: ${prompt.slice(-60)}`]);
  fillOptions(select2, options, choice.sample);
  drawAnswer2(answer, panel);
  change(panel);
}
function change(panel) {
  const { part, choice, ask } = panel, modules = changedModules(panel);
  clearTimeout(panel.timer);
  panel.refused = "";
  panel.paint();
  if (modules.length && !answerNow(panel, switchKey(panel)) && part.live) {
    ask?.("switch", { sample: choice.sample, ranks: modules.map((k) => [k, choice.ranks[k]]) }, "switch");
  } else regenerate(panel);
}
function regenerate(panel) {
  const { part, choice, ask, drag: drag2 } = panel, key = switchKey(panel), now = answerNow(panel, key);
  if (!part.live || !now || now.bar || now.answer !== void 0 || drag2) return;
  panel.timer = setTimeout(() => {
    if (key !== switchKey(panel)) return;
    const ranks = changedModules(panel).map((k) => [k, choice.ranks[k]]);
    ask?.("regenerate", { sample: choice.sample, ranks }, "regenerate");
  }, PAUSE);
}
function paint(panel, { measures, reset, answer, legend, finding, written }) {
  const isChanged = changedModules(panel).length > 0, now = isChanged ? answerNow(panel, switchKey(panel)) : null;
  measures.forEach((button2, measure) => put(button2, "aria-pressed", measure === panel.choice.measure));
  reset.disabled = !isChanged;
  paintAnswer(answer, panel, now);
  writeAnswers(written, panel, now);
  paintMap(panel, legend);
  finding.textContent = panel.refused || conclude(panel, now);
}
function turn(panel, modules, rank) {
  const { part, choice } = panel, before = choice.ranks, isOff = modules.every((k) => before[k] === 0);
  const ranks = { ...before };
  for (const k of modules) {
    const to = rank ?? (isOff ? part.ranks[k] : 0);
    if (to === part.ranks[k]) delete ranks[k];
    else ranks[k] = to;
  }
  const isKnown = () => !changedModules(panel).length || answerNow(panel, switchKey(panel));
  choice.ranks = ranks;
  if (part.live || isKnown()) return change(panel);
  choice.ranks = Object.fromEntries(modules.filter((k) => k in ranks).map((k) => [k, ranks[k]]));
  if (changedModules(panel).length && isKnown()) return change(panel);
  choice.ranks = before;
  panel.refused = `What leaving out ${nameOf(part, modules)} costs was not measured: ${ALL}`;
  panel.paint();
}
function followModel2(panel, frame, model) {
  const { root, choice, known } = panel;
  function followSwitches() {
    const { sample, key, ...answer } = model.get("switched") ?? {}, name = `${sample} ${key}`;
    if (key !== void 0) known[name] = { ...known[name], ...answer };
    panel.paint();
    if (key === switchKey(panel) && sample === choice.sample) regenerate(panel);
  }
  function followAnswers() {
    Object.assign(choice, { sample: samplesOf(panel).length - 1, token: null, ranks: {} });
    drawSample(panel, frame);
  }
  followKernel(root, model, {
    "change:switched": followSwitches,
    "change:explained": followAnswers,
    "change:explaining": frame.followForm
  });
}

// panels/effects.js
var OPENED = 6;
var RAMP = "nats that a token gained or lost; beyond are 2\xA0% of the tokens; faint: not measured";
function effectsPart(parent, part) {
  const choice = part.choice ??= { set: "", all: false };
  const root = make("div", { class: "strips" }, parent), bar = make("div", { class: "bar" }, root);
  const sets = ["", ...part.sets].map((name) => [name, name || "all sets"]);
  choose(bar, "Texts", sets, choice.set, (set) => {
    Object.assign(choice, { set, all: false });
    draw();
  });
  const list = make("div", {}, root);
  const sizes2 = part.samples.flatMap(({ rise }) => rise.map(Math.abs)).sort((a, b) => a - b);
  const most = Math.max(sizes2[Math.floor(0.98 * sizes2.length)], 1e-6);
  function draw() {
    const found = part.samples.filter(({ set }) => !choice.set || set === choice.set);
    const shown = choice.all ? found : found.slice(0, OPENED), hidden = found.length - shown.length;
    list.replaceChildren();
    const dark = isDark(root);
    drawRamp(list, most, RAMP, dark);
    for (const sample of shown) drawSample2(list, sample, most, dark);
    const foot = make("div", { class: "key" }, list, count(shown, found, part));
    if (!hidden) return;
    make("button", { type: "button" }, foot, `Show ${hidden} more`).addEventListener("click", () => {
      choice.all = true;
      draw();
    });
  }
  draw();
}
function drawSample2(list, { set, tokens, positions, base, rise }, most, dark) {
  const line = make("div", { class: "sample" }, list), measured = new Map(positions.map((position, k) => [position, k]));
  make("span", { class: "set" }, line, `${set} ${signedNumber(-mean(rise))}`).title = "change of the loss, nats per token";
  const drawn = tokens.map((text, position) => {
    const k = measured.get(position), ends2 = text.endsWith("\n");
    if (k === void 0) return { text, share: 0, look: ["faint"], ends: ends2 };
    const from = `from ${probability(base[k])} to ${probability(base[k] + rise[k])}`;
    return { text, share: rise[k] / most, title: `${quoted(text)}: ${signedNumber(rise[k])} nats, ${from}`, ends: ends2 };
  });
  drawStrip(line, drawn, dark);
}
function count(shown, found, { of, samples }) {
  const rest = of > samples.length ? ` Of the ${of} texts, the worst ${samples.length} are here.` : "";
  const words = "texts, the worst first; the number is the change of the loss, nats per token.";
  return `${shown.length} of ${found.length} ${words}${rest}`;
}

// panels/experts.js
var HIGHEST = 560;
var WIDEST = 760;
var PLACES = "experts down, layers across";
var LABEL2 = "Experts down, layers across. Arrow keys move from expert to expert";
function expertsPart(parent, part, { about, model }) {
  const choice = part.choice ??= { name: part.measures[0].name, at: null };
  const root = make("div", { class: "experts" }, parent), bar = make("div", { class: "bar" }, root);
  const said = make("div", { class: "finding", "aria-live": "polite" }, root), legend = make("div", {}, root);
  const map = make("div", { tabindex: 0, role: "group", "aria-label": LABEL2 }, root);
  const buttons = group(bar, "What the map of the experts shows");
  let cells = [];
  const measures = () => model ? [...part.measures, ...ranksOf(part, about, model.get("current"))] : part.measures;
  const shown = () => measures().find(({ name }) => name === choice.name) ?? part.measures[0];
  const switches = measures().map(({ name, about: words }) => {
    const show = () => {
      choice.name = name;
      draw();
    };
    return button(buttons, capitalized(name), words, show, { "data-measure": name });
  });
  function draw() {
    for (const one of switches) put(one, "aria-pressed", one.dataset.measure === choice.name);
    map.replaceChildren();
    legend.replaceChildren();
    cells = drawMap2(map, legend, part, shown());
    point(choice.at ?? top(shown()));
  }
  function point(at) {
    map.querySelector(".on")?.classList.remove("on");
    cells[at].classList.add("on");
    said.textContent = describe2(part, measures(), at);
  }
  function pick(at) {
    choice.at = at;
    point(at);
  }
  map.addEventListener("pointermove", ({ target }) => {
    const at = cells.indexOf(
      /** @type {Element} */
      target
    );
    if (at >= 0) pick(at);
  });
  map.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move) return;
    event.preventDefault();
    const at = beside(part, choice.at ?? top(shown()), move);
    if (at >= 0) pick(at);
  });
  follow(root, model, part, draw);
  draw();
  let width = map.clientWidth;
  new ResizeObserver(() => {
    if (map.clientWidth === width) return;
    width = map.clientWidth;
    if (width) draw();
  }).observe(map);
}
function follow(root, model, part, draw) {
  if (!model || !part.parameters.flat().length) return;
  function changed() {
    if (root.isConnected) draw();
    else model?.off?.("change:current", changed);
  }
  model.on("change:current", changed);
}
function top({ values }) {
  const sizes2 = values.map((value2) => Math.abs(value2 ?? 0));
  return sizes2.indexOf(Math.max(...sizes2));
}
function ranksOf({ parameters, column, expert }, { rows, row }, { ranks, experts }) {
  if (!parameters.flat().length) return [];
  const names = [...new Set(parameters.flat().map((k) => rows[row[k]].replace(/^.*\./, "")))].join(" and ");
  const about = `Ranks of ${names} together. PEFT holds ${experts ? "the largest" : "one rank"} for all experts of a parameter.`;
  const values = column.map((place2, n) => sum(parameters[place2].map((k) => experts?.[k][expert[n]] ?? ranks[k])));
  return [{ name: "rank", about, unit: `ranks of ${names} together`, kind: "count", values }];
}
function beside({ column, expert }, at, [right, down]) {
  return column.findIndex((place2, n) => place2 === column[at] + right && expert[n] === expert[at] + down);
}
function form({ kind }, value2) {
  if (value2 === null || value2 === void 0) return "\u2013";
  return kind === "count" ? whole(Math.round(value2)) : kind === "percent" ? percent(value2) : sign(value2) + number(Math.abs(100 * value2));
}
function describe2({ layers, column, expert }, measures, at) {
  const numbers2 = measures.map((measure) => {
    const { name, kind, values, low, high } = measure, hasInterval = (low?.[at] ?? null) !== null;
    const interval = hasInterval ? ` (${form(measure, low?.[at])} to ${form(measure, high?.[at])})` : "";
    return `${name} ${form(measure, values[at])}${kind === "points" ? " points" : ""}${interval}`;
  });
  return `Layer ${layers[column[at]]} expert ${expert[at]}: ${numbers2.join(", ")}.`;
}
function drawMap2(map, legend, { layers, column, expert }, measure) {
  const { kind, values, low, high } = measure, isSigned = kind === "points";
  const dark = isDark(map), ground = groundOf(dark);
  const most = Math.abs(values[top(measure)] ?? 0) || 1, count2 = Math.max(...expert) + 1;
  const cells = values.map((value2, n) => [expert[n], column[n], isSigned ? value2 : value2 || null, ""]);
  const svg = cellGrid(map, {
    title: `Experts by layer: ${measure.name}`,
    rows: expert.slice(0, count2).map((_, n) => String(n)),
    columns: layers,
    cells,
    fill: (value2) => {
      if (value2 === null) return unknown(dark);
      return blend(ground, !isSigned ? GREEN : value2 > 0 ? RED : BLUE, Math.sqrt(Math.abs(value2) / most));
    },
    width: Math.min(WIDEST, map.clientWidth || WIDEST),
    height: Math.max(3, Math.min(17, HIGHEST / count2))
  });
  const colors = isSigned ? [BLUE, ground, RED] : [ground, GREEN], drawn = [...svg.querySelectorAll("rect")];
  const ends2 = (isSigned ? [-most, 0, most] : [0, most / 4, most]).map((end) => form(measure, end));
  const gray = cells.some(([, , value2]) => value2 === null) ? `; gray: ${form(measure, 0)}` : "";
  const note = isSigned ? "; dots: the interval excludes zero" : gray;
  drawColors(make("div", { class: "legend" }, legend), colors, ends2, `${measure.unit}; ${PLACES}${note}`);
  drawn.forEach((cell, n) => ((low?.[n] ?? 0) > 0 || (high?.[n] ?? 0) < 0) && drawDot(svg, cell));
  return drawn;
}
function drawDot(svg, cell) {
  const [x, y, w, h] = ["x", "y", "width", "height"].map((name) => Number(cell.getAttribute(name)));
  make("circle", { class: "clear", cx: x + w / 2, cy: y + h / 2, r: Math.min(w, h, 10) / 5 }, svg);
}

// panels/readings.js
function unpack({ module, expert, routed, directions = 0, scales = [], values = "" }, hasNeed, count2 = 0) {
  const bytes = Int8Array.from(atob(values), (c) => c.charCodeAt(0)), width = bytes.length / scales.length;
  const read = (n) => Array.from(bytes.subarray(n * width, (n + 1) * width), (v) => v * scales[n]);
  function row(n) {
    if (!routed) return read(n);
    const all = Array(count2).fill(0);
    read(n).forEach((value2, i) => all[routed[i]] = value2);
    return all;
  }
  const need = hasNeed && values ? row(scales.length - 1) : null;
  return { module, expert, routed: routed ? new Set(routed) : null, directions, row, need };
}
function readByExpert(tokens, routed) {
  if (!routed) return tokens;
  const all = {};
  for (const i of routed) all[tokens.group[i]] = (all[tokens.group[i]] ?? 0) + 1;
  return { ...tokens, all };
}
function readTokens({ texts, text, part, sample }) {
  const parts = [...part].map(Number), isFirst = sample.map((s, i) => s !== sample[i - 1]);
  const spans = [];
  sample.forEach((s, i) => {
    if (isFirst[i]) spans[s] = [i, i];
    spans[s][1] = i + 1;
  });
  const before = (i) => parts[i] === 0 && !isFirst[i] ? text[i - 1] : "";
  const group2 = text.map((t, i) => `${parts[i]} ${t} ${before(i)}`);
  const all = {};
  for (const name of group2) all[name] = (all[name] ?? 0) + 1;
  return {
    part: parts,
    spans,
    group: group2,
    all,
    /** @type {(i: number) => string} */
    text: (i) => texts[text[i]],
    /** @type {(i: number, most: number) => string} */
    before: (i, most) => text.slice(Math.max(spans[sample[i]][0], i - most), i).map((t) => texts[t]).join("")
  };
}
function ends(values, sign2, tokens) {
  const far = values.map((value2) => sign2 * value2), peak = far.reduce((a, b) => Math.max(a, b));
  const limit = Math.max(peak / 2, largest(values) / 5);
  const found = {};
  far.forEach((value2, i) => {
    if (value2 < limit) return;
    const hit = found[tokens.group[i]] ??= { at: i, hits: 0, all: tokens.all[tokens.group[i]] };
    hit.hits++;
    if (value2 > far[hit.at]) hit.at = i;
  });
  return Object.values(found).sort((a, b) => far[b.at] - far[a.at]);
}

// panels/reads.js
var LISTED2 = 5;
var WINDOW = 40;
var STRONGEST = 8;
var DRAWN_SAMPLES = 4;
var EVENTS = ["change:selected", "change:reading", "change:current"];
var MOVES2 = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
var VALUES = [[false, "z: read"], [true, "z \xD7 need: read and needed"]];
var EXPERTS_UNKNOWN = "What these experts read was not looked at: tlora.direction_activations reads it, with subspaces of them.";
var SINK = "The first token of each sample dominates this module (an attention sink): direction_activations(..., first_token=False) leaves it out.";
var readsAnswers = { read: ({ module }, page) => ({ reading: page.readings?.[module] }) };
function readsPart(parent, part, { about, model: known, ask }) {
  if (!known) return;
  const model = known;
  const root = make("div", { class: "reads strips" }, parent);
  const sides = Object.fromEntries(Object.entries(part.sides).map(([name, side]) => [name, readTokens(side)]));
  const values = unpack({ module: -1 }, false);
  const panel = {
    ...{ root, part, about, sides, values, open: null, isNeed: false, whole: /* @__PURE__ */ new Set(), draw, follow: follow3 },
    ...{ reading: {}, chosen: {} }
  };
  const selected = () => model.get("selected").at(-1) ?? 0;
  function draw() {
    const focused = focusIn(root), key = focused && root.contains(focused) ? focused.getAttribute("data-key") : null;
    root.replaceChildren();
    const { ranks, experts } = model.get("current"), k = selected();
    drawModule(panel, k, experts?.[k][expertOf(panel, k) ?? -1] ?? ranks[k]);
    if (key) focusOn(root, `[data-key="${key}"]`, { preventScroll: true });
  }
  function follow3() {
    const { module, ...reading } = model.get("reading") ?? {}, k = selected(), expert = expertOf(panel, k);
    if (module !== k || reading.expert !== expert) return ask?.("read", { module: k, expert }, "read");
    if (panel.values.module !== k || panel.values.expert !== expert) {
      const count2 = sides[part.side[k] ?? ""]?.group.length, values2 = unpack({ module, ...reading }, part.need, count2);
      Object.assign(panel, { values: values2, reading, open: null });
    }
    draw();
  }
  followKernel(root, model, Object.fromEntries(EVENTS.map((event) => [event, follow3])));
  root.addEventListener("keydown", (event) => moveFocus(root, event));
  follow3();
}
var expertOf = ({ part, chosen }, k) => chosen[k] ?? part.experts[k]?.[0]?.[0];
var focusOn = (root, selector, options) => (
  /** @type {HTMLElement | null} */
  root.querySelector(selector)?.focus(options)
);
function moveFocus(root, event) {
  const move = MOVES2[event.key], { row, column } = (
    /** @type {HTMLElement} */
    event.target.dataset
  );
  if (!move || column === void 0) return;
  focusOn(root, `[data-row="${Number(row) + move[0]}"][data-column="${Number(column) + move[1]}"]`);
  event.preventDefault();
}
function valuesOf({ values, isNeed }, kind, direction) {
  const z = values.row(kind * values.directions + direction);
  const { need } = values;
  return isNeed && need ? z.map((v, i) => v * need[i]) : z;
}
var valueName = ({ isNeed }) => isNeed ? "z \xD7 need" : "z";
function drawModule(panel, k, rank) {
  const { root, part, about, sides, values } = panel, side = sides[part.side[k] ?? ""], place2 = placeOf(about, k);
  const bar = make("div", { class: "bar" }, root);
  make("h3", {}, bar, place2);
  if (!side) {
    make("p", {}, root, about.experts[k] > 1 ? EXPERTS_UNKNOWN : "This module reads positions, not tokens.");
    return;
  }
  const tokens = readByExpert(side, values.routed);
  if (part.experts[k].length) drawExperts(panel, bar, k);
  if (part.need) drawChoice(panel, bar);
  const key = make("span", { class: "key" }, bar);
  part.parts.forEach((name, n) => {
    const entry = make("span", {}, key);
    make("span", { class: `part-sign p${n}` }, entry);
    entry.append(name);
  });
  make("p", {}, root, describeModule(panel, k));
  const scroll = make("div", { class: "scroll" }, root), label = `Tokens at both ends of the directions of ${place2}`;
  drawDirections(panel, make("table", { "aria-label": label }, scroll), tokens, rank);
}
function drawExperts(panel, bar, k) {
  const options = panel.part.experts[k].map(([expert, count2]) => [expert, `${expert}: ${whole(count2)} ${count2 === 1 ? "token" : "tokens"}`]);
  choose(bar, "Expert", options, expertOf(panel, k) ?? null, (value2) => {
    panel.chosen[k] = Number(value2);
    panel.follow();
  });
}
function drawChoice(panel, bar) {
  const box = group(bar, "Values");
  for (const [isNeed, label] of VALUES) {
    const attributes = { "aria-pressed": panel.isNeed === isNeed, "data-key": `need ${isNeed}` };
    make("button", { type: "button", ...attributes }, box, label).addEventListener("click", () => {
      panel.isNeed = isNeed;
      panel.draw();
    });
  }
}
function describeModule({ part, reading }, k) {
  const share = (value2) => value2 === null ? "\u2013" : percent(value2);
  const byKind = (shares) => part.kinds.map((kind, n) => `${kind} ${share(shares[n])}`).join(", ");
  const samples = part.samples < part.of ? `${part.samples} of the ${part.of} samples that were read are in this page.` : `${part.of} samples.`;
  const constant = reading.constant ?? part.constant[k], agreement = reading.agreement ?? part.agreement[k];
  return `All directions together, on constant tokens: ${byKind(constant)} of z\xB2. The top tokens of two halves of the samples agree: ${byKind(agreement)}. ${samples}${part.sinks.includes(k) ? ` ${SINK}` : ""}`;
}
function drawDirections(panel, table, tokens, rank) {
  const { kinds, meanings } = panel.part, whole2 = { colspan: kinds.length + 1 };
  const head = make("tr", {}, make("thead", {}, table)), body = make("tbody", {}, table);
  make("th", { scope: "col" }, head, "direction");
  kinds.forEach((kind, n) => {
    make("th", { scope: "col", class: "words" }, head, meanings[n] ? `${kind}: ${meanings[n]}` : kind);
  });
  for (let d = 0; d < panel.values.directions; d++) {
    if (d === rank) {
      const words = `rank ${rank}: directions above are kept, those below are cut off`;
      make("td", whole2, make("tr", { class: "cut" }, body), words);
    }
    const row = make("tr", {}, body);
    make("th", { scope: "row" }, row, d + 1);
    kinds.forEach((_, n) => drawEnds(panel, make("td", { class: "words" }, row), n, d, tokens));
    if (panel.open?.d !== d) continue;
    const cell = make("td", { ...whole2, class: "words" }, make("tr", { class: "samples" }, body));
    drawSamples(panel, cell, panel.open.n, d, tokens);
  }
}
function drawEnds(panel, cell, n, d, tokens) {
  const values = valuesOf(panel, n, d), isOpen = panel.open?.d === d && panel.open.n === n;
  const at = { "data-key": `${d} ${n}`, "data-row": d, "data-column": n };
  const button2 = make("button", { type: "button", class: "ends", "aria-expanded": isOpen, ...at }, cell);
  const said = [1, -1].map((sign2) => drawEnd(panel, button2, values, sign2, tokens));
  const squares = sum(values.map((v) => v * v));
  const constant = sum(values.map((v, i) => tokens.part[i] === 0 ? v * v : 0));
  const words = `${percent(constant / squares)} on constant tokens`;
  make("span", { class: "times", "aria-hidden": "true" }, button2, words);
  button2.setAttribute("aria-label", `${panel.part.kinds[n]}, direction ${d + 1}: ${said.join("; ")}`);
  button2.addEventListener("click", () => {
    Object.assign(panel, { open: isOpen ? null : { d, n }, whole: /* @__PURE__ */ new Set() });
    panel.draw();
  });
}
function drawEnd({ root, part }, parent, values, sign2, tokens) {
  const found = ends(values, sign2, tokens), listed = found.slice(0, LISTED2), most = largest(values);
  const line = make("span", { class: "line", "aria-hidden": "true" }, parent), dark = isDark(root);
  make("b", {}, line, sign2 > 0 ? "+" : MINUS);
  for (const { at, hits, all } of listed) {
    const kind = tokens.part[at], times = `${hits} of ${all} in the ${part.parts[kind]} part`;
    const title = `${quoted(tokens.text(at))}: ${times}, up to ${signedNumber(values[at])}`;
    const chip = make("span", { class: `chip p${kind}`, title }, line);
    make("span", { class: "ctx" }, chip, visible(tokens.before(at, 2)));
    coloredToken(chip, tokens.text(at), values[at] / most, dark);
    make("span", { class: "times" }, chip, `\xD7${hits}`);
  }
  if (found.length > LISTED2) make("span", { class: "times" }, line, `+ ${found.length - LISTED2} more`);
  if (!found.length) make("span", { class: "times" }, line, "nothing beyond a fifth of the other end");
  const names = listed.map(({ at }) => quoted(tokens.text(at).trim() || tokens.text(at)));
  return `${sign2 > 0 ? "high" : "low"} at ${names.join(", ") || "nothing"}`;
}
function drawSamples(panel, cell, n, d, tokens) {
  const values = valuesOf(panel, n, d), most = largest(values), dark = isDark(panel.root);
  const what = `${valueName(panel)}, direction ${d + 1} of ${panel.part.kinds[n]}`;
  const gray = panel.values.routed ? "; gray: not routed to this expert" : "";
  drawRamp(cell, most, `${what}; narrow: constant tokens${gray}; click a number for the whole sample`, dark);
  const peaks = tokens.spans.map(([start, end]) => largest(values.slice(start, end)));
  const order = [...peaks.keys()].sort((a, b) => peaks[b] - peaks[a]), rest = shuffled(order.slice(STRONGEST));
  const isDrawn = rest.length > DRAWN_SAMPLES;
  const shown = isDrawn ? [...order.slice(0, STRONGEST), ...rest.slice(0, DRAWN_SAMPLES)] : order;
  shown.forEach((s, i) => {
    if (i === STRONGEST && isDrawn) {
      make("div", { class: "key" }, cell, `${DRAWN_SAMPLES} of the other ${rest.length} samples, drawn at random`);
    }
    const isWhole2 = panel.whole.has(s) !== (i === 0);
    const line = make("div", { class: "sample" }, cell);
    drawPeak(panel, line, s, peaks[s].toFixed(1), isWhole2);
    drawStrip(line, sampleTokens(panel, s, values, most, tokens, isWhole2), dark);
  });
}
var shuffled = (samples) => samples.sort((a, b) => (a * 7919 + 13) % 101 - (b * 7919 + 13) % 101);
function drawPeak(panel, line, s, peak, isWhole2) {
  const title = "largest value of the sample; click for the whole sample";
  const attributes = { "aria-expanded": isWhole2, "data-key": `sample ${s}`, title };
  const label = `sample ${s + 1}, up to ${peak}`;
  make("button", { type: "button", ...attributes, "aria-label": label }, line, peak).addEventListener("click", () => {
    panel.whole[panel.whole.has(s) ? "delete" : "add"](s);
    panel.draw();
  });
}
function sampleTokens(panel, s, values, most, tokens, isWhole2) {
  const [start, end] = tokens.spans[s], need = panel.isNeed ? null : panel.values.need;
  const strip = [];
  let peak = start;
  for (let i = start; i < end; i++) if (Math.abs(values[i]) > Math.abs(values[peak])) peak = i;
  for (let i = start; i < end; i++) {
    if (!isWhole2 && Math.abs(i - peak) > WINDOW) {
      if (Math.abs(i - peak) === WINDOW + 1) strip.push("\u2026");
      continue;
    }
    const text = tokens.text(i), value2 = `${valueName(panel)} ${signedNumber(values[i])}`;
    const title = `${quoted(text)} ${value2}${need ? `, need ${need[i].toFixed(2)}` : ""}, ` + panel.part.parts[tokens.part[i]];
    const narrow = !isWhole2 && i !== peak && tokens.part[i] === 0, look = i === peak ? ["peak"] : [];
    if (panel.values.routed && !panel.values.routed.has(i)) {
      strip.push({ text, share: 0, title: `${quoted(text)}: not routed to this expert`, narrow, look: ["unread"] });
      continue;
    }
    strip.push({ text, share: values[i] / most, title, narrow, look, ends: isWhole2 && text.endsWith("\n") });
  }
  return strip;
}

// panels/rescaling.js
var LINES = [
  ["scale", "the adapter scaled", { dots: true }],
  ["left out", "several parts left out", { dots: true, dash: true }],
  ["part", "one part left out", { dots: true, name: "lone" }]
];
function rescalingPart(parent, part) {
  const choice = part.choice ??= { at: part.start, limit: part.limit ?? 0.05 }, { points } = part;
  const scales = numbers(points, "scale");
  const root = make("div", { class: "rescaling" }, parent), bar = make("div", { class: "bar" }, root);
  function choosePoint(k) {
    choice.at = k ?? choice.at;
    draw();
  }
  const toBest = () => choosePoint(best(points, choice.limit));
  const box = labeled(bar, "Scale"), range = { type: "range", min: 0, max: scales.length - 1, step: 1 };
  const slider = make("input", range, box), output = make("output", {}, box);
  slider.addEventListener("input", () => choosePoint(scales[Number(slider.value)]));
  const parts = points.flatMap(({ kind, label }, k) => kind === "scale" ? [] : [[k, label.replace("without ", "")]]);
  const leaveOut = (value2) => choosePoint(value2 === "" ? scales.at(-1) ?? null : Number(value2));
  const out = parts.length ? choose(bar, "Left out", [["", "nothing"], ...parts], null, leaveOut) : null;
  const field = { type: "number", step: 0.01, min: 0, value: choice.limit };
  const limit = make("input", field, labeled(bar, "Most that a text may lose, nats per token"));
  limit.addEventListener("change", () => {
    if (limit.value !== "" && limit.validity.valid) choice.limit = Number(limit.value);
    toBest();
  });
  make("button", { type: "button" }, bar, "Best within the limit").addEventListener("click", toBest);
  const below = make("div", { class: "pair" }, root), curve = make("div", {}, below), table = make("div", {}, below);
  const finding = make("p", { class: "finding", role: "status" }, root);
  const line = copyable(make("div", { class: "copied" }, root));
  function draw() {
    const point = points[choice.at], isScale = point.kind === "scale";
    if (isScale) slider.value = String(scales.indexOf(choice.at));
    output.textContent = isScale ? String(point.scale) : "1";
    if (out) out.value = isScale ? "" : String(choice.at);
    curve.replaceChildren();
    table.replaceChildren();
    drawPoints(curve, points, point, choice.limit);
    drawPoint(table, point);
    finding.textContent = conclude2(points, choice);
    line.textContent = isScale && !point.scale ? "# scale 0 is the base model: there is nothing to write" : `rescaling.save_adapter("milder", rescaling.points[${choice.at}])  # ${point.label}`;
  }
  draw();
}
var numbers = (points, kind) => points.flatMap((point, k) => point.kind === kind ? [k] : []);
function best(points, limit) {
  const within = points.flatMap((point, k) => point.lost <= limit ? [k] : []);
  return within.reduce((a, k) => points[k].task < points[a].task ? k : a, within[0]) ?? null;
}
function drawPoints(parent, points, chosen, limit) {
  const lines = LINES.map(([kind, label, look]) => {
    const members = numbers(points, kind).map((k) => [points[k].lost, points[k].task]);
    return { label, points: members, ...look };
  });
  const mark = { label: "chosen", points: [[chosen.lost, chosen.task]], color: 6, name: "chosen" };
  chart(parent, {
    title: "Loss on the task by what other text loses",
    lines: [...lines.filter((line) => line.points.length), mark],
    cursor: limit,
    width: 520,
    height: 240,
    x: { label: "largest change of other text, nats per token" },
    y: { label: "task loss, nats per token", log: true }
  });
}
function drawPoint(parent, { label, without, rows }) {
  const caption = [capitalized(label), ...without.length ? [without.join(", ")] : []].join(": ");
  drawTable(parent, { caption, head: ["set", "loss", "change", "95 % interval over texts"], rows });
}
function conclude2(points, { at, limit }) {
  const point = points[at], top2 = best(points, limit);
  const other = top2 === null ? "no point is within the limit" : `within the limit, ${points[top2].label} is best, with a task loss of ${number(points[top2].task)}`;
  const judgment = top2 === at ? "the lowest task loss within the limit" : other;
  const losses = `task loss ${number(point.task)}, other text at most ${signedNumber(point.lost, 3)} nats per token`;
  return `${capitalized(point.label)}: ${losses}; ${judgment}.`;
}

// panels/kinds.js
var KINDS = {
  text: (parent, part) => make("p", {}, parent, part.text),
  table: drawTable,
  code: drawCode,
  chart: drawChart,
  alignment: alignmentPart,
  reads: readsPart,
  answer_table: answerTablePart,
  attribution: attributionPart,
  effects: effectsPart,
  rescaling: rescalingPart,
  experts: expertsPart
};
var ANSWERS = { ...readsAnswers };
function drawCode(parent, { caption, code }) {
  make("div", { class: "key" }, parent, caption);
  make("pre", { tabindex: 0, role: "region", "aria-label": caption }, parent, code);
}
function drawChart(parent, part) {
  const y = part.y.percent ? { min: 0, max: 1, ...part.y } : part.y;
  chart(parent, { ...part, title: part.caption, width: 560, height: 220, y });
}

// panels/panels.js
function drawParts(parent, parts, context) {
  for (const part of parts) {
    KINDS[part.kind](make("div", { class: `part ${part.folded ? "folded" : part.kind}` }, parent), part, context);
  }
}
var partsOf = ({ name, parts }, current) => parts.length ? parts : current.parts?.[name] ?? [];
var follows = ({ parts }) => !parts.length;
function renderPanels(about, el, model = null) {
  const root = make("div", { class: "tlora", "data-lm-suppress-shortcuts": "true" }, el);
  explainer(root);
  make("h1", {}, root, about.title);
  const ask = model && asking(model, make("div", { class: "message", role: "status" }, root));
  for (const panel of about.panels) {
    const section = make("section", { class: "panel", id: panel.name }, root);
    make("h2", {}, section, panel.title);
    if (panel.about) make("p", { class: "about" }, section, panel.about);
    drawParts(make("div", { class: "parts" }, section), panel.parts, { about, model, ask });
  }
}
function asking(model, message) {
  const requests = new Requests(model, () => false, () => false);
  model.on("msg:custom", () => requests.answered(false));
  model.on("change:current", () => write(message, model.get("current").message ?? ""));
  return (call, args, gesture) => requests.ask(call, args, gesture);
}
function panelFolds(parent, about, model, ask) {
  const context = { about, model, ask }, folds = about.panels.map((panel) => drawFold(parent, panel, model));
  const isOpen = ({ name, stage }) => name === model.get("panel") && stage === model.get("stage");
  function draw() {
    for (const { panel, fold: fold2, box } of folds) {
      fold2.hidden = panel.stage !== model.get("stage");
      fold2.open = isOpen(panel);
      box.replaceChildren();
      if (!isOpen(panel)) continue;
      if (panel.about) make("p", { class: "about" }, box, panel.about);
      drawParts(make("div", { class: "parts" }, box), partsOf(panel, model.get("current")), context);
    }
  }
  for (const trait of ["stage", "panel", "compared"]) model.on(`change:${trait}`, draw);
  draw();
  return () => {
    if (folds.some(({ panel }) => isOpen(panel) && follows(panel))) draw();
  };
}
function drawFold(parent, panel, model) {
  const fold2 = make("details", { class: "panel", "data-panel": panel.name }, parent);
  const heading = describe(make("summary", {}, fold2, panel.title), panel.about.split(/(?<=\.) /)[0]);
  heading.addEventListener("click", (event) => {
    event.preventDefault();
    model.set("panel", model.get("panel") === panel.name ? "" : panel.name);
    model.save_changes();
  });
  return { panel, fold: fold2, box: make("div", {}, fold2) };
}

// guide.js
var MAP = "Each cell is a linear layer of the model, or one parameter of all experts of a layer, and its number the rank of its adapter: how many directions of its input it can read. Red cells have more than a uniform allocation would give them, blue ones less.";
var START = [
  "Click the reddest cell: it has more rank than a uniform allocation gives it. The text beside the map says why.",
  "Drag it down. The others share what it gives up; the tab Change shows who gains, and Undo takes it back."
];
var RANK = "Move the rank: what all modules share grows or shrinks with it.";
var TRAIN = "Press Train both: two short trainings on the same batches say which allocation is better, with the answers of both.";
var KEYS = [
  ["arrows", "move"],
  ["Shift+arrows", "select more"],
  ["+ and \u2212, or Alt+\u2191 and \u2193", "change the rank"],
  ["Delete", "give the rank back to the score"],
  ["X", "leave the module out"],
  ["Ctrl+Z, Ctrl+Shift+Z", "undo, redo"],
  ["Ctrl+Space, Shift+Space", "select a layer, a projection"],
  ["Escape", "select one"]
];
function guide(box, page) {
  make("p", {}, box, MAP);
  const list = make("ol", {}, box);
  for (const step of [...START, page ? RANK : TRAIN]) make("li", {}, list, step);
  const row = make("p", {}, box, "On the map: ");
  KEYS.forEach(([key, does], i) => {
    make("kbd", {}, row, key);
    row.append(` ${does}${i < KEYS.length - 1 ? ", " : "."} `);
  });
  make("p", {}, box, "Point at a word, or go to it with Tab: its sentence of the glossary is shown.");
}

// race_arms.js
var WIDEST2 = 520;
function drawArms(parent, comparison, about, width) {
  const entries = Object.entries(comparison.arms), codes2 = entries.map(([name, { code }]) => [name, code]);
  const key = JSON.stringify([codes2, Boolean(comparison.said), isDark(parent), width]);
  if (parent.dataset.drawn === key) return;
  parent.dataset.drawn = key;
  parent.replaceChildren();
  if (!entries.length) return;
  const boxes = entries.map(([name, arm], i) => drawArm(name, i, arm)), between = make("div", { class: "between" });
  parent.append(boxes[0], between, boxes[1]);
  make("div", { class: "curves" }, between);
  drawDifference(between, comparison, about, widthOf(between, width));
}
var widthOf = (element, width) => Math.max(280, Math.min(WIDEST2, element.clientWidth || width));
function drawArm(name, i, { headline: headline2, code, parameters }) {
  const box = make("div", { class: `arm arm${i}`, "data-arm": name });
  make("h3", {}, box, name);
  make("div", { class: "outcome" }, box);
  make("div", { class: "ranks" }, box, headline2);
  const cost2 = make("div", { class: "cost" }, box, `${whole(parameters)} `);
  explained(make("span", {}, cost2, "trained parameters"));
  make("div", { class: "spent" }, box);
  write(copyable(make("div", { class: "copied" }, box)), code);
  return box;
}
function drawDifference(parent, { arms, difference, said }, about, width) {
  const [[, before], [second, after]] = Object.entries(arms);
  const box = make("div", { class: "difference" }, parent), changes2 = after.ranks.map((r, k) => r - before.ranks[k]);
  if (said) make("div", {}, box, difference);
  if (!changes2.some((change3) => change3)) return;
  const { rows, columns, row, column } = about, most = largest(changes2), ground = groundOf(isDark(parent));
  const fill2 = (change3) => blend(ground, (change3 ?? 0) > 0 ? RED : BLUE, (change3 ?? 0) / most);
  const cells = changes2.map((change3, k) => [row[k], column[k], change3, change3 ? signed(change3) : ""]);
  cellGrid(box, { title: difference, rows, columns, cells, fill: fill2, width });
  make("div", { class: "note" }, box, `Red: more ranks in ${second}, blue: fewer; the strongest color: ${most} ranks.`);
}
function drawProgress(parent, { arms = {}, running, bar, leader }, width) {
  for (const [name, arm] of Object.entries(arms)) {
    const box = [...parent.querySelectorAll(".arm")].find((box2) => box2.getAttribute("data-arm") === name);
    const outcome = box?.querySelector(".outcome"), spent = box?.querySelector(".spent");
    if (outcome && spent) sayOutcome(outcome, spent, arm, name, leader);
  }
  const curves = parent.querySelector(".curves");
  if (!curves) return;
  curves.replaceChildren();
  const { words, done = 0, total: total2 = null } = bar ?? {};
  if (running && words) drawBar(make("div", { class: "note" }, curves), { words, done, total: total2 });
  const isDrawn = Object.values(arms).some(({ losses = [], held = [] }) => losses.length || held.length);
  if (isDrawn) lossCurves(curves, arms, widthOf(curves, width));
}
function sayOutcome(outcome, spent, arm, name, leader) {
  outcome.replaceChildren();
  spent.replaceChildren();
  const { step = 0, planned = 0, loss, interval, seconds, rate } = arm;
  if (loss !== void 0) {
    make("span", { class: "loss" }, outcome, loss.toPrecision(3));
    explained(make("span", {}, outcome, "held-out loss"));
    const distance = interval ? `${interval} above ${leader}` : name === leader ? "the lower loss" : "";
    make("div", { class: "note" }, outcome, distance);
    const cost2 = [`${step} of ${planned} steps`, ...seconds ? [`${number(seconds)} s`] : [], `learning rate ${rate}`];
    spent.append([...cost2, ...arm.stopped ? ["stopped"] : []].join(", "));
  } else if (planned) {
    make("progress", { max: planned, value: step, "aria-label": `training of ${name}` }, spent);
    const last = arm.losses?.at(-1)?.[1], held = arm.held?.at(-1)?.[1], said = [`step ${step} of ${planned}`];
    if (last !== void 0) said.push(`training loss ${last.toPrecision(3)}`);
    if (held !== void 0) said.push(`held-out loss ${held.toPrecision(4)}`);
    spent.append([...said, ...arm.stopped ? ["stopped"] : []].join(", "));
  }
}

// race_list.js
var MOST = 4;
var SHOW = "Show this race above.";
function drawRaces(parent, races, shown, show) {
  const key = JSON.stringify([races.length, shown]);
  if (parent.dataset.drawn === key) return;
  parent.dataset.drawn = key;
  parent.replaceChildren();
  if (!races.length) return;
  make("h3", {}, parent, `Races so far: ${races.length}`);
  const numbers2 = races.map((_, number2) => number2).reverse();
  drawEntries(parent, numbers2.slice(0, MOST), races, shown, show);
  const rest = numbers2.slice(MOST);
  if (!rest.length) return;
  const more = make("details", {}, parent);
  make("summary", {}, more, `${rest.length} earlier`);
  drawEntries(more, rest, races, shown, show);
}
function drawEntries(parent, numbers2, races, shown, show) {
  const list = make("ol", { class: "races" }, parent);
  for (const number2 of numbers2) {
    const { said = "", arms } = races[number2], entry = make("li", {}, list);
    const head = make("div", { class: "verdict" }, entry);
    button(head, `Race ${number2 + 1}`, SHOW, () => show(number2), { "aria-pressed": number2 === shown });
    head.append(said);
    Object.entries(arms).forEach(([name, { parameters, loss, interval, code }], i) => {
      const line = make("div", { class: `line arm${i}` }, entry);
      make("span", { class: "of" }, line, name);
      make("span", { class: "loss" }, line, loss?.toPrecision(3));
      make("span", { class: "interval" }, line, interval ?? "");
      make("span", {}, line, `${whole(parameters)} parameters`);
      make("code", { tabindex: 0 }, line, code);
    });
  }
}

// race.js
var SAVE = "Save the adapter with the lower held-out loss to the folder workbench-winner.";
var PAST = "The map shows other ranks than those that were trained.";
var COMPARE = "Compare the kept allocation with that of the map.";
function racePanel(parent, { about, model, ask, width }) {
  const panel = drawPanel(parent, about.training);
  let race = { arms: {}, difference: "", obstacle: "", raced: null, is_live: false };
  let chosen = null;
  const training = () => model.get("training") ?? {}, races = () => model.get("races") ?? [];
  const isRunning = () => Boolean(training().running);
  function choose2(number2) {
    chosen = number2;
    draw();
  }
  panel.begin.addEventListener("click", () => {
    const { steps, rate } = panel;
    if (race.obstacle || isRunning() || !steps.validity.valid || !rate.validity.valid) return;
    ask("train", {
      ...steps.value && { steps: Number(steps.value) },
      ...rate.value && { learning_rate: Number(rate.value) }
    });
  });
  panel.winner.addEventListener("click", () => ask("save_winner"));
  panel.compare.addEventListener("click", () => choose2(null));
  function draw() {
    const number2 = chosen ?? race.raced, live = training(), isLive = number2 !== null && live.number === number2;
    const isOfMap = number2 === race.raced || isLive && race.is_live;
    const shown = number2 === null ? race : isLive ? live : races()[number2];
    sayWhetherPast(panel, isOfMap, isRunning());
    sayPlan(panel, race, about.training);
    sayWhetherReady(panel, race, isRunning());
    write(panel.verdict, shown.said ?? "");
    write(panel.lead, shown.said ? "" : shown.difference ?? "");
    write(panel.basis, shown.basis ?? "");
    panel.winner.hidden = !live.winner || !isLive;
    drawStops(panel.stops, live, ask);
    drawArms(panel.arms, { arms: {}, difference: "", ...shown }, about, width());
    drawProgress(panel.arms, shown, width());
    panel.answers.replaceChildren();
    if (shown.answers?.length) drawAnswers(panel.answers, shown.answers, Object.keys(shown.arms ?? {}));
    drawRaces(panel.races, races(), number2, choose2);
  }
  function tell(current) {
    const before = codes(race);
    race = current.race ?? race;
    if (!isRunning() && codes(race) !== before) chosen = null;
    draw();
  }
  function follow3() {
    if (isRunning()) chosen = training().number ?? null;
    draw();
  }
  panel.root.addEventListener("input", draw);
  model.on("change:training", follow3);
  model.on("change:races", draw);
  follow3();
  return tell;
}
var codes = ({ arms }) => JSON.stringify(Object.entries(arms).map(([name, { code }]) => [name, code]));
function drawPanel(parent, defaults) {
  const root = make("div", { class: "train", role: "group", "aria-label": "Comparison of two allocations" }, parent);
  const lead = make("div", { class: "lead" }, root), verdict = make("div", { class: "status", role: "status" }, root);
  const basis = make("div", { class: "basis" }, root);
  const other = make("div", { class: "other" }, root, PAST);
  const compare2 = describe(make("button", { type: "button" }, other, "Compare what it shows"), COMPARE);
  const head = make("div", { class: "bar" }, root);
  const begin = make("button", { type: "button", class: "primary" }, head, "Train both"), plan = make("span", { class: "plan" }, head);
  const field = (label, attributes) => make("input", { type: "number", ...attributes }, explained(labeled(head, label), label));
  const steps = field("steps", { min: 1, step: 1, placeholder: "auto", value: defaults.steps ?? "" });
  const given = typeof defaults.learning_rate === "number" ? defaults.learning_rate : "";
  const rate = field("learning rate", { min: 0, step: "any", value: given });
  const stops = make("span", { class: "group" }, head);
  const winner = describe(make("button", { type: "button" }, head, "Save winner"), SAVE);
  const arms = make("div", { class: "arms" }, root), answers = make("div", { class: "answers" }, root);
  const races = make("div", {}, root);
  return { root, other, compare: compare2, lead, verdict, basis, begin, plan, steps, rate, stops, winner, arms, answers, races };
}
function sayWhetherPast({ root, other, compare: compare2 }, isOfMap, isRunning) {
  root.classList.toggle("past", !isOfMap);
  other.hidden = isOfMap;
  compare2.hidden = isRunning;
}
function sayPlan({ steps, rate, plan }, { obstacle, arms }, { learning_rate, steps: planned, seconds }) {
  for (const input of [steps, rate]) {
    if (input.parentElement) input.parentElement.hidden = !learning_rate && !planned && !seconds;
  }
  const length = steps.value || !seconds ? "on the same batches" : `as many steps as fit into about ${Math.round(seconds / 60)} minutes`;
  write(plan, obstacle || `${Object.keys(arms).join(" and ")}, ${length}`);
}
function sayWhetherReady({ begin }, { obstacle, arms }, isRunning) {
  put(begin, "aria-disabled", Boolean(obstacle) || isRunning);
  const names = Object.keys(arms).join(" and ");
  describe(begin, obstacle || `Train ${names} on the same batches, and say which is better on held-out samples.`);
}
function drawStops(stops, { arms = {}, running }, ask) {
  const names = running ? Object.keys(arms) : [], drawn = () => [...stops.querySelectorAll("button")];
  if (drawn().map((stop) => stop.dataset.arm).join() !== names.join()) {
    stops.replaceChildren();
    for (const name of names) {
      const does = `End the training of ${name} after this step; the other goes on.`;
      button(stops, `Stop ${name}`, does, () => ask("stop", { name }), { "data-arm": name });
    }
  }
  for (const stop of drawn()) {
    const arm = arms[stop.dataset.arm ?? ""];
    stop.disabled = !arm.running || Boolean(arm.stopped);
  }
}
function drawAnswers(parent, entries, names) {
  const arms = names.filter((name) => name in entries[0].by);
  const counted = arms.filter((name) => entries[0].by[name].right !== null).map((name) => {
    const right = entries.filter((entry) => entry.by[name].right).length;
    return `${name} ${right} of ${entries.length} right`;
  });
  const mark = ({ text, right }) => `${right === null ? "" : right ? "\u2713 " : "\u2717 "}${text}`;
  drawTable(parent, {
    caption: `Answers to held-out requests${counted.length ? `: ${counted.join(", ")}` : ""}`,
    head: ["request", "right answer", ...arms],
    rows: entries.map((entry) => [entry.request, entry.right, ...arms.map((name) => mark(entry.by[name]))]),
    text: [0, 1, 2, 3]
  });
}

// allocate.js
function refuse() {
  throw new RangeError("the limits cannot be met");
}
var total = (units, costs2) => units.reduce((sum2, count2, i) => sum2 + count2 * costs2[i], 0);
function integers(values) {
  const bits = values.map((value2) => new DataView(new Float64Array([value2]).buffer).getBigUint64(0, true));
  const powers = bits.map((b) => Math.max(1, Number(b >> 52n)));
  const least = Math.min(...powers.filter((_, i) => values[i]), 2046);
  const fraction = (b) => b & 0xfffffffffffffn | (b >> 52n ? 1n << 52n : 0n);
  return { least, numerators: bits.map((b, i) => values[i] ? fraction(b) << BigInt(powers[i] - least) : 0n) };
}
function exactSum(values) {
  const { least, numerators } = integers(values);
  return Number(numerators.reduce((a, b) => a + b, 0n)) * 2 ** (least - 1075);
}
var roundEven = (x) => Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);
function apportion(weights, budget, low, high, costs2 = ones(weights)) {
  if (total(low, costs2) > budget) refuse();
  budget = Math.min(budget, total(high, costs2));
  const full = weights.map((weight, i) => weight ? high[i] : low[i]);
  if (total(full, costs2) <= budget) [low, weights] = [full, ones(weights)];
  const { numerators } = integers(weights), { rest, scale } = level(numerators, budget, low, high, costs2);
  const ideal = (i) => Number(numerators[i] * rest / scale);
  const units = weights.map((_, i) => Math.min(Math.max(ideal(i), low[i]), high[i]));
  const lack = (i) => BigInt(units[i]) * scale - numerators[i] * rest;
  const lacks = units.map((_, i) => lack(i));
  for (let left = budget - total(units, costs2); ; ) {
    let next = -1;
    units.forEach((count2, i) => {
      if (count2 < high[i] && costs2[i] <= left && (next < 0 || lacks[i] < lacks[next])) next = i;
    });
    if (next < 0) return units;
    units[next]++;
    left -= costs2[next];
    lacks[next] = lack(next);
  }
}
function level(numerators, budget, low, high, costs2) {
  const [floor, ceiling, cost2] = [low, high, costs2].map((column) => column.map(BigInt));
  const sum2 = (members, of) => members.reduce((all, i) => all + of(i), 0n);
  let free = [...numerators.keys()], rest = BigInt(budget);
  for (; ; ) {
    const scale = sum2(free, (i) => numerators[i] * cost2[i]);
    const beyond = (limit2, i) => numerators[i] * rest - limit2[i] * scale;
    const cut = free.filter((i) => beyond(ceiling, i) > 0n), raised = free.filter((i) => beyond(floor, i) < 0n);
    const surplus = sum2(cut, (i) => beyond(ceiling, i) * cost2[i]) + sum2(raised, (i) => beyond(floor, i) * cost2[i]);
    if (!surplus) return { rest, scale };
    const fixed = surplus > 0n ? cut : raised, limit = surplus > 0n ? ceiling : floor, isFixed = new Set(fixed);
    rest -= sum2(fixed, (i) => limit[i] * cost2[i]);
    free = free.filter((i) => !isFixed.has(i));
  }
}
function apportionByGain(gains2, budget, low, high, costs2) {
  const units = [...low], open = new Set(units.flatMap((count2, i) => count2 < high[i] ? [i] : []));
  for (let rest = budget - total(units, costs2); rest && open.size; ) {
    let next = -1, most = -1;
    for (const i of open) {
      const gain = gains2[i][units[i]] / costs2[i];
      if (gain > most || gain === most && units[i] < units[next]) [next, most] = [i, gain];
    }
    if (costs2[next] <= rest) {
      units[next]++;
      rest -= costs2[next];
      if (units[next] < high[next]) continue;
    }
    open.delete(next);
  }
  return units;
}
function allocate(rule, about) {
  const { rank, edits, scores, temperature, energies } = rule;
  const kept2 = scores.flatMap((_, k) => rule.excluded.includes(k) ? [] : [k]);
  const price = prices(about, rule.budget), budget = rank * total(price, ones(price));
  const [costs2, floors, ceilings] = [price, rule.floors, rule.ceilings].map((column) => kept2.map((k) => column[k]));
  const low = kept2.map((k, i) => edits[k] ?? floors[i]), high = kept2.map((k, i) => edits[k] ?? ceilings[i]);
  if (!kept2.some((k) => scores[k]) || low.some((least, i) => least > ceilings[i])) refuse();
  if (total(low, costs2) > budget || budget - total(high, costs2) >= Math.max(...costs2)) refuse();
  const powers = kept2.map((k) => scores[k] ** temperature), weights = rule.adapt_ranks ? powers : ones(kept2);
  const gains2 = energies && kept2.map((k) => energies[k]);
  const shares = gains2 ? apportionByGain(gains2, budget, low, high, costs2) : apportion(weights, budget, low, high, costs2);
  const ideals = gains2 ? idealsByGain(gains2, budget, costs2, kept2, about) : idealsByScore(weights, budget, costs2);
  const alpha = rule.alpha ?? rank, sum2 = exactSum(powers);
  const share = (power) => Math.max(alpha, roundEven(alpha * powers.length * power / sum2));
  const alphas = powers.map((power) => rule.adapt_scales ? share(power) : alpha);
  const result = leftOut(rank, scores.length), byRule = nameOfRule(rule);
  kept2.forEach((k, i) => {
    result.most[k] = high[i];
    if (!shares[i]) return;
    result.ranks[k] = shares[i];
    result.ideals[k] = ideals[i] === Infinity ? null : ideals[i];
    result.scalings[k] = alphas[i] / (rule.scaling === "allocated" ? shares[i] : rank);
    result.reasons[k] = k in edits ? "by hand" : limitOf(shares[i], low[i], high[i], ideals[i]) ?? byRule;
  });
  return { ...result, middles: { rank, scaling: alpha / rank } };
}
var prices = ({ outs, experts }, budget) => outs.map((out, k) => experts[k] * (budget === "ranks" ? 1 : out));
var ones = (values) => values.map(() => 1);
var idealsByScore = (weights, budget, costs2) => {
  const cost2 = exactSum(weights.map((weight, i) => weight * costs2[i]));
  return weights.map((weight) => budget * weight / cost2);
};
function idealsByGain(gains2, budget, costs2, kept2, about) {
  const known = gains2.map((gain) => gain.length);
  const asked = apportionByGain(gains2, budget, gains2.map(() => 0), known, costs2);
  const full = (k) => Math.min(about.outs[k], about.ins[k]);
  return asked.map((units, i) => units === known[i] && known[i] < full(kept2[i]) ? Infinity : units);
}
function limitOf(share, low, high, ideal) {
  if (share === high && high < ideal) return "ceiling";
  return share === low && low > ideal ? "floor" : null;
}
function nameOfRule({ energies, temperature, adapt_ranks }) {
  if (energies) return "captured";
  return temperature && adapt_ranks ? "score" : "uniform";
}
function leftOut(rank, count2) {
  const all = (value2) => Array(count2).fill(value2);
  return { rank, ranks: all(0), scalings: all(null), ideals: all(null), most: all(0), reasons: all("left out") };
}

// workbench/values.js
var change2 = ({ current }, k) => current.ranks[k] - current.kept[k];
var isOfRun = ({ about, current }) => Boolean(about.run?.every((rank, k) => rank === (current.stored ?? current).ranks[k]));
var stageOf = ({ about, model }) => (
  /** @type {Stage} */
  about.stages.find(({ name }) => name === model.get("stage"))
);
function isOffered(bench, { stage, trained, run }) {
  return stage === bench.model.get("stage") && (!trained || Boolean(bench.model.get("training")?.arms?.[trained])) && (!run || isOfRun(bench));
}
function currentTab(bench) {
  const { about, model } = bench, tabs = about.tabs.filter((tab) => isOffered(bench, tab));
  return tabs.find(({ name }) => name === model.get("tab")) ?? tabs[0] ?? about.tabs[0];
}
function value(bench, tab, k) {
  const { model, current } = bench;
  if (tab.run && !isOfRun(bench)) return null;
  if (tab.of === "change") return change2(bench, k);
  if (tab.trained) return model.get("training")?.arms?.[tab.trained]?.updates?.[k] ?? null;
  if (tab.of) return tab.of === "ranks" && !current.ranks[k] ? null : current[tab.of][k];
  return (tab.curves ? tab.curves[k][current.ranks[k] - 1] : tab.values?.[k]) ?? null;
}
function valueText(bench, tab, k) {
  const v = value(bench, tab, k);
  if (v === null) return "";
  if (tab.kind === "change") return v ? signed(v) : "";
  if (!["percent", "signed"].includes(tab.kind)) return number(v);
  return 100 * v >= 9.95 ? (100 * v).toFixed(0) : (100 * v).toFixed(1).replace(/^(-?)0/, "$1").replace("-", MINUS);
}

// workbench/sentences.js
var REASONS = {
  score: "by its score",
  captured: "by the gradient that its directions capture",
  uniform: "the same for all",
  ceiling: "the most allowed",
  floor: "the least allowed"
};
var SHOWN_ELSEWHERE = ["sensitivity", "rank", "change", "scaling"];
var reasonOf = ({ current }, k) => REASONS[current.reasons[k]] ?? current.reasons[k];
var kept = (bench, k) => change2(bench, k) ? ` (kept: ${bench.current.kept[k]})` : "";
function brief(bench, k) {
  const rank = bench.current.ranks[k];
  if (!rank) return `Left out: no adapter${kept(bench, k)}`;
  return `Rank ${rank}${kept(bench, k)}, ${reasonOf(bench, k)}`;
}
function why(bench, k) {
  const { current } = bench, rank = current.ranks[k], reason = current.reasons[k];
  const score = scoreText(bench, k);
  const instead = rank === current.rank ? `${rank}, the nominal rank` : `${rank} instead of ${current.rank}`;
  if (!rank) return `Left out: no adapter${score && `, ${score}`}.`;
  const ideal = current.ideals[k], asks = ideal === null ? "" : `, which asks for ${number(ideal)}`;
  const lead = current.is_captured ? REASONS.captured : score, range = rangeText(bench, k);
  const byRule = `${lead}: ${instead}${range}; at most ${current.most[k]}`;
  const sentences = {
    score: byRule,
    captured: byRule,
    uniform: `The same for every adapted module, whatever its score${score && ` (${score})`}`,
    ceiling: `${lead}${asks}: ${rank} is the most allowed${range}`,
    floor: `${lead}${asks}: ${rank} is the least allowed${range}`,
    "by hand": `Set by hand to ${instead}${score && `; ${score}`}`
  };
  const sentence2 = sentences[reason] ?? `${reason}: ${instead}`;
  return `${capitalized(sentence2)}.`;
}
var tabOf = ({ about }, name) => about.tabs.find((tab) => tab.name === name);
function scoreText(bench, k) {
  const { values: scores = [] } = tabOf(bench, "sensitivity") ?? {}, score = scores[k] ?? null;
  const middle = sum(scores.map((score2) => score2 ?? 0)) / scores.length;
  return score === null || !middle ? "" : `sensitivity ${number(score / middle)} \xD7 the mean`;
}
function rangeText({ model }, k) {
  const counts = model.get("resampled")?.[k] ?? [];
  if (!counts.length) return "";
  return `; ${[.../* @__PURE__ */ new Set([counts[0][0], counts[counts.length - 1][0]])].join(" to ")} on other samples`;
}
function insteadOf(bench, k) {
  const { current } = bench;
  if (change2(bench, k)) return `kept: ${current.kept[k]}`;
  return current.ranks[k] === current.rank ? "the nominal rank" : `instead of ${current.rank}`;
}
function sharesOf(bench, k) {
  const { about, current } = bench, { values, low, high } = tabOf(bench, "sensitivity") ?? {};
  const ends2 = [low?.[k] ?? null, high?.[k] ?? null].filter((end) => end !== null).map(percent);
  const price = prices(about, current.controls.budget), budget = current.rank * sum(price);
  const spent = price.map((cost2, i) => cost2 * current.ranks[i] / budget);
  const shares = [{ label: "of the budget", ...compared(spent, k) }];
  if (values?.[k] !== void 0 && values[k] !== null) {
    const share = compared(values, k), interval = ends2.length ? `95\xA0% interval ${ends2.join(" to ")}; ` : "";
    shares.unshift({ label: "of all scores", ...share, note: interval + share.note });
  }
  for (const tab of about.tabs) {
    const part = tab.curves ? value(bench, tab, k) : null;
    if (part !== null) shares.push({ label: tab.unit, text: percent(part), part });
  }
  return shares;
}
function compared(shares, k) {
  const share = shares[k] ?? 0, all = shares.map((share2) => share2 ?? 0), most = largest(all);
  const mean2 = sum(all) / all.length;
  const note = `full: the most, ${percent(most)}; tick: the mean, ${percent(mean2)}`;
  return { text: percent(share), part: share / most, note, mean: mean2 / most };
}
function factsOf(bench, k) {
  const { about, current } = bench, lines = [], count2 = about.experts[k];
  if (count2 > 1) {
    const ranks = current.experts?.[k] ?? [], least = Math.min(...ranks), most = Math.max(...ranks);
    const said = least < most ? `The mean of ${count2} experts, which have ranks ${least} to ${most}; PEFT holds ${most} for all` : `One rank for all ${count2} experts of the parameter`;
    lines.push(`${said}; shares and curves are means over them`);
  }
  const scaling = current.scalings[k];
  if (current.ranks[k] && scaling !== null) {
    const isByScore = current.controls.scaling === "nominal" && scaling !== 1;
    lines.push(`Scaling ${number(scaling)}${isByScore ? ", by the score, whatever the rank" : ""}`);
  }
  for (const tab of about.tabs) {
    const v = value(bench, tab, k);
    if (SHOWN_ELSEWHERE.includes(tab.name) || tab.curves || v === null) continue;
    lines.push(`${["percent", "signed"].includes(tab.kind) ? percent(v) : number(v)} ${tab.unit}`);
  }
  return lines;
}
function headline({ about, current }) {
  const adapted = current.ranks.filter((rank) => rank), low = Math.min(...adapted), high = Math.max(...adapted);
  const top2 = current.ranks.flatMap((rank, k) => rank === high ? [k] : []), unit = current.controls.budget;
  const price = prices(about, unit);
  const spent = sum(price.map((cost2, k) => cost2 * current.ranks[k])), budget = current.rank * sum(price);
  const which = adapted.length < about.names.length ? "that is adapted " : "";
  const most = top2.length > 1 ? `${top2.length} modules` : placeOf(about, top2[0]);
  const ranks = low === high ? `Every module ${which}gets rank ${high}` : `Ranks from ${low} to ${high} instead of ${current.rank} everywhere; most to ${most}`;
  const [trained] = sizes(about, current.ranks, false), [byLora] = sizes(about, ranksOfLora(current), true);
  return `${ranks}. ${whole(spent)} of ${whole(budget)} ${unit === "ranks" ? unit : "trainable parameters"}; with A frozen, ${percent(trained / byLora)} of the parameters that LoRA of rank ${current.rank} trains.`;
}
function rangeOf({ about, current }) {
  const adapted = current.ranks.filter((rank) => rank), low = Math.min(...adapted), high = Math.max(...adapted);
  if (low < high) return { number: `${low} to ${high}`, note: `instead of ${current.rank} everywhere` };
  const all = about.names.length, count2 = adapted.length;
  return { number: String(high), note: count2 < all ? `in ${count2} of ${all} modules` : "everywhere" };
}
function changes(bench) {
  const { about, current } = bench;
  const by = (k) => change2(bench, k);
  const moved = about.names.flatMap((_, k) => by(k) ? [k] : []).sort((a, b) => Math.abs(by(b)) - Math.abs(by(a)));
  if (!moved.length) return "";
  const adapted = current.ranks.filter((rank, k) => rank || current.kept[k]).length;
  const ranks = moved.map((k) => by(k) * about.experts[k]), outs = prices(about, "parameters");
  const more = sum(ranks.map((count2) => Math.max(0, count2))), fewer = -sum(ranks.map((count2) => Math.min(0, count2)));
  const grown = sum(moved.map((k) => by(k) * outs[k]));
  const reason = grown && more === fewer ? " (a rank costs more in modules with more outputs)" : "";
  const most = moved.slice(0, 3).map((k) => `${signedWhole(by(k))} ${placeOf(about, k)}`).join(", ");
  return `Since it was kept: ${moved.length} of ${adapted} modules changed, ${whole(more)} ranks more and ${whole(fewer)} fewer, ${signedWhole(grown)} trainable parameters${reason}; most: ${most}. Only training tells whether that is better: tlora race.`;
}
function costs({ about, current }) {
  const held = current.stored ?? current;
  const kept2 = sizes(about, held.kept, false), now = sizes(about, held.ranks, false);
  const lora = sizes(about, ranksOfLora(current), true);
  const names = ["trainable parameters", "adapter, float32", "AdamW states, float32"];
  if (about.peak) names.push("peak memory of training");
  return names.map((name, i) => {
    const text = i ? sizeText : whole;
    return [name, text(kept2[i]), text(now[i]), percent(now[i] / kept2[i]), text(lora[i])];
  });
}
var ranksOfLora = ({ ranks, rank }) => ranks.map(() => rank);
function sizes({ outs, ins, experts, peak }, ranks, trainsA) {
  const b = sum(ranks.map((rank, k) => rank * experts[k] * outs[k]));
  const a = sum(ranks.map((rank, k) => rank * experts[k] * ins[k]));
  const trained = trainsA ? a + b : b, adapter = 4 * (a + b);
  return [trained, adapter, 8 * trained, (peak?.[Number(trainsA)] ?? 0) + adapter + 12 * trained];
}
function warning({ current }) {
  const adapted = current.ranks.filter((rank) => rank).length;
  const full = current.ranks.filter((rank, k) => rank && rank === current.most[k]).length;
  if (2 * full < adapted) return "";
  const decides = current.is_captured ? "gradient decides" : "scores decide";
  return `${full} of ${adapted} modules have the highest rank allowed, so the ${decides} little: lower the rank, or raise max_rank, and with it that of tlora.task_subspaces.`;
}

// workbench/bar.js
function drawControls(bench, bar) {
  const { about, page, requests } = bench;
  const rank = drawControl(bench, bar, "rank", "Nominal rank", "input", {
    type: "range",
    min: 1,
    max: about.most,
    step: 1
  });
  const steps = group(bar, "History");
  const undo = button(steps, "Undo", "Take the last change back (Ctrl+Z)", () => requests.ask("undo"));
  const redo = button(steps, "Redo", "Repeat it (Ctrl+Shift+Z)", () => requests.ask("redo"));
  if (!page) button(steps, "Keep", "Count changes from here on", () => requests.ask("keep"));
  const followRule = drawRule(bench, fold(bar, "Rule and budget"));
  return () => {
    follow2(rank, bench.current.controls.rank);
    undo.disabled = !bench.current.undo;
    redo.disabled = !bench.current.redo;
    followRule();
  };
}
function drawRule(bench, box) {
  const { about, page, requests } = bench, bar = make("div", { class: "bar" }, box);
  const controls = {};
  const add = (name, label, tag, attributes, options) => {
    controls[name] = drawControl(bench, bar, name, label, tag, attributes, options);
  };
  add("temperature", "Temperature", "input", { type: "range", min: 0, max: 1, step: 1 / about.steps });
  if (!page) {
    add("budget", "Budget", "select", {}, ["ranks", "parameters"]);
    add("scaling", "Scaling", "select", {}, ["nominal", "allocated"]);
    add("min_rank", "min_rank", "input", { type: "number", min: 0, max: about.most });
    add("max_rank", "max_rank", "input", { type: "number", min: 1, max: about.most });
    const presets = group(bar, "Presets");
    for (const [name, meaning] of Object.entries(about.presets)) {
      button(presets, name, String(meaning), () => requests.ask("preset", { name }));
    }
  }
  const table = make("table", {}, make("div", { class: "scroll" }, box));
  const line = copyable(make("div", { class: "copied" }, box));
  return () => {
    const { current } = bench;
    for (const [name, control] of Object.entries(controls)) follow2(control, current.controls[name]);
    const head = ["", "kept", "new", "new, of kept", `LoRA, rank ${current.rank}`];
    table.replaceChildren();
    fillTable(table, { head, rows: costs(bench), term: (name) => name.replace(/^LoRA.*/, "lora") });
    write(line, current.code);
  };
}
function follow2({ input, output, isHeld }, value2) {
  if (isHeld) return;
  input.disabled = value2 === null;
  input.value = String(value2 ?? "");
  if (output) output.textContent = String(value2 ?? "");
}
function drawControl({ requests, tell }, bar, name, label, tag, attributes, options = []) {
  const box = explained(labeled(bar, label)), input = make(tag, attributes, box);
  const isRange = attributes.type === "range", isNumber2 = attributes.type === "number";
  for (const option of options) make("option", {}, input, option);
  const control = { input, output: isRange ? make("output", {}, box) : null, isHeld: false };
  let gesture = requests.gesture();
  input.addEventListener(isNumber2 || tag === "select" ? "change" : "input", () => {
    if (isNumber2 && (input.value === "" || !input.validity.valid)) return tell();
    control.isHeld = isRange;
    if (control.output) control.output.textContent = input.value;
    const value2 = tag === "select" ? input.value : Number(input.value);
    requests.ask("set", { [name]: value2 }, `control ${gesture}`);
  });
  input.addEventListener("change", () => {
    gesture = requests.gesture();
    control.isHeld = false;
    if (requests.isIdle) tell();
  });
  input.addEventListener("blur", () => {
    control.isHeld = false;
  });
  return control;
}
function drawTabs(bench) {
  const { about, page, model, tablist } = bench;
  function show(name) {
    model.set("tab", name);
    model.save_changes();
    bench.paint();
  }
  for (const tab of about.tabs) {
    if (page && tab.trained) continue;
    const element = make("button", { type: "button", role: "tab", "data-tab": tab.name }, tablist, tab.title);
    explained(element, tab.of === "ranks" ? "rank" : tab.name === "overlap" ? "overlap" : tab.title);
    element.addEventListener("click", () => show(tab.name));
  }
  onArrows(tablist, (target) => show(target.dataset.tab ?? ""));
}
function markTab(bench) {
  const { name } = currentTab(bench);
  for (const tab of bench.tablist.querySelectorAll("button")) {
    put(tab, "aria-selected", tab.dataset.tab === name);
    put(tab, "tabindex", tab.dataset.tab === name ? 0 : -1);
  }
}
function offerTabs(bench) {
  for (const button2 of bench.tablist.querySelectorAll("button")) {
    const tab = bench.about.tabs.find(({ name }) => name === button2.dataset.tab);
    button2.hidden = !tab || !isOffered(bench, tab);
  }
}

// module_charts.js
var COLORS = { energy: 0, variance: 1 };
var RANGES = "What they hold on average (dashed: least and most of an expert), and how many hold";
function moduleCharts(about) {
  const root = make("div", { class: "module" }), first = make("div", {}, root);
  const menu = make("details", {}, root), others = make("div", {}, menu);
  menu.prepend(make("summary", {}, null, "More"));
  let chosen = 0;
  let shown;
  function drawOthers() {
    others.replaceChildren();
    if (!menu.open) return;
    for (const line of shown.lines) make("div", {}, others, line);
    if (about.spectra.length) drawDirections2(others, about.spectra[chosen], about, shown);
    drawShares(others, about, shown);
    const { counts = [] } = shown;
    if (counts.length > 1) drawResamples(others, { ...shown, counts });
  }
  function draw(module) {
    shown = module;
    first.replaceChildren();
    if (about.spectra.length > 1) {
      const spectra = about.spectra.map((spectrum, i) => [i, spectrum.label]);
      choose(first, "Spectrum", spectra, chosen, (i) => {
        chosen = Number(i);
        draw(module);
        first.querySelector("select")?.focus();
      });
    }
    if (about.spectra.length) drawSums(first, about.spectra[chosen], about, module);
    drawOthers();
  }
  menu.addEventListener("toggle", drawOthers);
  return { root, draw };
}
function linesOf(spectrum, about, { k, rank }) {
  const mine = spectrum.index[k], measures = Object.keys(spectrum.curves);
  const alike = about.names.flatMap((_, n) => about.row[n] === about.row[k] ? [spectrum.index[n]] : []);
  const others = [...new Set(alike)].filter((i) => i !== mine);
  const points = (measure, i, values) => {
    const curve = spectrum.curves[measure];
    return curve.at[i].map((direction, n) => [direction, curve[values][i][n]]);
  };
  const lines = (values) => [
    ...others.map((i) => ({ gray: true, points: points(measures[0], i, values) })),
    ...measures.map((measure) => ({
      label: averaged(about, k, measure),
      term: measure,
      color: COLORS[measure],
      points: points(measure, mine, values)
    }))
  ];
  const range = (measure) => {
    const { at, ends: ends2 } = spectrum.curves[measure];
    return ends2[mine].map((end) => ({
      color: COLORS[measure],
      thin: true,
      dash: true,
      points: at[mine].map((direction, n) => [direction, end[n]])
    }));
  };
  const far = Math.max(2, ...spectrum.curves[measures[0]].at.map((directions) => directions.at(-1) ?? 1));
  const x = { label: "direction", log: true, min: 1, max: far };
  return { mine, measures, lines, range, x, cursor: rank || null };
}
function drawSums(root, spectrum, about, module) {
  const { measures, lines, range, x, cursor } = linesOf(spectrum, about, module);
  make("div", { class: "key" }, root, capitalized(spectrum.meaning));
  chart(root, {
    title: `Cumulative shares of the directions of ${module.place}`,
    lines: [...lines("sums"), ...measures.flatMap(range)],
    cursor,
    height: 158,
    x: { ...x, label: "first directions taken" },
    y: { label: "cumulative share", percent: true, min: 0, max: 1 }
  });
}
function drawDirections2(root, spectrum, about, module) {
  const { mine, measures, lines, x, cursor } = linesOf(spectrum, about, module), { k, place: place2, rank } = module;
  const shares = measures.flatMap((measure) => spectrum.curves[measure].each.flat().filter((share) => share > 0));
  chart(root, {
    title: `Share of each direction of ${place2}`,
    lines: lines("each"),
    cursor,
    height: 124,
    legend: false,
    x,
    y: { label: "each direction", log: true, min: Math.max(1e-8, Math.min(...shares)) }
  });
  drawTable(root, {
    caption: about.experts[k] > 1 ? RANGES : "What they hold, and how many hold",
    head: ["", `first\xA0${rank}`, "90\xA0%", "95\xA0%", "99\xA0%"],
    rows: measures.map((measure) => [measure, ...heldAndNeeded(spectrum.curves[measure], mine, rank)])
  });
}
function heldAndNeeded(curve, i, rank) {
  const last = curve.at[i].findLastIndex((direction) => direction <= rank);
  const held = (sums) => percent(last < 0 ? 0 : sums[last]);
  const needed = curve.needed[i].map((n) => n ?? `over ${curve.at[i].at(-1)}`), [low, high] = curve.ends[i];
  return [rank ? held(curve.sums[i]) + (low ? ` (${held(low)} to ${held(high)})` : "") : "", ...needed];
}
var averaged = ({ experts }, k, words) => experts[k] > 1 ? `${words}, mean of ${experts[k]} experts` : words;
function drawShares(root, about, { k, place: place2, rank }) {
  const lines = Object.entries(about.by_rank).map(([name, label], i) => {
    const shares = about.tabs.find((tab) => tab.name === name)?.curves?.[k] ?? [];
    const points = shares.map((share, n) => [n + 1, share ?? NaN]);
    return { label, term: name === "overlap" ? "overlap" : label, points, color: i + 2 };
  });
  if (!lines.length) return;
  chart(root, {
    title: `Shares by rank, ${place2}`,
    lines,
    cursor: rank || null,
    height: 116,
    x: { label: "rank", min: 0, max: Math.max(...lines.map((line) => line.points.length)) + 1 },
    y: { label: "share", percent: true, min: 0, max: 1 }
  });
}
function drawResamples(root, { place: place2, rank, counts }) {
  const all = counts.reduce((sum2, [, count2]) => sum2 + count2, 0), ranks = counts.map(([r]) => r);
  const words = `Rank from resampled scores: ${ranks[0]} to ${ranks.at(-1)}`;
  explained(make("div", { class: "key" }, root, words), "resamples");
  chart(root, {
    title: `Ranks from resampled scores, ${place2}`,
    lines: [],
    bars: counts.map(([r, count2]) => [r, count2 / all]),
    cursor: rank || null,
    height: 100,
    x: { label: "rank", min: 0, max: 2 ** Math.max(3, Math.ceil(Math.log2(1.02 * Math.max(rank, ...ranks)))) },
    y: { label: "resamples", percent: true, min: 0, max: 1 }
  });
}

// workbench/card.js
var COMPARED = "Bars: those of scores and of the budget end at the largest share of a module, the others at 100\xA0%.";
var READ = "Words its first direction reads";
var DOUBT = "Random directions read words, too: ";
var COMPARE2 = "compare them";
function drawCard(bench, side) {
  const { about, model } = bench, place2 = make("h2", {}, side), name = make("div", { class: "name" }, side);
  const said = make("div", { class: "said", "aria-live": "polite" }, side);
  const row = make("div", { class: "ranked" }, said), rank = make("b", {}, row), instead = make("span", {}, row);
  drawStepper(bench, row);
  const reason = make("p", {}, said), shares = make("div", { class: "shares" }, side);
  const words = make("div", { class: "strips" }, side);
  const charts = moduleCharts(about);
  side.appendChild(charts.root);
  return () => {
    const selected = model.get("selected"), k = selected.at(-1), rest = selected.length - 1;
    if (k === void 0) return;
    write(place2, placeOf(about, k) + (rest ? `, and ${rest} more selected` : ""));
    write(name, about.names[k]);
    write(rank, String(bench.current.ranks[k]));
    write(instead, insteadOf(bench, k));
    write(reason, why(bench, k));
    drawShares2(shares, sharesOf(bench, k));
    drawWords(bench, words, wordsOf(bench, k));
    const lines = [...factsOf(bench, k), COMPARED], counts = model.get("resampled")?.[k];
    charts.draw({ k, place: placeOf(about, k), rank: bench.current.ranks[k], counts, lines });
  };
}
function drawStepper(bench, row) {
  const { model, requests } = bench, stepper = group(row, "Rank of the selected modules");
  function step(sign2, by, words) {
    button(stepper, sign2, words, () => {
      const modules = model.get("selected"), rank = bench.current.ranks[modules.at(-1) ?? 0] + by;
      if (rank > 0) requests.ask("set_rank", { modules, rank });
    }, { "aria-label": words });
  }
  step(MINUS, -1, "One rank less");
  step("+", 1, "One rank more");
}
function drawShares2(parent, shares) {
  parent.replaceChildren();
  for (const { label, text, part, note = "", mean: mean2 } of shares) {
    const row = make("div", { class: "share" }, parent);
    make("span", {}, row, label);
    make("b", {}, row, text);
    const track = make("div", { class: "track", "aria-hidden": "true" }, row);
    make("div", { style: `width: ${Math.round(100 * Math.min(1, part))}%` }, track);
    if (mean2 !== void 0) make("i", { style: `left: ${Math.round(100 * mean2)}%` }, track);
    if (note) make("small", {}, row, note);
  }
}
function wordsOf({ about }, k) {
  const reads = about.panels.flatMap(({ parts }) => parts).find(({ kind }) => kind === "reads");
  return (
    /** @type {string[][] | undefined} */
    reads?.words?.[k] ?? []
  );
}
function drawWords({ model }, parent, words) {
  parent.replaceChildren();
  if (!words.length) return;
  make("div", { class: "key" }, parent, READ);
  const strip = make("div", { class: "strip" }, parent);
  for (const word of words) plainToken(strip, word);
  const compare2 = make("button", { type: "button", class: "link" }, make("small", {}, parent, DOUBT), COMPARE2);
  compare2.addEventListener("click", () => {
    model.set("panel", "reads");
    model.set("stage", "directions");
    model.save_changes();
  });
}

// workbench/picture.js
var LOOK = ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-family", "font-size"];
function picture({ svg, root }) {
  const copy = (
    /** @type {SVGSVGElement} */
    svg.cloneNode(true)
  );
  const from = [svg, ...svg.querySelectorAll("*")];
  const to = [copy, .../** @type {NodeListOf<SVGElement>} */
  copy.querySelectorAll("*")];
  from.forEach((element, i) => {
    const look = getComputedStyle(element);
    for (const name of LOOK) to[i].style.setProperty(name, look.getPropertyValue(name));
  });
  copy.prepend(make("rect", { width: "100%", height: "100%", fill: `rgb(${groundOf(isDark(root))})` }));
  return new XMLSerializer().serializeToString(copy);
}
function downloadSvg(bench) {
  download("allocation.svg", new Blob([picture(bench)], { type: "image/svg+xml" }));
}
function downloadPng(bench) {
  const image = new Image(), scale = 2, { clientWidth, clientHeight } = bench.svg;
  image.onload = () => {
    const canvas = make("canvas", { width: scale * clientWidth, height: scale * clientHeight });
    canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => blob && download("allocation.png", blob));
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(picture(bench));
}

// workbench/details.js
var OTHER_RUN = "The run was trained with other ranks than these: what it used of them is in the panels Training and Rank use, not on the map.";
var TEXTS_ASKED = "Include the panels with the text of samples in the page?";
var SAVED = "Write the results and the allocation to the folder workbench-session; covariances are not in it";
function sayAllocation(bench, message, foot) {
  const moved = make("div", { class: "moved" }, foot), other = make("div", {}, foot);
  return () => {
    const { about, current, page } = bench;
    message.textContent = current.message || warning(bench);
    message.classList.toggle("note", Boolean(current.note));
    moved.textContent = page ? changes(bench) : "";
    other.textContent = about.run && !isOfRun(bench) ? OTHER_RUN : "";
  };
}
function drawDownloads(bench, box) {
  const { about, page, requests } = bench, row = make("div", { class: "bar" }, box);
  button(row, "SVG", "Download the map as a vector picture", () => downloadSvg(bench));
  button(row, "PNG", "Download the map as a picture", () => downloadPng(bench));
  if (page) return;
  button(row, "Page", "Download a page that shows the map without a kernel", () => {
    requests.ask("page", { texts: about.texts && confirm(TEXTS_ASKED) });
  });
  button(row, `Save session, ${about.session}`, SAVED, () => requests.ask("save"));
}

// workbench/gestures.js
var PULL2 = 4;
function select(bench, modules, last = modules.at(-1)) {
  if (last === void 0) return;
  bench.focus = last;
  bench.model.set("selected", [...modules.filter((k) => k !== last), last]);
  bench.model.save_changes();
  bench.paint();
}
var selectedOf = (bench) => bench.model.get("selected");
function moduleAt({ el, svg }, event) {
  const root = (
    /** @type {Document | ShadowRoot} */
    el.getRootNode()
  );
  const cell = root.elementFromPoint(event.clientX, event.clientY)?.closest(".cell");
  return cell && svg.contains(cell) ? Number(cell.getAttribute("data-k")) : null;
}
function followPointer2(bench) {
  const { svg, tip, requests } = bench;
  const hide = () => {
    tip.style.display = "none";
  };
  svg.addEventListener("pointerdown", (event) => press2(bench, event));
  svg.addEventListener("pointermove", (event) => {
    if (bench.drag) return drag(bench, bench.drag, event);
    const k = moduleAt(bench, event);
    if (k === null) hide();
    else inform(bench, k, event.clientX, event.clientY);
  });
  svg.addEventListener("pointerleave", hide);
  function release() {
    const { drag: drag2 } = bench;
    if (drag2 && drag2.last === drag2.rank && selectedOf(bench).length > 1) select(bench, [drag2.k]);
    bench.drag = null;
    requests.rest();
  }
  for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, release);
  svg.addEventListener("dblclick", (event) => {
    const k = moduleAt(bench, event);
    if (k !== null) requests.ask("release", { modules: [k] });
  });
}
function press2(bench, event) {
  const { about, svg, cells, current, requests } = bench, members = labelMembers(about, event);
  if (members) return select(bench, members);
  const k = moduleAt(bench, event);
  if (k === null || event.button) return;
  event.preventDefault();
  cells[k].g.focus({ preventScroll: true });
  const before = selectedOf(bench);
  if (event.shiftKey) return select(bench, membersOf(about, "row", about.row[k]), k);
  if (event.ctrlKey || event.metaKey) {
    return select(bench, before.includes(k) ? before.filter((module) => module !== k) : [...before, k]);
  }
  select(bench, before.includes(k) ? before : [k], k);
  const rank = current.ranks[k];
  bench.drag = { k, y: event.clientY, rank, last: rank, gesture: `drag ${requests.gesture()}` };
  svg.setPointerCapture(event.pointerId);
  bench.tip.style.display = "none";
}
function drag(bench, drag2, event) {
  const { about, requests } = bench, by = Math.round((drag2.y - event.clientY) / PULL2);
  const rank = by ? Math.max(1, Math.min(about.most, drag2.rank + by)) : drag2.rank;
  if (rank === drag2.last) return;
  drag2.last = rank;
  requests.ask("set_rank", { modules: selectedOf(bench), rank }, drag2.gesture);
}
function inform(bench, k, x, y) {
  const { about, root, tip } = bench, box = root.getBoundingClientRect();
  tip.replaceChildren();
  make("b", {}, tip, placeOf(about, k));
  make("div", {}, tip, brief(bench, k));
  tip.style.display = "block";
  tip.style.left = `${Math.max(0, Math.min(x - box.left + 14, box.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${y - box.top + 16}px`;
}
var isNumber = (target) => (
  /** @type {HTMLInputElement} */
  target.type === "number"
);
function followKeys2(bench) {
  const { root, svg, requests } = bench;
  svg.addEventListener("keydown", (event) => {
    if (act2(bench, event)) event.preventDefault();
  });
  root.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && "zy".includes(key) && !isNumber(event.target)) {
      requests.ask(key === "y" || event.shiftKey ? "redo" : "undo");
      event.preventDefault();
    }
    event.stopPropagation();
  });
}
function act2(bench, event) {
  const { about, current, focus, requests } = bench, modules = selectedOf(bench), { key } = event;
  const move = MOVES[key], step = STEPS[key] ?? (event.altKey && move ? -move[1] : 0);
  if (step) requests.ask("set_rank", { modules, rank: Math.max(1, current.ranks[focus] + step) });
  else if (move && !event.altKey) walk2(bench, move, event.shiftKey);
  else if (key === " " && (event.shiftKey || event.ctrlKey)) {
    const which = event.shiftKey ? "row" : "column";
    select(bench, membersOf(about, which, about[which][focus]), focus);
  } else if (key === "Escape") select(bench, [focus]);
  else if (["Delete", "Backspace"].includes(key)) requests.ask("release", { modules });
  else if (key === "x") requests.ask("leave_out", { modules });
  else return false;
  return true;
}
function walk2(bench, move, extends_) {
  const k = neighbor(bench.about, bench.focus, move);
  if (k < 0) return;
  select(bench, extends_ ? [.../* @__PURE__ */ new Set([...selectedOf(bench), k])] : [k], k);
  bench.cells[k].g.focus();
}

// workbench/map.js
var NARROWEST = 14;
var WIDEST3 = 34;
var DIVERGING = ["ratio", "change", "signed"];
var LABEL3 = "Modules: projections down, layers across. Arrow keys move, plus and minus change the rank, Delete gives it back to the score, X leaves a module out";
var WORDS3 = {
  layer: (layer) => [layer, `layer ${layer}`],
  column: (name) => `Select ${name}`,
  row: (name) => `Select ${name} of all layers`
};
var MARKS = {
  // a line above or below, a cross where there is no adapter, a small one beside a number
  ceiling: (w) => `M3 3.5H${w - 3}`,
  floor: (w, h) => `M3 ${h - 3.5}H${w - 3}`,
  "left out": (w, h, isBeside) => isBeside ? `M${w - 6} 2l4 4m0-4l-4 4` : cross(w, h)
};
var SIGNS3 = [
  ["dashed", "by hand", "by hand"],
  ["over", "the most allowed", "ceiling"],
  ["under", "the least allowed", "floor"],
  ["cross", "left out", "left out"]
];
function layOut(bench, width) {
  const { about, svg } = bench, wide = Math.max(320, width), shape = shapeOf(about, wide);
  const attributes = {
    width: wide,
    height: shape.bands * bandHeight(about, shape, 20),
    role: "grid",
    "aria-multiselectable": "true",
    "aria-label": LABEL3
  };
  for (const [name, setting] of Object.entries(attributes)) put(svg, name, setting);
  Object.assign(bench, moduleGrid(svg, about, shape, WORDS3));
}
function shapeOf({ rows, columns }, wide) {
  const longest = Math.max(...rows.map((row) => row.length)), right = 46;
  const left = Math.min(LETTER2 * Math.min(longest, 24) + 12, 0.3 * wide), room = wide - left - right;
  const bands = Math.ceil(columns.length * NARROWEST / room);
  const w = Math.min(WIDEST3, room / Math.ceil(columns.length / bands));
  const stack = (row) => row.includes(".") ? row.split(".")[0] : "";
  const gaps = [0];
  for (let j = 1; j < rows.length; j++) gaps.push(gaps[j - 1] + (stack(rows[j]) === stack(rows[j - 1]) ? 0 : 8));
  const font = w < 17 ? 8.5 : w < 22 ? 9.5 : 11;
  return { left, right, top: 34, w, letters: left / LETTER2, font, tall: 26, above: 3, inset: 1, bands, gaps };
}
function paintMap2(bench) {
  const { about, cells, bars, root, model } = bench, tab = currentTab(bench);
  const values = about.names.map((_, k) => value(bench, tab, k)), palette = paletteOf(bench, tab, values, isDark(root));
  const selected = new Set(model.get("selected"));
  cells.forEach((_, k) => paintCell2(bench, tab, k, palette.fill(values[k]), selected.has(k)));
  const means = { row: meansOf(about, "row", values), column: meansOf(about, "column", values) };
  for (const bar of bars) setLength(bar, means[bar.which][bar.at] / (Math.max(...means[bar.which]) || 1));
  drawLegend(bench, tab, palette);
}
function meansOf(about, which, values) {
  const length = { row: about.rows, column: about.columns }[which].length;
  const sizes2 = (at) => membersOf(about, which, at).map((k) => Math.abs(values[k] ?? 0));
  return Array.from({ length }, (_, at) => mean(sizes2(at)));
}
function paintCell2(bench, tab, k, fill2, isSelected) {
  const cell = bench.cells[k], reason = bench.current.reasons[k], ink = inkOn(fill2);
  const text = cell.w < 12 ? "" : valueText(bench, tab, k);
  put(cell.rect, "fill", `rgb(${fill2})`);
  write(cell.text, text);
  put(cell.text, "fill", ink);
  put(cell.mark, "d", MARKS[reason]?.(cell.w, cell.h, text !== "") ?? "");
  put(cell.mark, "stroke", ink);
  put(cell.g, "class", `cell${reason === "by hand" ? " hand" : ""}${isSelected ? " on" : ""}`);
  put(cell.g, "tabindex", k === bench.focus ? 0 : -1);
  put(cell.g, "aria-selected", isSelected);
  const words = `${placeOf(bench.about, k)}, rank ${bench.current.ranks[k]}, ${reasonOf(bench, k)}`;
  put(cell.g, "aria-label", `${words}${tab.of === "ranks" ? "" : `, ${text}`}`);
}
function paletteOf({ current }, tab, values, dark) {
  const ground = groundOf(dark), isDiverging = DIVERGING.includes(tab.kind), middle = current.middles[tab.name] ?? 1;
  function scaled(v) {
    if (tab.kind === "ratio") return Math.log2(v / middle);
    return tab.kind === "percent" ? Math.sqrt(v) : v;
  }
  const [below, above] = spansOf(
    tab.kind,
    values.flatMap((v) => v === null ? [] : [scaled(v)]).filter(Number.isFinite)
  );
  function fill2(v) {
    if (v === null) return unknown(dark);
    const share = scaled(v) / (scaled(v) > 0 ? above : below);
    return blend(ground, isDiverging ? share > 0 ? RED : BLUE : GREEN, share);
  }
  const ramp = isDiverging ? [BLUE, ground, RED] : [ground, GREEN];
  return { fill: fill2, ramp, ends: endsOf(tab.kind, middle, below, above) };
}
function spansOf(kind, values) {
  if (kind === "ratio") return [Math.max(1, -Math.min(...values)), Math.max(1, ...values)];
  const most = Math.max(...values.map(Math.abs), kind === "change" ? 1 : 1e-9);
  return [most, most];
}
function endsOf(kind, middle, below, above) {
  return {
    ratio: [number(middle / 2 ** below), number(middle), number(middle * 2 ** above)],
    change: [`${MINUS}${above}`, "0", `+${above}`],
    percent: ["0", percent((above / 2) ** 2), percent(above ** 2)],
    number: ["0", "", number(above)],
    signed: [`${MINUS}${percent(above)}`, "0", `+${percent(above)}`]
  }[kind];
}
function drawLegend({ legend, current }, tab, { ramp, ends: ends2 }) {
  legend.replaceChildren();
  const bars = ["change", "signed"].includes(tab.kind) ? "mean size" : "means";
  drawColors(legend, ramp, ends2, `${tab.unit}; bars: ${bars}`);
  for (const [sign2, meaning, reason] of SIGNS3) {
    if (!current.reasons.includes(reason)) continue;
    const entry = make("span", { class: "entry" }, legend);
    make("span", { class: `sign ${sign2}` }, entry, sign2 === "cross" ? "\xD7" : "");
    entry.append(meaning);
    explained(entry, meaning);
  }
}

// workbench/stages.js
var RUNS = "Nothing to show here yet. This line of Python fills the view:";
var ALLOCATION = "allocation";
function drawStages(bench, { rail, finding, missing, body, ofMap, ofAllocation }) {
  const { about } = bench;
  const buttons = about.stages.map((stage, i) => drawButton(bench, rail, stage, i + 1));
  make("p", {}, missing, RUNS);
  const line = copyable(make("div", { class: "copied" }, missing));
  return () => {
    const shown = stageOf(bench), isEmpty = isNotRun(bench, shown), hasMap = shown.map && !isEmpty;
    about.stages.forEach((stage, i) => {
      put(buttons[i].button, "aria-current", stage === shown);
      followAllocation(bench, stage, buttons[i]);
    });
    write(finding, shown.name === ALLOCATION ? headline(bench) : shown.sentence);
    write(line, shown.code);
    missing.hidden = !isEmpty;
    body.classList.toggle("alone", !hasMap);
    for (const part of ofMap) part.hidden = !hasMap;
    for (const part of ofAllocation) part.hidden = shown.name !== ALLOCATION;
    bench.tablist.hidden = !hasMap || !about.tabs.some((tab) => isOffered(bench, tab));
  };
}
function drawButton({ about, model }, rail, { name, title, map }, place2) {
  const button2 = make("button", { type: "button", "data-stage": name }, rail);
  make("span", {}, button2, `${place2} ${title}`);
  const number2 = make("b", {}, button2), note = make("small", {}, button2);
  button2.addEventListener("click", () => {
    const first = map ? null : about.panels.find(({ stage }) => stage === name);
    model.set("panel", first?.name ?? "");
    model.set("stage", name);
    model.save_changes();
  });
  return { button: button2, number: number2, note };
}
function followAllocation(bench, stage, { number: number2, note }) {
  const known = stage.name === ALLOCATION ? rangeOf(bench) : stage;
  write(number2, known.number || "\u2013");
  write(note, known.note || (isNotRun(bench, stage) ? "not run" : ""));
}
var isNotRun = ({ about }, { name, code }) => Boolean(code) && ![...about.panels, ...about.tabs].some(({ stage }) => stage === name);

// workbench/workbench.js
var LEAD = "A LoRA adapter in six stages. A cell of the map is a linear layer with the rank that it gets. Drag one up or down: the others share the rest.";
function renderWorkbench({ model, el }) {
  const { bench, rail, finding, bar, message, missing, map, side, foot, train, body } = drawFrame2(model, el);
  const { about, page, requests } = bench;
  const ask = (call, args, gesture) => requests.ask(call, args, gesture);
  const follow3 = [];
  bench.tell = () => follow3.forEach((draw) => draw(bench.current));
  bench.paint = () => {
    if (bench.cells.length) paintMap2(bench);
    markTab(bench);
    offerTabs(bench);
    bench.tell();
  };
  drawTabs(bench);
  follow3.push(
    drawStages(bench, { rail, finding, missing, body, ofMap: [bar, map, side, foot], ofAllocation: [train] }),
    drawControls(bench, bar),
    sayAllocation(bench, message, foot),
    drawCard(bench, side)
  );
  if (!page) follow3.push(racePanel(train, { about, model, ask, width: () => map.clientWidth || 400 }));
  model.on("msg:custom", (content) => receive(requests, content));
  follow3.push(panelFolds(make("div", { class: "panels" }, body), about, model, ask));
  followPointer2(bench);
  followKeys2(bench);
  followModel3(bench);
  const stop = followPage(bench, map);
  bench.paint();
  requests.rest();
  return () => {
    stop();
    requests.stop();
  };
}
function drawFrame2(model, el) {
  const about = model.get("about"), page = Boolean(about.page);
  const root = make("div", { class: "tlora", "data-lm-suppress-shortcuts": "true" }, el);
  const head = make("div", { class: "head" }, root), what = make("div", { class: "what" }, head);
  make("h1", {}, what, about.title);
  make("div", {}, what, LEAD);
  const rail = make("nav", { class: "rail", "aria-label": "Stages" }, root);
  const finding = make("div", { class: "finding" }, root), bar = make("div", { class: "bar" }, root);
  const message = make("div", { class: "message", role: "status" }, root);
  const missing = make("div", { class: "missing" }, root);
  const tablist = make("div", { class: "tabs", role: "tablist", "aria-label": "What the map shows" }, root);
  const body = make("div", { class: "body" }, root);
  const map = make("div", { class: "map", role: "tabpanel", "aria-label": "Map of the modules" }, body);
  const svg = make("svg", {}, map), legend = make("div", { class: "legend" }, map);
  const side = make("div", { class: "side" }, body), foot = make("div", { class: "foot" }, body);
  const train = make("div", { class: "race" }, body);
  const tip = make("div", { class: "tip", "aria-hidden": "true" }, root);
  explainer(root);
  const resamples = () => !page && Boolean(about.resamples) && !bench.current.is_captured;
  const requests = new Requests(model, resamples, () => bench.drag !== null);
  const current = model.get("current"), focus = model.get("selected").at(-1) ?? 0;
  const drawn = { root, tablist, svg, legend, tip, cells: [], bars: [] };
  const bench = { model, el, about, page, current, focus, ...drawn, drag: null, requests, paint() {
  }, tell() {
  } };
  drawDownloads(bench, fold(head, "Save and download"));
  guide(fold(head, "Help"), page);
  return { bench, rail, finding, bar, message, missing, map, side, foot, train, body };
}
function receive(requests, content) {
  if ("answer" in content) requests.answered(Boolean(content.more));
  if (content.file) download(content.file, new Blob([content.text ?? ""], { type: "text/html" }));
}
function followModel3(bench) {
  const { model, requests } = bench;
  model.on("change:current", () => {
    const { ranks } = bench.current;
    bench.current = model.get("current");
    bench.paint();
    if (ranks.some((rank, k) => rank !== bench.current.ranks[k])) requests.changed();
  });
  for (const trait of ["stage", "tab"]) model.on(`change:${trait}`, () => bench.paint());
  model.on("change:selected", () => {
    bench.focus = model.get("selected").at(-1) ?? bench.focus;
    bench.paint();
  });
  model.on("change:resampled", () => bench.tell());
  model.on("change:training", () => currentTab(bench).trained ? bench.paint() : offerTabs(bench));
}
function followPage(bench, map) {
  let width = 0;
  const resized = new ResizeObserver(() => {
    if (!map.clientWidth || map.clientWidth === width) return;
    width = map.clientWidth;
    layOut(bench, width);
    bench.paint();
  });
  const themed = new MutationObserver(() => bench.paint());
  resized.observe(map);
  themed.observe(document.body, { attributes: true });
  return () => {
    resized.disconnect();
    themed.disconnect();
  };
}

// offline.js
var WRITTEN = "What stands here shows the allocation that the page was written with: it does not follow changes.";
var REFUSED = "The budget, the limits and the ranks set by hand do not allow this.";
var BY_EXPERT = "Experts have ranks of their own here, and this page cannot change them: open the workbench.";
function allocationCode(rule, about) {
  const quote = (k) => `'${about.names[Number(k)]}'`;
  const edits = Object.entries(rule.edits);
  const temperature = Number.isInteger(rule.temperature) ? rule.temperature.toFixed(1) : rule.temperature;
  const options = { ...rule.code, rank: rule.rank, temperature };
  if (rule.temperature === 1) delete options.temperature;
  if (rule.changed) options.exclude_modules = `[${rule.excluded.map(quote).join(", ")}]`;
  if (!rule.excluded.length) delete options.exclude_modules;
  const given = Object.entries(options).map(([name, value2]) => `${name}=${value2}`);
  const call = `tlora.allocate(${["calibration.sensitivity", ...given].join(", ")})`;
  if (!edits.length) return call;
  return `${call}.edit({${edits.map(([k, rank]) => `${quote(k)}: ${rank}`).join(", ")}})`;
}
function decide(rule, modules, { rank = null, out = false } = {}) {
  const edits = Object.fromEntries(Object.entries(rule.edits).filter(([k]) => !modules.includes(Number(k))));
  if (rank) {
    for (const k of modules) edits[k] = rank;
  }
  const kept2 = rule.excluded.filter((k) => !modules.includes(k));
  const excluded = kept2.concat(out ? modules : []).sort((a, b) => a - b);
  const changed = rule.changed || out || excluded.length < rule.excluded.length;
  return { ...rule, edits, excluded, changed };
}
function isRefused(rule, about) {
  try {
    allocate(rule, about);
    return false;
  } catch (error) {
    if (error instanceof RangeError) return true;
    throw error;
  }
}
function nearestRank(rule, about, modules, present, rank) {
  const step = Math.sign(present - rank);
  for (let nearest = rank; ; nearest += step) {
    if (!isRefused(decide(rule, modules, { rank: nearest }), about)) return nearest;
    if (nearest === present) refuse();
  }
}
var OfflineWorkbench = class {
  /** @type {Rule[]} */
  past = [];
  /** @type {Rule[]} */
  future = [];
  /** @type {Gesture} */
  gesture = null;
  /**
   * @param {Data} data
   * @param {About} about
   * @param {(current: Current) => void} tell
   */
  constructor(data, about, tell) {
    this.data = data;
    this.about = about;
    this.rule = data.rule;
    this.current = data.current;
    this.tell = tell;
  }
  /** @type {(rule: Rule, message?: string) => void} */
  show(rule, message = "") {
    const { data, about } = this, { controls } = data.current, found = allocate(rule, about);
    const tables = Object.entries(data.current.parts).map(([name, parts]) => [
      name,
      [{ kind: "text", text: WRITTEN }, ...parts]
    ]);
    this.rule = rule;
    const temperature = controls.temperature === null ? null : rule.temperature;
    this.current = {
      ...data.current,
      ...found,
      message,
      code: allocationCode(rule, about),
      undo: this.past.length,
      redo: this.future.length,
      controls: { ...controls, rank: rule.rank, temperature },
      parts: Object.fromEntries(tables)
    };
    this.tell(this.current);
  }
  /**
   * Goes to a rule; within one gesture the step to undo grows.
   *
   * @type {(rule: Rule, gesture?: Gesture, message?: string) => void}
   */
  move(rule, gesture = null, message = "") {
    if (this.data.current.experts) refuse();
    allocate(rule, this.about);
    if (gesture === null || gesture !== this.gesture) this.past.push(this.rule);
    this.gesture = gesture;
    this.future.length = 0;
    this.show(rule, message);
  }
  /** @type {(from: Rule[], to: Rule[]) => void} */
  back(from, to) {
    const rule = from.pop();
    if (!rule) return;
    to.push(this.rule);
    this.gesture = null;
    this.show(rule);
  }
  /** @type {(options: Partial<Rule>, gesture?: Gesture) => void} */
  set(options, gesture) {
    this.move({ ...this.rule, ...options }, gesture);
  }
  /** @type {(wish: Modules & {rank: number}, gesture?: Gesture) => void} */
  set_rank({ modules, rank }, gesture) {
    const wished = decide(this.rule, modules, { rank });
    if (!isRefused(wished, this.about)) return this.move(wished, gesture);
    const present = this.current.ranks[modules[0]] || 1;
    const nearest = nearestRank(this.rule, this.about, modules, present, rank);
    const message = `Rank ${rank} does not fit the budget and the limits: ${nearest} is the nearest that does.`;
    this.move(decide(this.rule, modules, { rank: nearest }), gesture, message);
  }
  /** @type {(wish: Modules) => void} */
  release({ modules }) {
    this.move(decide(this.rule, modules));
  }
  /** @type {(wish: Modules) => void} */
  leave_out({ modules }) {
    this.move(decide(this.rule, modules, { out: true }));
  }
  undo() {
    this.back(this.past, this.future);
  }
  redo() {
    this.back(this.future, this.past);
  }
};
function offline(data) {
  const about = { ...data.about, page: true };
  const values = { ...data, about };
  const listeners = {};
  const tell = (name, content = {}) => (listeners[name] ?? []).forEach((listener) => listener(content));
  function change3(name, value2) {
    values[name] = value2;
    tell(`change:${name}`);
  }
  const workbench = new OfflineWorkbench(data, about, (current) => {
    values.resampled = [];
    change3("current", current);
  });
  function answerPanel(call, args) {
    const answers = ANSWERS[call](args, data);
    Object.assign(values, answers);
    for (const name of Object.keys(answers)) tell(`change:${name}`);
  }
  function answer(call, args, gesture) {
    if (call in ANSWERS) return answerPanel(call, args);
    workbench[
      /** @type {"set" | "set_rank" | "release" | "leave_out" | "undo" | "redo"} */
      call
    ](args, gesture);
  }
  return {
    get: (name) => values[name],
    set: change3,
    save_changes: () => {
    },
    on: (name, listener) => {
      (listeners[name] ??= []).push(listener);
    },
    send: ({ call, args, gesture = null, id }) => {
      try {
        answer(
          call,
          /** @type {Wish} */
          args,
          gesture
        );
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        workbench.show(workbench.rule, data.current.experts ? BY_EXPERT : REFUSED);
      }
      tell("msg:custom", { answer: id });
    }
  };
}

// page.js
var isWhole = (data) => data.about.names.length > 0;
function renderPage(data, el) {
  if (isWhole(data)) renderWorkbench({ model: offline(data), el });
  else renderPanels(data.about, el);
}

// widgets.js
function render({ model, el }) {
  const about = model.get("about");
  if (!about) return renderMonitor({ model, el });
  return about.names.length ? renderWorkbench({ model, el }) : renderPanels(about, el, about.live ? model : null);
}
var widgets_default = { render };
export {
  widgets_default as default,
  offline,
  renderPage
};
