// Written by `make bundle` from viz/browser/, do not edit. SHA-256 of the sources: 26c2469ce93db0e7f050234900e191784922cbf0fa078a095caab64caaa2f5ba
// elements.js
var SVG = "http://www.w3.org/2000/svg";
var DRAWN = ["svg", "g", "rect", "path", "line", "circle"];
function make(tag, attributes = {}, parent = null, text = null) {
  const element = DRAWN.includes(tag) || attributes.svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (name !== "svg") element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.appendChild(element);
  return element;
}
function put(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}
function onArrows(row, then = () => {
}) {
  row.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], all = [...row.querySelectorAll("button")].filter((one) => !one.hidden);
    if (!step) return;
    const target = all[(all.indexOf(event.target) + step + all.length) % all.length];
    then(target);
    target.focus();
    event.preventDefault();
  });
}
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
  sensitivity: "How much the loss depends on a module: its share of all scores. Ranks by score are in proportion to it.",
  change: "Ranks more (red) or fewer (blue) than in the kept allocation.",
  scaling: "The factor s in W + s B A: how strongly an adapter acts on its module. White is alpha / rank.",
  alpha: "Numerator of the scaling: s is alpha divided by the rank.",
  temperature: "How strongly ranks follow the scores: 1 in proportion, 0 the same rank for all.",
  min_rank: "The lowest rank that a module may get; with 0, modules with low scores get no adapter.",
  max_rank: "The highest rank that a module may get, at most the number of directions computed for it.",
  "effective rank": "How many directions the inputs of a module use: the participation ratio of the eigenvalues of their covariance.",
  direction: "A vector in the input space of a module. Each row of A is one: it turns a token's input into one number.",
  energy: "Share of ||W C||\xB2, the covariance of the inputs seen through the weight, that lies along the first directions, of those that were computed. A high share does not say that training needs more of them.",
  variance: "Share of the variance of a module's inputs that lies along the first directions.",
  "gradient captured": "Share of the squared gradient of held-out samples that lies along the rows of A: what an adapter with A frozen can follow.",
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
  "mean of all modules": "How much two subspaces share: the mean squared cosine of their principal angles; 1 the same, 0 orthogonal."
};

// explain.js
function describe(element, sentence) {
  if (!sentence) return element;
  element.setAttribute("aria-description", sentence);
  if (!["BUTTON", "LABEL", "SUMMARY"].includes(element.tagName) && !element.hasAttribute("tabindex")) {
    element.setAttribute("tabindex", 0);
  }
  return element;
}
var explained = (element, words = element.textContent) => describe(element, glossary_default[words.toLowerCase()]);
function explainer(root) {
  const box = make("div", { class: "tip term", "aria-hidden": "true" }, root);
  const hide = () => {
    box.style.display = "none";
  };
  function show(event) {
    const word = event.target.closest?.("[aria-description]");
    if (!word) return hide();
    box.textContent = word.getAttribute("aria-description");
    box.style.display = "block";
    const frame = root.getBoundingClientRect(), at = word.getBoundingClientRect(), below = at.bottom - frame.top + 4;
    box.style.left = `${Math.max(0, Math.min(at.left - frame.left, frame.width - box.offsetWidth - 4))}px`;
    box.style.top = `${below}px`;
  }
  for (const event of ["pointerover", "focusin"]) root.addEventListener(event, show);
  for (const event of ["pointerleave", "focusout", "click"]) root.addEventListener(event, hide);
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
}

// text.js
var MINUS = "\u2212";
var percent = (x) => (x >= 0.0995 || x === 0 ? (100 * x).toFixed(0) : (100 * x).toPrecision(2)) + "\xA0%";
var signed = (x) => (x > 0 ? "+" : x < 0 ? MINUS : "") + Math.abs(x);
function sizeText(bytes) {
  for (const unit of ["bytes", "kB", "MB"]) {
    if (bytes < 999.5) return `${+bytes.toPrecision(3)} ${unit}`;
    bytes /= 1e3;
  }
  return `${+bytes.toPrecision(3)} GB`;
}
var number = (x) => Math.abs(x) >= 10 ? x.toFixed(0) : String(+x.toPrecision(2));
var SIGNS = { "\n": "\u23CE", "	": "\u21E5", "\r": "\u240D" };
var visible = (token) => token.replace(/[\n\t\r]/g, (c) => SIGNS[c]);
var isSpecial = (token) => /^\s*(<[^\s<>]+>|\[[A-Z]+\])\s*$/.test(token);
var quoted = (token) => `\u201C${visible(token)}\u201D`;
var signedNumber = (v, digits = 2) => (v > 0 ? "+" : v < 0 ? MINUS : "") + Math.abs(v).toFixed(digits);
var nats = (v) => signedNumber(v, Math.abs(v) >= 9.95 ? 1 : 2);
var size = (v) => nats(v).replace("+", "");
function probability(logarithm) {
  const p = Math.exp(logarithm);
  return p > 0.9995 ? "100\xA0%" : p < 1e-5 ? "< .001\xA0%" : percent(p);
}

// chart.js
function ticks(low, high, log, most) {
  const all = [];
  if (log) {
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
      for (const f of [1, 2, 5]) all.push(+`${f}e${p}`);
    }
    const inside = all.filter((v) => v >= low * 0.999 && v <= high * 1.001);
    if (inside.length < 2) return ticks(low, high, false, most);
    if (inside.length <= most) return inside;
    const powers = inside.filter((v) => v.toExponential().startsWith("1e")), every = Math.ceil(powers.length / most);
    return powers.filter((_, i) => i % every === 0);
  }
  const power = 10 ** Math.floor(Math.log10((high - low) / most || 1)), step = [1, 2, 5, 10].find((f) => f * power >= (high - low) / most) * power;
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) all.push(+v.toPrecision(12));
  return all;
}
function chart(parent, { title, lines, bars = [], x, y, cursor = null, width = 340, height = 150, legend = true }) {
  const usable = ([a, b]) => Number.isFinite(a) && Number.isFinite(b) && (!x.log || a > 0) && (!y.log || b > 0);
  const points = lines.flatMap((one) => one.points).concat(bars).filter(usable);
  const span = (axis, values) => {
    let low = axis.min ?? Math.min(...values), high = axis.max ?? Math.max(...values);
    if (low === high) {
      [low, high] = axis.log ? [low / 2, high * 2] : [low - Math.abs(low) / 10 - 1e-9, high + Math.abs(high) / 10 + 1e-9];
    }
    return [low, high];
  };
  const named = legend ? lines.filter((one) => one.label && !one.gray) : [];
  if (named.length) {
    const row = make("div", { class: "key" }, parent);
    named.forEach((one) => {
      const entry = make("span", {
        class: `c${one.color ?? lines.filter((l) => !l.gray).indexOf(one)} ${one.name ?? ""}`
      }, row);
      make("span", { class: `swatch${one.dash ? " dash" : ""}${one.thin ? " thin" : ""}` }, entry);
      entry.append(one.label);
      explained(entry, one.term ?? one.label);
    });
  }
  const svg = make("svg", {
    class: "chart",
    role: "group",
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    "aria-label": title
  }, parent);
  if (!points.length) return svg;
  const [x0, x1] = span(x, points.map(([a]) => a)), [y0, y1] = span(y, points.map(([, b]) => b));
  const left = 50, right = 8, top = 6, bottom = 32, scale = (v, low, high, log) => log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
  const at = (v) => left + (width - left - right) * scale(v, x0, x1, x.log);
  const up = (v) => top + (height - top - bottom) * (1 - scale(v, y0, y1, y.log));
  const write = (axis, v) => {
    if (axis.percent) return `${+(100 * v).toFixed(4)}\xA0%`;
    if (axis.log && (v < 0.01 || v > 99999)) {
      const [digits, power] = v.toExponential().split("e"), raised = [...String(Number(power))].map((c) => c === "-" ? "\u207B" : "\u2070\xB9\xB2\xB3\u2074\u2075\u2076\u2077\u2078\u2079"[c]).join("");
      return `${digits === "1" ? "" : `${digits}\xB7`}10${raised}`;
    }
    return String(+v.toPrecision(6)).replace("-", MINUS);
  };
  for (const v of ticks(y0, y1, y.log, 4)) {
    make("line", { class: "guide", x1: left, x2: width - right, y1: up(v), y2: up(v) }, svg);
    make("text", { svg: true, class: "tick", x: left - 5, y: up(v) + 3.5, "text-anchor": "end" }, svg, write(y, v));
  }
  for (const v of ticks(x0, x1, x.log, Math.floor((width - left) / 38))) {
    make("line", { class: "axis", x1: at(v), x2: at(v), y1: height - bottom, y2: height - bottom + 4 }, svg);
    make(
      "text",
      { svg: true, class: "tick", x: at(v), y: height - bottom + 14, "text-anchor": "middle" },
      svg,
      write(x, v)
    );
  }
  make("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }, svg);
  make("line", { class: "axis", x1: left, x2: left, y1: top, y2: height - bottom }, svg);
  explained(
    make(
      "text",
      { svg: true, class: "tick", x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" },
      svg,
      x.label
    )
  );
  explained(
    make(
      "text",
      {
        svg: true,
        class: "tick",
        transform: `translate(10 ${(top + height - bottom) / 2}) rotate(-90)`,
        "text-anchor": "middle"
      },
      svg,
      y.label
    )
  );
  const wide = bars.length ? Math.max(1, 0.8 * (at(x0 + 1) - at(x0))) : 0;
  for (const [a, b] of bars) {
    make("rect", { class: "bar", x: at(a) - wide / 2, width: wide, y: up(b), height: up(y0) - up(b) }, svg);
  }
  if (cursor !== null && cursor >= x0 && cursor <= x1) {
    make("line", { class: "cursor", x1: at(cursor), x2: at(cursor), y1: top, y2: height - bottom }, svg);
  }
  let i = 0;
  for (const one of lines) {
    const color = one.gray ? "gray" : `c${one.color ?? i++} ${one.name ?? ""}`, inside = one.points.filter(usable).filter(([, b]) => b >= y0 - 1e-12);
    const path = inside.map(([a, b], k) => `${k ? "L" : "M"}${at(a).toFixed(1)} ${up(b).toFixed(1)}`).join("");
    make("path", { class: `curve ${color}${one.thin ? " thin" : ""}${one.dash ? " dash" : ""}`, d: path }, svg);
    if (one.dots || inside.length === 1 && !one.gray) {
      for (const [a, b] of inside) make("circle", { class: color, cx: at(a), cy: up(b), r: 2.8 }, svg);
    }
  }
  return svg;
}
function lossCurves(parent, arms, width) {
  const names = Object.keys(arms), lines = [];
  names.forEach((name, i) => {
    const single = names.length === 1, of = (what) => single ? what : `${name}, ${what}`;
    const look = single ? "" : `arm${i}`, dash = i === 1;
    lines.push({
      label: of("training"),
      term: "training loss",
      points: arms[name].losses,
      thin: true,
      dash,
      name: look,
      color: i
    });
    lines.push({
      label: of(single ? "validation" : "held out"),
      term: "held-out loss",
      points: arms[name].held,
      dots: true,
      dash,
      name: look,
      color: single ? 1 : i
    });
  });
  const steps = Math.max(1, ...names.map((name) => arms[name].planned));
  const title = `Losses of ${names.join(" and ")} over the optimizer steps`;
  const drawn = lines.filter((one) => one.points.length || names.length > 1);
  return chart(parent, {
    title,
    lines: drawn,
    x: { label: "optimizer step", min: 0, max: steps },
    y: { label: "loss, nats" },
    width,
    height: 150
  });
}

// colors.js
var RED = [178, 24, 43];
var BLUE = [33, 102, 172];
var GREEN = [0, 104, 116];
var rgb = (text) => text.match(/[\d.]+/g).slice(0, 3).map(Number);
function luminance(color) {
  const [r, g, b] = color.map((c) => c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
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
var largest = (v) => v.reduce((most, one) => Math.max(most, Math.abs(one)), 1e-6);

// grid.js
var TALL = 22;
function cellGrid(parent, { title, rows, columns, cells, most, width = 560 }) {
  const left = 6.2 * Math.max(...rows.map((name) => Math.min(name.length, 22))) + 10, w = Math.min(26, (width - left) / columns.length), h = 17;
  const svg = make("svg", {
    class: "chart",
    role: "img",
    width: left + w * columns.length,
    height: h * rows.length + 18,
    "aria-label": title
  }, parent);
  const ground = groundOf(isDark(parent));
  rows.forEach(
    (name, j) => make("text", { svg: true, class: "tick", x: left - 6, y: h * j + 12, "text-anchor": "end" }, svg, name.slice(-22))
  );
  const every = Math.ceil(18 / w);
  columns.forEach((name, i) => {
    if (i % every === 0) {
      make(
        "text",
        { svg: true, class: "tick", x: left + w * (i + 0.5), y: h * rows.length + 13, "text-anchor": "middle" },
        svg,
        name
      );
    }
  });
  for (const [row, column, value, text] of cells) {
    const fill = blend(ground, [0, 104, 116], value === null || !most ? 0 : value / most);
    make("rect", {
      class: "grid",
      x: left + w * column + 0.5,
      y: h * row + 0.5,
      width: w - 1,
      height: h - 1,
      fill: `rgb(${fill})`
    }, svg);
    if (text && w > 15) {
      make(
        "text",
        {
          svg: true,
          x: left + w * (column + 0.5),
          y: h * row + 12,
          "text-anchor": "middle",
          "font-size": 9,
          fill: inkOn(fill)
        },
        svg,
        text
      );
    }
  }
  return svg;
}

// monitor.js
function renderMonitor({ model, el }) {
  const root = make("div", { class: "tlora monitor" }, el);
  function draw() {
    const state = model.get("state");
    root.replaceChildren();
    explainer(root);
    if (!state.arms) return;
    const width = Math.max(320, Math.min(820, el.clientWidth || 640)), most = Math.max(...state.cells.map(([, , share]) => share ?? 0), 1e-12);
    lossCurves(root, state.arms, width);
    if (!state.cells.length) return;
    make(
      "div",
      { class: "key" },
      root,
      `Update of each module relative to its weight, up to ${percent(most)}: projections down, layers across`
    );
    cellGrid(root, {
      title: "Update of each module",
      rows: state.rows,
      columns: state.columns,
      cells: state.cells,
      most,
      width
    });
  }
  model.on("change:state", draw);
  draw();
  const mark = () => {
    if (!el.isConnected) return requestAnimationFrame(mark);
    const box = el.closest(".widget-vbox");
    if (box) box.dataset.lmSuppressShortcuts = "true";
  };
  mark();
}

// controls.js
function drawBar(parent, { words, done, total: total2 }) {
  make("progress", { ...total2 > 1 && { max: total2, value: done }, "aria-label": words }, parent);
  parent.append(words + (total2 > 1 ? `: ${done} of ${total2}` : ""));
}
function copyable(parent) {
  const line = make("code", { tabindex: 0 }, parent), button = describe(make("button", { type: "button" }, parent, "Copy"), "Copy the line of Python");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(line.textContent);
    button.textContent = "Copied";
    setTimeout(() => {
      button.textContent = "Copy";
    }, 1200);
  });
  return line;
}

// guide.js
function guide(root, page, drags) {
  const seen = "tlora-guide", box = make("details", { class: "help" }, root);
  make("summary", {}, box, "Help: the first minute, and keys");
  const steps = [
    "Click the reddest cell: it has more rank than a uniform allocation gives it. The text beside the map says why.",
    "Drag it down. The others share what it gives up; the tab Change shows who gains, and Undo takes it back.",
    page ? "Move the rank: what all modules share grows or shrinks with it." : "Press Train both: two short trainings on the same batches say which allocation is better, with the answers of both."
  ];
  const list = make("ol", {}, box);
  for (const step of steps) make("li", {}, list, step);
  const keys = [
    ["arrows", "move"],
    ["Shift+arrows", "select more"],
    ["+ and \u2212, or Alt+\u2191 and \u2193", "change the rank"],
    ["Delete", "give the rank back to the score"],
    ["X", "leave the module out"],
    ["Ctrl+Z, Ctrl+Shift+Z", "undo, redo"],
    ["Ctrl+Space, Shift+Space", "select a layer, a projection"],
    ["Escape", "select one"]
  ];
  const row = make("p", {}, box, "On the map: ");
  keys.forEach(([key, does], i) => {
    make("kbd", {}, row, key);
    row.append(` ${does}${i < keys.length - 1 ? ", " : "."} `);
  });
  make("p", {}, box, "Point at a word, or go to it with Tab: its sentence of the glossary is shown.");
  const closed = () => {
    try {
      return localStorage.getItem(seen);
    } catch {
      return null;
    }
  };
  box.open = drags && !closed();
  box.addEventListener("toggle", () => {
    try {
      localStorage.setItem(seen, box.open ? "" : "closed");
    } catch {
    }
  });
}

// table.js
function drawTable(parent, { caption, head, rows, text = [0], folded = false }) {
  const box = folded ? make("details", {}, parent) : make("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": caption }, parent);
  if (folded) make("summary", {}, box, caption);
  const table = make(
    "table",
    {},
    folded ? make("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": caption }, box) : box
  );
  if (!folded) make("caption", {}, table, caption);
  const kind = (i) => ({ class: text.includes(i) ? "words" : "count" });
  if (head.length) {
    const tr = make("tr", {}, make("thead", {}, table));
    head.forEach((name, i) => explained(make(name ? "th" : "td", name ? { scope: "col", ...kind(i) } : {}, tr, name)));
  }
  const body = make("tbody", {}, table);
  for (const row of rows) {
    const tr = make("tr", {}, body);
    row.forEach((cell, i) => i ? make("td", kind(i), tr, cell) : explained(make("th", { scope: "row", ...kind(i) }, tr, cell)));
  }
}

// module_charts.js
function moduleCharts(about, choice) {
  const root = make("div", { class: "module" });
  let current = {};
  function draw(state) {
    current = state;
    const { k, place, rank, counts } = state;
    root.replaceChildren();
    if (about.spectra.length) drawSpectrum(k, place, rank);
    const lines = Object.entries(about.by_rank).map(([name, label]) => {
      const values = about.tabs.find((tab) => tab.name === name).curves[k];
      return { label, term: name === "overlap" ? "overlap" : label, points: values.map((value, i) => [i + 1, value]) };
    });
    if (lines.length) {
      chart(root, {
        title: `Shares by rank, ${place}`,
        lines: lines.map((one, i) => ({ ...one, color: i + 2 })),
        cursor: rank || null,
        height: 116,
        x: { label: "rank", min: 0, max: Math.max(...lines.map((one) => one.points.length)) + 1 },
        y: { label: "share", percent: true, min: 0, max: 1 }
      });
    }
    if (counts?.length > 1) {
      const all = counts.reduce((sum, [, count]) => sum + count, 0), far = 2 ** Math.max(3, Math.ceil(Math.log2(1.02 * Math.max(rank, ...counts.map(([r]) => r)))));
      explained(
        make("div", { class: "key" }, root, `Rank from resampled scores: ${counts[0][0]} to ${counts.at(-1)[0]}`),
        "resamples"
      );
      chart(root, {
        title: `Ranks from resampled scores, ${place}`,
        lines: [],
        bars: counts.map(([r, count]) => [r, count / all]),
        cursor: rank || null,
        height: 100,
        x: { label: "rank", min: 0, max: far },
        y: { label: "resamples", percent: true, min: 0, max: 1 }
      });
    }
  }
  function drawSpectrum(k, place, rank) {
    const one = about.spectra[Math.min(choice.spectrum, about.spectra.length - 1)], mine = one.index[k];
    if (about.spectra.length > 1) {
      const label = make("label", { class: "control" }, root, "Spectrum"), select = make("select", {}, label);
      about.spectra.forEach((other, i) => {
        make("option", { value: i }, select, other.label).selected = i === choice.spectrum;
      });
      select.addEventListener("change", () => {
        choice.spectrum = Number(select.value);
        draw(current);
        root.querySelector("select").focus();
      });
    }
    make("div", { class: "key" }, root, one.meaning[0].toUpperCase() + one.meaning.slice(1));
    const whats = Object.keys(one.curves), others = [
      ...new Set(
        about.names.flatMap((_, other) => about.row[other] === about.row[k] && one.index[other] !== mine ? [one.index[other]] : [])
      )
    ];
    const colors = { energy: 0, variance: 1 }, at = (what, i, values) => one.curves[what].at[i].map((direction, n) => [direction, one.curves[what][values][i][n]]);
    const gray = (values) => others.map((i) => ({ gray: true, points: at(whats[0], i, values) }));
    const held = (what) => {
      const n = one.curves[what].at[mine].findLastIndex((direction) => direction <= rank);
      return n < 0 ? 0 : one.curves[what].sums[mine][n];
    };
    const far = Math.max(2, ...one.curves[whats[0]].at.map((directions) => directions.at(-1))), x = { label: "direction", log: true, min: 1, max: far };
    const lines = (values) => [
      ...gray(values),
      ...whats.map((what) => ({ label: what, color: colors[what], points: at(what, mine, values) }))
    ];
    chart(root, {
      title: `Cumulative shares of the directions of ${place}`,
      lines: lines("sums"),
      cursor: rank || null,
      height: 158,
      x: { ...x, label: "first directions taken" },
      y: { label: "cumulative share", percent: true, min: 0, max: 1 }
    });
    chart(root, {
      title: `Share of each direction of ${place}`,
      lines: lines("each"),
      cursor: rank || null,
      height: 124,
      legend: false,
      x,
      y: {
        label: "each direction",
        log: true,
        min: Math.max(1e-8, Math.min(...whats.flatMap((what) => one.curves[what].each.flat().filter((v) => v > 0))))
      }
    });
    const rows = whats.map((what) => [
      what,
      rank ? percent(held(what)) : "",
      ...one.curves[what].needed[mine].map((n) => n ?? `over ${one.curves[what].at[mine].at(-1)}`)
    ]);
    drawTable(root, {
      caption: "What they hold, and how many hold",
      head: ["", `first\xA0${rank}`, "90\xA0%", "95\xA0%", "99\xA0%"],
      rows
    });
  }
  return { root, draw };
}

// panels/alignment.js
function alignmentPart(parent, { pairs }, { about, model }) {
  const start = model?.get("compared") ?? {}, found = pairs.findIndex(({ sides }) => sides[0] === start.left && sides[1] === start.right);
  let pair = pairs[Math.max(0, found)], rank = Math.min(start.rank ?? 8, pair.rank);
  const bar = make("div", { class: "bar" }, parent), box = make("label", { class: "control" }, bar, "Pair"), select = make("select", {}, box);
  pairs.forEach(({ sides }, i) => {
    make("option", { value: i }, select, sides.join(" and ")).selected = pairs[i] === pair;
  });
  const slide = make("label", { class: "control" }, bar, "Rank"), slider = make("input", { type: "range", min: 1, max: pair.rank, step: 1, value: rank }, slide);
  const output = make("output", {}, slide), below = make("div", {}, parent);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / (values.length || 1);
  function draw() {
    output.textContent = rank;
    below.replaceChildren();
    const known = about.names.flatMap((_, k) => pair.overlaps[k].length ? [k] : []), at = (k) => pair.overlaps[k][rank - 1];
    const top = known.reduce((best, k) => at(k) > at(best) ? k : best, known[0]), place = (k) => `layer ${about.columns[about.column[k]]} ${about.rows[about.row[k]]}`;
    const chance = (k) => rank * pair.chance[k][0];
    make(
      "p",
      { class: "finding" },
      below,
      `${pair.sides.join(" and ")}: first ${rank === 1 ? "direction overlaps" : `${rank} directions overlap`} by ${percent(mean(known.map(at)))}, by chance ${percent(mean(known.map(chance)))}; most in ${place(top)}, ${percent(at(top))}`
    );
    const side = make("div", { class: "pair" }, below), cells = known.map((k) => [about.row[k], about.column[k], at(k), (100 * at(k)).toFixed(0)]);
    const map = make("div", {}, side), curve = make("div", {}, side), ranks = [...Array(pair.rank).keys()];
    make("div", { class: "key" }, map, "Overlap of each module, percent: projections down, layers across");
    cellGrid(map, {
      title: `Overlap of ${pair.sides.join(" and ")} at rank ${rank}`,
      rows: about.rows,
      columns: about.columns,
      cells,
      most: 1,
      width: 640
    });
    chart(curve, {
      title: "Mean overlap by rank",
      cursor: rank,
      x: { label: "rank", min: 1, max: Math.max(2, pair.rank) },
      y: { label: "overlap", percent: true, min: 0, max: 1 },
      height: 190,
      lines: [{
        label: "mean of all modules",
        points: ranks.map((r) => [r + 1, mean(known.map((k) => pair.overlaps[k][r]))])
      }, {
        label: "by chance",
        dash: true,
        points: ranks.map((r) => [r + 1, mean(known.map((k) => (r + 1) * pair.chance[k][0]))])
      }]
    });
    const rows = about.rows.flatMap((name, j) => {
      const members = known.filter((k) => about.row[k] === j), angle = (i) => number(mean(members.map((k) => pair.angles[k][i])));
      return members.length ? [[name, percent(mean(members.map(at))), percent(mean(members.map(chance))), angle(0), angle(1), angle(2)]] : [];
    });
    drawTable(below, {
      caption: `By projection, means over layers; angles at rank ${pair.rank} in degrees`,
      head: ["projection", "overlap", "by chance", "smallest angle", "median", "largest"],
      rows
    });
  }
  select.addEventListener("change", () => {
    pair = pairs[Number(select.value)];
    slider.max = pair.rank;
    rank = Math.min(rank, pair.rank);
    slider.value = rank;
    draw();
  });
  slider.addEventListener("input", () => {
    rank = Number(slider.value);
    draw();
  });
  draw();
}

// strip.js
function coloredToken(box, text, share, dark) {
  const { fill, ink } = tint(share, dark);
  return make(
    "span",
    { class: `token${isSpecial(text) ? " special" : ""}`, style: `background: ${fill}; color: ${ink}` },
    box,
    visible(text)
  );
}
function drawRamp(parent, most, words, dark) {
  const legend = make("div", { class: "legend" }, parent);
  make("span", {}, legend, signedNumber(-most));
  make(
    "span",
    { class: "ramp", style: `background: linear-gradient(to right, rgb(${BLUE}), ${tint(0, dark).fill}, rgb(${RED}))` },
    legend,
    "0"
  );
  make("span", {}, legend, `${signedNumber(most)} (${words})`);
}

// panels/attribution.js
var MEASURED = ["log-probability", "log-odds"];
var PAUSE = 400;
var PULL = 6;
function attributionPart(parent, part, { model, ask }) {
  const choice = part.choice ??= { sample: 0, token: null, measure: 0, ranks: {} };
  const root = make("div", { class: "attribution" }, parent);
  const samples = () => [...part.samples, ...model?.get("explained")?.samples ?? []];
  const known = part.known ??= {};
  let one = null, focus = 0, drag = null, timer = null, wasOnPage = false, refused = "";
  const place = (k) => part.columns[part.column[k]] < 0 ? part.names[k] : `layer ${part.columns[part.column[k]]} ${part.rows[part.row[k]]}`;
  const changed = () => Object.keys(choice.ranks).map(Number);
  const key = () => changed().map((k) => `${k}:${choice.ranks[k]}`).join();
  const answer = () => {
    const of = key(), stored = one.switched[of], added = known[`${choice.sample} ${of}`];
    return stored || added ? { ...stored, ...added } : void 0;
  };
  const sum = (values) => choice.token === null ? values.reduce((a, b) => a + b, 0) : values[choice.token];
  const gained = (m = choice.measure) => one.adapter[m].map((v, i) => v - one.base[m][i]);
  const contribution = (k, m = choice.measure) => sum(one.modules[m].map((token) => token[k]));
  const cost = (now, m = choice.measure) => sum(one.adapter[m].map((v, i) => v - now.values[m][i]));
  const isMeasured = (k) => part.live || `${k}:0` in one.switched;
  const bar = make("div", { class: "bar" }, root);
  const box = make("label", { class: "control" }, bar, "Answer"), select = make("select", { class: "sample" }, box);
  select.addEventListener("change", () => {
    choice.sample = Number(select.value);
    choice.token = null;
    drawSample();
  });
  const group = make("span", { class: "group", role: "group", "aria-label": "Measure" }, bar);
  const measures = MEASURED.map(
    (name2, m) => press(group, name2, m ? "log p \u2212 log(1 \u2212 p): has no ceiling" : "log p: ends at 0", () => {
      choice.measure = m;
      paint();
    })
  );
  const reset = press(bar, "Switch all on", "The adapter as trained (Escape)", () => {
    choice.ranks = {};
    change();
  });
  const text = make("div", { class: "request" }, root), strip = make("div", { class: "answer", role: "group", "aria-label": "Tokens of the answer" }, root);
  const scroll = make("div", { class: "scroll" }, root), svg = make("svg", { class: "chart" }, scroll), legend = make("div", { class: "legend" }, root);
  const finding = make("p", { class: "finding", role: "status" }, root), written = make("div", { class: "written" }, root);
  const cells = [], bars = [];
  if (part.live) drawForm();
  function press(parent2, label, title, action) {
    const button = make("button", { type: "button", title }, parent2, label);
    button.addEventListener("click", action);
    return button;
  }
  function drawForm() {
    const form = make("form", { class: "bar" }, root), fields = ["A request of your own", "Its answer (default: the adapter's)"].map((label) => {
      const input = make("input", { type: "text" }, make("label", { class: "control" }, form, label));
      return input;
    });
    const send = make("button", { type: "submit" }, form, "Take apart"), said = make("span", { role: "status" }, form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (fields[0].value.trim()) {
        ask("explain", { prompt: fields[0].value, answer: fields[1].value.trim() ? fields[1].value : null });
      }
    });
    form.follow = () => {
      const { running = false, said: words = "", bar: bar2, samples: own = [] } = model.get("explained") ?? {};
      send.disabled = running;
      said.replaceChildren(...running || !own.length ? [words] : []);
      if (running) drawBar(make("div", {}, said), bar2);
    };
    form.follow();
    root.form = form;
  }
  function build() {
    const left = 6.3 * Math.min(24, Math.max(...part.rows.map((row) => row.length))) + 12, top = 28, w = part.columns.length > 40 ? 20 : 26, h = TALL, right = 60;
    const width = left + w * part.columns.length + right, height = top + h * part.rows.length + 18, label = { svg: true, class: "label" };
    svg.replaceChildren();
    for (const [name2, v] of Object.entries({
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      style: `min-width: ${Math.min(width, 560)}px`,
      role: "grid",
      "aria-label": "Modules of the adapter: projections down, layers across. Arrow keys move, Enter switches a module off and on, minus and plus change its rank, Shift and space switches its row, Control and space its column"
    })) svg.setAttribute(name2, v);
    const head = make("g", { role: "row" }, svg);
    make("text", { ...label, x: left - 6, y: height - 4, "text-anchor": "end", role: "columnheader" }, head, "layer");
    part.columns.forEach((layer, i) => {
      bars.push({
        members: members("column", i),
        base: top - 2,
        x: left + w * i + 3,
        rect: make("rect", { width: w - 6 }, svg)
      });
      const name2 = layer < 0 ? "outside" : `layer ${layer}`;
      make(
        "title",
        { svg: true },
        make(
          "text",
          {
            ...label,
            x: left + w * (i + 0.5),
            y: height - 4,
            "text-anchor": "middle",
            role: "columnheader",
            "data-column": i,
            "aria-label": name2
          },
          head,
          layer < 0 ? "\u2013" : layer
        ),
        `Switch ${name2} off or on`
      );
    });
    part.rows.forEach((name2, j) => {
      const row = make("g", { role: "row" }, svg), short = name2.length > 24 ? "\u2026" + name2.slice(-22) : name2, y = top + h * j;
      make(
        "title",
        { svg: true },
        make(
          "text",
          { ...label, x: left - 6, y: y + h / 2 + 4, "text-anchor": "end", role: "rowheader", "data-row": j },
          row,
          short
        ),
        `Switch ${name2} off or on in all layers`
      );
      bars.push({
        members: members("row", j),
        x: left + w * part.columns.length + 4,
        y: y + 4,
        room: right - 8,
        rect: make("rect", { height: h - 8 }, svg)
      });
      for (const k of members("row", j)) {
        const g = make("g", {
          class: "cell",
          role: "gridcell",
          "data-k": k,
          transform: `translate(${left + w * part.column[k]} ${y})`
        }, row);
        const rect = make("rect", { x: 1, y: 1, width: w - 2, height: h - 2, rx: 2 }, g), text2 = make("text", { svg: true, x: w / 2, y: h / 2 + 4, "text-anchor": "middle", "font-size": 9.5 }, g);
        cells[k] = {
          g,
          w,
          h,
          rect,
          text: text2,
          mark: make("path", { class: "mark" }, g),
          title: make("title", { svg: true }, g)
        };
      }
    });
  }
  const members = (which, at) => part[which].flatMap((one2, k) => one2 === at ? [k] : []);
  function drawSample() {
    const all = samples();
    choice.sample = Math.min(choice.sample, all.length - 1);
    one = all[choice.sample];
    select.replaceChildren();
    all.forEach((sample, n) => {
      make("option", { value: n }, select, `${n + 1}: ${sample.prompt.slice(-60)}`).selected = n === choice.sample;
    });
    const inAnswer = new Set(one.positions);
    text.replaceChildren();
    one.tokens.forEach((token, n) => {
      if (!inAnswer.has(n)) make("span", { class: `token${isSpecial(token) ? " special" : ""}` }, text, visible(token));
    });
    strip.replaceChildren();
    const names = make("div", { class: "card names" }, strip);
    press(names, "whole answer", "What the modules contributed to all of its tokens", () => {
      choice.token = null;
      paint();
    });
    for (const name2 of ["gained", "base", "adapter", "now", "now first"]) {
      make("span", { class: `${name2} head` }, names, name2);
    }
    one.positions.forEach((position, i) => {
      const card = make("div", { class: "card" }, strip);
      const button = press(card, "", "", () => {
        choice.token = choice.token === i ? null : i;
        paint();
      });
      button.className = "token";
      button.textContent = visible(one.tokens[position]);
      for (const name2 of ["gained", "base", "adapter", "now", "now first"]) make("span", { class: name2 }, card);
    });
    change();
  }
  function change() {
    clearTimeout(timer);
    refused = "";
    paint();
    if (changed().length && !answer() && part.live) {
      ask("switch", { sample: choice.sample, ranks: changed().map((k) => [k, choice.ranks[k]]) }, "switch");
    } else regenerate();
  }
  function regenerate() {
    const now = answer(), asked = key();
    if (!part.live || !now || now.answer !== void 0 || drag) return;
    timer = setTimeout(() => {
      if (asked === key()) {
        ask("regenerate", { sample: choice.sample, ranks: changed().map((k) => [k, choice.ranks[k]]) }, "regenerate");
      }
    }, PAUSE);
  }
  function paint() {
    const dark = isDark(root), off = changed(), now = off.length ? answer() : null;
    measures.forEach((button, m) => button.setAttribute("aria-pressed", m === choice.measure));
    reset.disabled = !off.length;
    const rise = gained(), most = largest(rise), fill = (element, share) => {
      const c = tint(share, dark);
      element.style.background = c.fill;
      element.style.color = c.ink;
    };
    strip.classList.toggle("switched", off.length > 0);
    strip.firstChild.firstChild.setAttribute("aria-pressed", choice.token === null);
    [...strip.children].slice(1).forEach((card, i) => {
      const [button, gain, base, adapter, at, first] = card.children, p = (values2) => probability(values2[0][i]);
      fill(button, rise[i] / most);
      button.setAttribute("aria-pressed", choice.token === i);
      button.title = `${quoted(one.tokens[one.positions[i]])}: ${nats(rise[i])} nats of ${MEASURED[choice.measure]}; first choice of the base ${quoted(one.choices[0][i])}, of the adapter ${quoted(one.choices[1][i])}`;
      gain.textContent = nats(rise[i]);
      base.textContent = p(one.base);
      adapter.textContent = p(one.adapter);
      at.textContent = !off.length ? "" : now ? p(now.values) : "\u2026";
      if (now) fill(at, (now.values[choice.measure][i] - one.adapter[choice.measure][i]) / most);
      else at.removeAttribute("style");
      const another = now && !now.unchanged[i] ? visible(now.choices?.[i] ?? "another") : "";
      [first.textContent, first.title] = [another, another && `first choice: ${another}`];
    });
    written.replaceChildren();
    const lines = {
      "base answers": one.generated[0],
      "adapter answers": one.generated[1],
      ...now && part.live && { "now answers": now.answer ?? "\u2026" }
    };
    for (const [name2, words] of Object.entries(lines)) {
      if (words !== void 0) {
        make("code", {}, make("div", { class: name2.split(" ")[0] }, written, `${name2}: `), words);
      }
    }
    const values = part.names.map((_, k) => contribution(k)), top = largest(values);
    cells.forEach((cell, k) => {
      const c = tint(values[k] / top, dark), left = choice.ranks[k], cut = left > 0;
      put(cell.rect, "fill", c.fill);
      put(cell.text, "fill", c.ink);
      put(cell.mark, "stroke", c.ink);
      put(cell.mark, "d", left === 0 ? `M5 5L${cell.w - 5} ${cell.h - 5}M5 ${cell.h - 5}L${cell.w - 5} 5` : "");
      const written2 = left === 0 ? "" : cut ? `${left}/${part.ranks[k]}` : Math.abs(values[k]) >= 0.15 * top ? Math.abs(values[k]).toFixed(Math.abs(values[k]) < 9.95 ? 1 : 0).replace(/^0/, "") : "";
      if (cell.text.textContent !== written2) cell.text.textContent = written2;
      const words = `${place(k)}: contributed ${nats(values[k])} nats; ${left === 0 ? "switched off" : `rank ${left ?? part.ranks[k]} of ${part.ranks[k]}`}`;
      put(cell.g, "aria-label", words);
      put(cell.g, "aria-selected", left !== void 0);
      put(cell.g, "tabindex", k === focus ? 0 : -1);
      put(cell.g, "class", `cell${cut ? " hand" : ""}${isMeasured(k) ? "" : " unknown"}`);
      const alone = one.switched[`${k}:0`] ?? known[`${choice.sample} ${k}:0`];
      cell.title.textContent = words + (alone ? `; leaving it out alone costs ${size(cost(alone))}` : "") + (isMeasured(k) ? "" : "; leaving it out is not measured here");
    });
    const sums = bars.map((bar2) => bar2.members.reduce((total2, k) => total2 + values[k], 0)), isColumn = (bar2) => bar2.base !== void 0;
    for (const kind of [true, false]) {
      const longest = largest(bars.flatMap((bar2, n) => isColumn(bar2) === kind ? [sums[n]] : []));
      bars.forEach((bar2, n) => {
        if (isColumn(bar2) !== kind) return;
        const long = Math.abs(sums[n]) / longest * (kind ? 24 : bar2.room), at = kind ? { x: bar2.x, y: bar2.base - long, height: long } : { x: bar2.x, y: bar2.y, width: long };
        for (const [name2, v] of Object.entries(at)) put(bar2.rect, name2, v);
        put(bar2.rect, "class", sums[n] > 0 ? "total gain" : "total loss");
      });
    }
    legend.replaceChildren();
    const token = choice.token === null ? "the whole answer" : quoted(one.tokens[one.positions[choice.token]]);
    drawRamp(
      legend,
      top,
      `nats of ${MEASURED[choice.measure]} contributed to ${token}; bars: sums${part.names.every((_, k) => isMeasured(k)) ? "" : "; dashed: leaving it out is not measured here"}`,
      dark
    );
    finding.textContent = refused || conclude(off, now);
  }
  function conclude(off, now) {
    const what = choice.token === null ? "" : ` of ${quoted(one.tokens[one.positions[choice.token]].trim())}`;
    if (!off.length) {
      const order = part.names.map((_, k2) => k2).sort((a, b) => Math.abs(contribution(b)) - Math.abs(contribution(a))), k = order.find((each) => `${each}:0` in one.switched);
      if (k === void 0) return `The answer gained ${size(sum(gained()))} nats.`;
      return sentence(`${place(k)} contributed`, "leaving it out alone", [k], one.switched[`${k}:0`], what);
    }
    const cut = off.filter((k) => choice.ranks[k]), subject = name(off);
    if (!now) return `Leaving out ${subject} \u2026`;
    const act = cut.length === off.length ? off.length === 1 ? `cutting it to rank ${choice.ranks[off[0]]}` : "cutting them" : `leaving ${off.length > 1 ? "them" : "it"} out`;
    const tokens = now.unchanged.filter((same) => !same).length;
    return `${sentence(`${subject} contributed`, act, off, now, what)} ${tokens ? `The first choice changes at ${tokens} of ${now.unchanged.length} tokens.` : "No first choice changes."}`;
  }
  function sentence(subject, act, modules, now, what) {
    const added = (m) => modules.reduce((total2, k) => total2 + contribution(k, m), 0), lost = cost(now, 0), spared = added(0) - lost;
    const isWhole = modules.every((k) => !choice.ranks[k]);
    let rest = "";
    if (lost < -5e-3) rest = ", so the answer is likelier that way";
    else if (isWhole && spared > 5e-3) rest = `, so the other modules make up for ${size(spared)}`;
    else if (added(0) > 0 && spared < -5e-3) {
      rest = `, more than ${modules.length > 1 ? "they" : "it"} contributed: other modules build on ${modules.length > 1 ? "them" : "it"}`;
    }
    return `${subject[0].toUpperCase()}${subject.slice(1)} ${size(added(0))} of the ${size(sum(gained(0)))} nats${what}; ${act} costs ${size(lost)}${rest}. In log-odds, which have no ceiling: ${size(added(1))} of ${size(sum(gained(1)))}, cost ${size(cost(now, 1))}.`;
  }
  function name(modules) {
    if (modules.length === 1) return place(modules[0]);
    for (const [which, list] of [["row", part.rows], ["column", part.columns]]) {
      const at = part[which][modules[0]];
      if (members(which, at).join() === modules.join()) {
        return which === "row" ? `${list[at]} of all layers` : `layer ${list[at]}`;
      }
    }
    return `${modules.length} modules`;
  }
  function turn(modules, rank = null) {
    const before = choice.ranks, isOff = modules.every((k) => before[k] === 0);
    choice.ranks = { ...before };
    for (const k of modules) {
      const to = rank ?? (isOff ? part.ranks[k] : 0);
      if (to === part.ranks[k]) delete choice.ranks[k];
      else choice.ranks[k] = to;
    }
    if (part.live || !changed().length || answer()) return change();
    const alone = choice.ranks;
    choice.ranks = Object.fromEntries(modules.filter((k) => k in alone).map((k) => [k, alone[k]]));
    if (changed().length && answer()) return change();
    const asked = name(modules);
    choice.ranks = before;
    refused = `What leaving out ${asked} costs was not measured: tlora.attribute(..., switch_off=["modules", "layers", "projections"]) measures all of them.`;
    paint();
  }
  const clamp = (k, rank) => Math.max(0, Math.min(part.ranks[k], rank)), rankOf = (k) => choice.ranks[k] ?? part.ranks[k];
  svg.addEventListener("pointerdown", (event) => {
    const { row, column } = event.target.dataset, k = event.target.closest(".cell")?.dataset.k;
    if (row !== void 0) return turn(members("row", Number(row)));
    if (column !== void 0) return turn(members("column", Number(column)));
    if (k === void 0 || event.button) return;
    event.preventDefault();
    focus = Number(k);
    cells[focus].g.focus({ preventScroll: true });
    drag = { k: focus, y: event.clientY, rank: rankOf(focus), moved: false };
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    if (!drag || !part.live) return;
    const by = Math.round((drag.y - event.clientY) / PULL), rank = clamp(drag.k, drag.rank + by);
    drag.moved ||= by !== 0;
    if (drag.moved && rank !== rankOf(drag.k)) turn([drag.k], rank);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    svg.addEventListener(end, () => {
      if (!drag) return;
      const { k, moved } = drag;
      drag = null;
      if (moved) regenerate();
      else if (end === "pointerup") turn([k]);
    });
  }
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key], step = { "+": 1, "=": 1, "-": -1 }[event.key];
    if (move) {
      let [i, j] = [part.column[focus], part.row[focus]], k = -1;
      while (k < 0 && i >= 0 && j >= 0 && i < part.columns.length && j < part.rows.length) {
        [i, j] = [i + move[0], j + move[1]];
        k = part.names.findIndex((_, each) => part.column[each] === i && part.row[each] === j);
      }
      if (k >= 0) {
        focus = k;
        paint();
        cells[k].g.focus();
      }
    } else if (step && part.live) turn([focus], clamp(focus, rankOf(focus) + step));
    else if (event.key === " " && (event.shiftKey || event.ctrlKey)) {
      turn(event.shiftKey ? members("row", part.row[focus]) : members("column", part.column[focus]));
    } else if (event.key === "Enter" || event.key === " ") turn([focus]);
    else if (event.key === "Escape") {
      choice.ranks = {};
      change();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  onArrows(strip);
  function follow() {
    if (!root.isConnected && wasOnPage) return events.forEach((event) => model.off?.(event, follow));
    wasOnPage = root.isConnected;
    const { sample, key: of, ...found } = model.get("switched") ?? {};
    if (of !== void 0) known[`${sample} ${of}`] = { ...known[`${sample} ${of}`], ...found };
    root.form?.follow();
    const all = samples();
    if (select.children.length !== all.length) {
      [choice.sample, choice.token, choice.ranks] = [all.length - 1, null, {}];
      return drawSample();
    }
    paint();
    if (of === key() && sample === choice.sample) regenerate();
  }
  const events = ["change:switched", "change:explained"];
  if (model) events.forEach((event) => model.on(event, follow));
  build();
  drawSample();
}

// panels/effects.js
var OPENED = 6;
function effectsPart(parent, part) {
  const choice = part.choice ??= { set: "", all: false }, root = make("div", { class: "strips" }, parent), bar = make("div", { class: "bar" }, root);
  const select = make("select", {}, make("label", { class: "control" }, bar, "Texts"));
  for (const name of ["", ...part.sets]) {
    make("option", { value: name }, select, name || "all sets").selected = name === choice.set;
  }
  select.addEventListener("change", () => {
    Object.assign(choice, { set: select.value, all: false });
    draw();
  });
  const list = make("div", {}, root);
  const sizes = part.samples.flatMap(({ rise }) => rise.map(Math.abs)).sort((a, b) => a - b), most = Math.max(sizes[Math.floor(0.98 * sizes.length)], 1e-6);
  function draw() {
    const found = part.samples.filter(({ set }) => !choice.set || set === choice.set), shown = choice.all ? found : found.slice(0, OPENED);
    const dark = isDark(root);
    list.replaceChildren();
    drawRamp(
      list,
      most,
      "nats that a token gained or lost; beyond are 2\xA0% of the tokens; faint: not measured",
      dark
    );
    for (const { set, tokens, positions, base, rise } of shown) {
      const line = make("div", { class: "sample" }, list), mean = rise.reduce((sum, v) => sum + v, 0) / rise.length;
      make("span", { class: "set" }, line, `${set} ${signedNumber(-mean)}`).title = "change of the loss, nats per token";
      const strip = make("span", { class: "strip" }, line), at = new Map(positions.map((place, k) => [place, k]));
      tokens.forEach((text, place) => {
        const k = at.get(place), token = coloredToken(strip, text, k === void 0 ? 0 : rise[k] / most, dark);
        if (k === void 0) token.classList.add("faint");
        else {
          token.title = `${quoted(text)}: ${signedNumber(rise[k])} nats, from ${probability(base[k])} to ${probability(base[k] + rise[k])}`;
        }
        if (text.endsWith("\n")) make("br", {}, strip);
      });
    }
    const hidden = found.length - shown.length, words = part.of > part.samples.length ? ` Of the ${part.of} texts, the worst ${part.samples.length} are here.` : "";
    const foot = make(
      "div",
      { class: "key" },
      list,
      `${shown.length} of ${found.length} texts, the worst first; the number is the change of the loss, nats per token.${words}`
    );
    if (hidden) {
      make("button", { type: "button" }, foot, `Show ${hidden} more`).addEventListener("click", () => {
        choice.all = true;
        draw();
      });
    }
  }
  draw();
}

// panels/reads.js
var LISTED = 5;
var WINDOW = 40;
var STRONGEST = 8;
var DRAWN_SAMPLES = 4;
function readsPart(parent, part, { about, model, ask }) {
  const choice = { open: null, need: false, whole: /* @__PURE__ */ new Set() };
  const sides = Object.fromEntries(Object.entries(part.sides).map(([name, side]) => [name, readTokens(side)]));
  const root = make("div", { class: "reads strips" }, parent);
  let values = null, wasOnPage = false;
  const selected = () => model.get("selected").at(-1) ?? 0;
  function follow() {
    if (!root.isConnected && wasOnPage) return stop();
    wasOnPage = root.isConnected;
    const reading = model.get("reading"), k = selected();
    if (reading?.module !== k) return ask("read", { module: k }, "read");
    if (values?.module !== k) [values, choice.open] = [unpack(reading, part.need), null];
    draw();
  }
  const events = ["change:selected", "change:reading", "change:current"];
  const stop = () => events.forEach((event) => model.off?.(event, follow));
  events.forEach((event) => model.on(event, follow));
  function valuesOf(kind, direction) {
    const z = values.row(kind * values.directions + direction);
    return choice.need ? z.map((v, i) => v * values.need[i]) : z;
  }
  function draw() {
    const k = selected(), tokens = sides[part.side[k]], rank = model.get("current").ranks[k], place = `layer ${about.columns[about.column[k]]} ${about.rows[about.row[k]]}`;
    const focused = root.contains(document.activeElement) || root.getRootNode().activeElement?.closest?.(".reads") === root ? root.getRootNode().activeElement?.dataset.key ?? null : null;
    root.replaceChildren();
    const bar = make("div", { class: "bar" }, root);
    make("h3", {}, bar, place);
    if (!tokens) return make("p", {}, root, "This module reads positions, not tokens.");
    if (part.need) {
      const box = make("span", { class: "group", role: "group", "aria-label": "Values" }, bar);
      for (const [need, label] of [[false, "z: read"], [true, "z \xD7 need: read and needed"]]) {
        make("button", { type: "button", "aria-pressed": choice.need === need, "data-key": `need ${need}` }, box, label).addEventListener("click", () => {
          choice.need = need;
          draw();
        });
      }
    }
    const key = make("span", { class: "key" }, bar);
    part.parts.forEach((name, n) => {
      const entry = make("span", {}, key);
      make("span", { class: `part-sign p${n}` }, entry);
      entry.append(name);
    });
    const byKind = (shares) => part.kinds.map((kind, n) => `${kind} ${shares[n] === null ? "\u2013" : percent(shares[n])}`).join(", ");
    make(
      "p",
      {},
      root,
      `All directions together, on constant tokens: ${byKind(part.constant[k])} of z\xB2. The top tokens of two halves of the samples agree: ${byKind(part.agreement[k])}. ${part.samples < part.of ? `${part.samples} of the ${part.of} samples that were read are in this page.` : `${part.of} samples.`}` + (part.sinks.includes(k) ? " The first token of each sample dominates this module (an attention sink): direction_activations(..., first_token=False) leaves it out." : "")
    );
    const scroll = make("div", { class: "scroll" }, root), table = make("table", { "aria-label": `Tokens at both ends of the directions of ${place}` }, scroll);
    const head = make("tr", {}, make("thead", {}, table)), body = make("tbody", {}, table);
    make("th", { scope: "col" }, head, "direction");
    part.kinds.forEach(
      (kind, n) => make("th", { scope: "col", class: "words" }, head, part.meanings[n] ? `${kind}: ${part.meanings[n]}` : kind)
    );
    for (let d = 0; d < values.directions; d++) {
      if (d === rank) {
        const cut = make("tr", { class: "cut" }, body);
        make(
          "td",
          { colspan: part.kinds.length + 1 },
          cut,
          `rank ${rank}: directions above are kept, those below are cut off`
        );
      }
      const row = make("tr", {}, body);
      make("th", { scope: "row" }, row, d + 1);
      part.kinds.forEach((_, n) => drawEnds(make("td", { class: "words" }, row), n, d, tokens));
      if (choice.open?.d === d) {
        drawSamples(
          make("td", { colspan: part.kinds.length + 1, class: "words" }, make("tr", { class: "samples" }, body)),
          choice.open.n,
          d,
          tokens
        );
      }
    }
    if (focused) root.querySelector(`[data-key="${focused}"]`)?.focus({ preventScroll: true });
  }
  function drawEnds(cell, n, d, tokens) {
    const v = valuesOf(n, d), most = largest(v), isOpen = choice.open?.d === d && choice.open.n === n;
    const button = make("button", {
      type: "button",
      class: "ends",
      "aria-expanded": isOpen,
      "data-key": `${d} ${n}`,
      "data-row": d,
      "data-column": n
    }, cell);
    const said = [];
    for (const sign of [1, -1]) {
      const line = make("span", { class: "line", "aria-hidden": "true" }, button), found = ends(v, sign, tokens);
      make("b", {}, line, sign > 0 ? "+" : MINUS);
      for (const { at, hits, all } of found.slice(0, LISTED)) {
        const chip = make("span", {
          class: `chip p${tokens.part[at]}`,
          title: `${quoted(tokens.text(at))}: ${hits} of ${all} in the ${part.parts[tokens.part[at]]} part, up to ${signedNumber(v[at])}`
        }, line);
        make("span", { class: "ctx" }, chip, visible(tokens.before(at, 2)));
        token(chip, tokens.text(at), v[at] / most);
        make("span", { class: "times" }, chip, `\xD7${hits}`);
      }
      if (found.length > LISTED) make("span", { class: "times" }, line, `+ ${found.length - LISTED} more`);
      if (!found.length) make("span", { class: "times" }, line, "nothing beyond a fifth of the other end");
      said.push(
        `${sign > 0 ? "high" : "low"} at ${found.slice(0, LISTED).map(({ at }) => quoted(tokens.text(at).trim() || tokens.text(at))).join(", ") || "nothing"}`
      );
    }
    const squares = (isCounted) => v.reduce((sum, one, i) => sum + (isCounted(i) ? one * one : 0), 0);
    make(
      "span",
      { class: "times", "aria-hidden": "true" },
      button,
      `${percent(squares((i) => tokens.part[i] === 0) / squares(() => true))} on constant tokens`
    );
    button.setAttribute("aria-label", `${part.kinds[n]}, direction ${d + 1}: ${said.join("; ")}`);
    button.addEventListener("click", () => {
      [choice.open, choice.whole] = [isOpen ? null : { d, n }, /* @__PURE__ */ new Set()];
      draw();
    });
  }
  function drawSamples(cell, n, d, tokens) {
    const v = valuesOf(n, d), most = largest(v);
    drawRamp(
      cell,
      most,
      `${choice.need ? "z \xD7 need" : "z"}, direction ${d + 1} of ${part.kinds[n]}; narrow: constant tokens; click a number for the whole sample`,
      isDark(root)
    );
    const peaks = tokens.spans.map(([start, end]) => largest(v.slice(start, end))), order = [...peaks.keys()].sort((a, b) => peaks[b] - peaks[a]);
    const rest = order.slice(STRONGEST).sort((a, b) => (a * 7919 + 13) % 101 - (b * 7919 + 13) % 101);
    const shown = rest.length > DRAWN_SAMPLES ? [...order.slice(0, STRONGEST), ...rest.slice(0, DRAWN_SAMPLES)] : order;
    shown.forEach((s, i) => {
      if (i === STRONGEST && rest.length > DRAWN_SAMPLES) {
        make("div", { class: "key" }, cell, `${DRAWN_SAMPLES} of the other ${rest.length} samples, drawn at random`);
      }
      const isWhole = choice.whole.has(s) !== (i === 0);
      const line = make("div", { class: "sample" }, cell);
      const more = make(
        "button",
        {
          type: "button",
          "aria-expanded": isWhole,
          "data-key": `sample ${s}`,
          title: "largest value of the sample; click for the whole sample",
          "aria-label": `sample ${s + 1}, up to ${peaks[s].toFixed(1)}`
        },
        line,
        peaks[s].toFixed(1)
      );
      more.addEventListener("click", () => {
        choice.whole[choice.whole.has(s) ? "delete" : "add"](s);
        draw();
      });
      strip(make("span", { class: "strip" }, line), s, v, most, tokens, isWhole);
    });
  }
  function strip(box, s, v, most, tokens, isWhole) {
    const [start, end] = tokens.spans[s];
    let peak = start;
    for (let i = start; i < end; i++) if (Math.abs(v[i]) > Math.abs(v[peak])) peak = i;
    for (let i = start; i < end; i++) {
      if (!isWhole && Math.abs(i - peak) > WINDOW) {
        if (Math.abs(i - peak) === WINDOW + 1) box.append("\u2026");
        continue;
      }
      const narrow = !isWhole && i !== peak && tokens.part[i] === 0;
      const one = token(box, narrow ? "" : tokens.text(i), v[i] / most);
      one.title = `${quoted(tokens.text(i))} ${choice.need ? "z \xD7 need" : "z"} ${signedNumber(v[i])}${values.need && !choice.need ? `, need ${values.need[i].toFixed(2)}` : ""}, ${part.parts[tokens.part[i]]}`;
      if (narrow) one.classList.add("narrow");
      if (i === peak) one.classList.add("peak");
      if (isWhole && tokens.text(i).endsWith("\n")) make("br", {}, box);
    }
  }
  const token = (box, text, share) => coloredToken(box, text, share, isDark(root));
  root.addEventListener("keydown", (event) => {
    const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key], at = event.target.dataset;
    if (!move || at.column === void 0) return;
    root.querySelector(`[data-row="${Number(at.row) + move[0]}"][data-column="${Number(at.column) + move[1]}"]`)?.focus();
    event.preventDefault();
  });
  follow();
}
function unpack({ module, directions, scales, values }, hasNeed) {
  if (!values) return { module };
  const bytes = Int8Array.from(atob(values), (c) => c.charCodeAt(0)), width = bytes.length / scales.length;
  const row = (n) => Array.from(bytes.subarray(n * width, (n + 1) * width), (v) => v * scales[n]);
  return { module, directions, row, need: hasNeed ? row(scales.length - 1) : null };
}
function readTokens({ texts, text, part, sample }) {
  const parts = [...part].map(Number), spans = [], isFirst = sample.map((s, i) => s !== sample[i - 1]);
  sample.forEach((s, i) => {
    if (isFirst[i]) spans[s] = [i, i];
    spans[s][1] = i + 1;
  });
  const group = text.map((t, i) => `${parts[i]} ${t} ${parts[i] === 0 && !isFirst[i] ? text[i - 1] : ""}`), all = {};
  for (const one of group) all[one] = (all[one] ?? 0) + 1;
  return {
    part: parts,
    spans,
    group,
    all,
    text: (i) => texts[text[i]],
    before: (i, most) => text.slice(Math.max(spans[sample[i]][0], i - most), i).map((t) => texts[t]).join("")
  };
}
function ends(v, sign, tokens) {
  const far = v.map((one) => sign * one), limit = Math.max(far.reduce((a, b) => Math.max(a, b)) / 2, largest(v) / 5), found = {};
  far.forEach((one, i) => {
    if (one < limit) return;
    const hit = found[tokens.group[i]] ??= { at: i, hits: 0, all: tokens.all[tokens.group[i]] };
    hit.hits++;
    if (one > far[hit.at]) hit.at = i;
  });
  return Object.values(found).sort((a, b) => far[b.at] - far[a.at]);
}

// panels/rescaling.js
function rescalingPart(parent, part) {
  const choice = part.choice ??= { at: part.start, limit: part.limit ?? 0.05 }, { points } = part;
  const of = (kind) => points.flatMap((point, k) => point.kind === kind ? [k] : []), scales = of("scale");
  const root = make("div", { class: "rescaling" }, parent), bar = make("div", { class: "bar" }, root);
  const label = (words) => make("label", { class: "control" }, bar, words);
  const box = label("Scale"), slider = make("input", { type: "range", min: 0, max: scales.length - 1, step: 1 }, box), output = make("output", {}, box);
  slider.addEventListener("input", () => {
    choice.at = scales[Number(slider.value)];
    draw();
  });
  const out = points.length > scales.length ? make("select", {}, label("Left out")) : null;
  if (out) {
    make("option", { value: "" }, out, "nothing");
    points.forEach((point, k) => {
      if (point.kind !== "scale") make("option", { value: k }, out, point.label.replace("without ", ""));
    });
    out.addEventListener("change", () => {
      choice.at = out.value === "" ? scales.at(-1) : Number(out.value);
      draw();
    });
  }
  const limit = make(
    "input",
    { type: "number", step: 0.01, min: 0, value: choice.limit },
    label("Most that a text may lose, nats per token")
  );
  limit.addEventListener("change", () => {
    if (limit.value !== "" && limit.validity.valid) choice.limit = Number(limit.value);
    toBest();
  });
  make("button", { type: "button" }, bar, "Best within the limit").addEventListener("click", toBest);
  const below = make("div", { class: "pair" }, root), curve = make("div", {}, below), at = make("div", {}, below);
  const finding = make("p", { class: "finding", role: "status" }, root), line = copyable(make("div", { class: "copied" }, root));
  function best() {
    const within = points.flatMap((point, k) => point.lost <= choice.limit ? [k] : []);
    return within.reduce((a, k) => a === null || points[k].task < points[a].task ? k : a, null);
  }
  function toBest() {
    choice.at = best() ?? choice.at;
    draw();
  }
  function draw() {
    const point = points[choice.at], isScale = point.kind === "scale", top = best();
    if (isScale) slider.value = scales.indexOf(choice.at);
    output.textContent = isScale ? point.scale : "1";
    if (out) out.value = isScale ? "" : choice.at;
    const lines = [["scale", "the adapter scaled", { dots: true }], ["left out", "several parts left out", {
      dots: true,
      dash: true
    }], ["part", "one part left out", { dots: true, name: "lone" }]].map(([kind, name, look]) => ({
      label: name,
      points: of(kind).map((k) => [points[k].lost, points[k].task]),
      ...look
    })).filter((one) => one.points.length);
    curve.replaceChildren();
    at.replaceChildren();
    chart(curve, {
      title: "Loss on the task by what other text loses",
      lines: [...lines, { label: "chosen", points: [[point.lost, point.task]], color: 6, name: "chosen" }],
      cursor: choice.limit,
      width: 520,
      height: 240,
      x: { label: "largest change of other text, nats per token" },
      y: { label: "task loss, nats per token", log: true }
    });
    const title = `${point.label[0].toUpperCase()}${point.label.slice(1)}`;
    drawTable(at, {
      caption: [title, ...point.without.length ? [point.without.join(", ")] : []].join(": "),
      head: ["set", "loss", "change", "95 % interval over texts"],
      rows: point.rows
    });
    const words = top === choice.at ? "the lowest task loss within the limit" : top === null ? "no point is within the limit" : `within the limit, ${points[top].label} is best, with a task loss of ${number(points[top].task)}`;
    finding.textContent = `${title}: task loss ${number(point.task)}, other text at most ${signedNumber(point.lost, 3)} nats per token; ${words}.`;
    line.textContent = isScale && !point.scale ? "# scale 0 is the base model: there is nothing to write" : `rescaling.save_adapter("milder", rescaling.points[${choice.at}])  # ${point.label}`;
  }
  draw();
}

// panels/panels.js
var KINDS = {
  text: (parent, part) => make("p", {}, parent, part.text),
  table: drawTable,
  code(parent, part) {
    make("div", { class: "key" }, parent, part.caption);
    make("pre", { tabindex: 0, role: "region", "aria-label": part.caption }, parent, part.code);
  },
  chart: (parent, part) => chart(parent, {
    ...part,
    title: part.caption,
    width: 560,
    height: 220,
    y: part.y.percent ? { min: 0, max: 1, ...part.y } : part.y
  }),
  alignment: (parent, part, context) => alignmentPart(parent, part, context),
  reads: (parent, part, context) => readsPart(parent, part, context),
  attribution: (parent, part, context) => attributionPart(parent, part, context),
  effects: (parent, part) => effectsPart(parent, part),
  rescaling: (parent, part) => rescalingPart(parent, part)
};
function drawParts(parent, parts, context) {
  for (const part of parts) {
    KINDS[part.kind](make("div", { class: `part ${part.folded ? "folded" : part.kind}` }, parent), part, context);
  }
}
function panelSections(parent, about, current, model, ask) {
  const drawn = {};
  for (const panel of about.panels) {
    const section = make("section", { class: "panel", id: panel.name }, parent);
    make("h2", {}, section, panel.title);
    if (panel.about) make("p", { class: "about" }, section, panel.about);
    drawn[panel.name] = make("div", { class: "parts" }, section);
    drawParts(drawn[panel.name], panel.name === "allocation" ? current.allocation : panel.parts, { about, model, ask });
  }
  return (now) => {
    drawn.allocation?.replaceChildren();
    if (drawn.allocation) drawParts(drawn.allocation, now.allocation, { about, model });
  };
}
function panelTabs(parent, about, model, ask) {
  const list = make("div", { class: "tabs", role: "tablist", "aria-label": "Panels" }, parent), box = make("div", { class: "panel" }, parent);
  const open = (name) => {
    model.set("panel", name);
    model.save_changes();
    draw();
  };
  about.panels.forEach((panel) => {
    const button = describe(
      make("button", { type: "button", role: "tab", "data-panel": panel.name }, list, panel.title),
      panel.about.split(/(?<=\.) /)[0]
    );
    button.addEventListener("click", () => open(model.get("panel") === panel.name ? "" : panel.name));
  });
  onArrows(list, (target) => open(target.dataset.panel));
  function draw() {
    const name = model.get("panel"), panel = about.panels.find((one) => one.name === name);
    for (const button of list.children) {
      button.setAttribute("aria-selected", button.dataset.panel === name);
      button.setAttribute("tabindex", button.dataset.panel === (panel ? name : about.panels[0].name) ? 0 : -1);
    }
    box.replaceChildren();
    if (!panel) return;
    if (panel.about) make("p", { class: "about" }, box, panel.about);
    drawParts(
      make("div", { class: "parts" }, box),
      name === "allocation" ? model.get("current").allocation ?? [] : panel.parts,
      { about, model, ask }
    );
  }
  model.on("change:panel", draw);
  model.on("change:compared", draw);
  draw();
  return () => {
    if (model.get("panel") === "allocation") draw();
  };
}

// race.js
function racePanel(parent, { about, model, ask, width }) {
  const root = make("div", { class: "train", role: "group", "aria-label": "Training of two allocations" }, parent);
  const other = make("div", { class: "other" }, root), verdict = make("div", { class: "status", role: "status" }, root), basis = make("div", { class: "basis" }, root);
  const head = make("div", { class: "bar" }, root), given = about.training;
  const begin = make("button", { type: "button" }, head, "Train both"), plan = make("span", { class: "plan" }, head);
  const field = (label, attributes) => make(
    "input",
    { type: "number", ...attributes },
    explained(make("label", { class: "control" }, head, label), label)
  );
  const steps = field("steps", { min: 1, step: 1, placeholder: "auto", value: given.steps ?? "" });
  const rate = field("learning rate", {
    min: 0,
    step: "any",
    value: typeof given.learning_rate === "number" ? given.learning_rate : ""
  });
  const stops = make("span", { class: "group" }, head), winner = describe(
    make("button", { type: "button" }, head, "Save winner"),
    "Save the adapter with the lower held-out loss to the folder workbench-winner."
  );
  const lines = make("div", { class: "arms" }, root), shown = make("div", { class: "outcome" }, root);
  const curves = make("div", { class: "curves" }, shown), answers = make("div", { class: "answers" }, shown);
  let obstacle = "", running = false;
  begin.addEventListener("click", () => {
    if (obstacle || running || !steps.validity.valid || !rate.validity.valid) return;
    const options = {};
    if (steps.value) options.steps = Number(steps.value);
    if (rate.value) options.learning_rate = Number(rate.value);
    ask("train", options);
  });
  winner.addEventListener("click", () => ask("save_winner"));
  function ready() {
    begin.setAttribute("aria-disabled", Boolean(obstacle) || running);
    describe(
      begin,
      obstacle || `Train ${current.arms.join(" and ")} on the same batches, and say which is better on held-out samples.`
    );
  }
  let current = { arms: [], obstacle: "", is_shown: false };
  function tell(now) {
    current = now.race;
    obstacle = current.obstacle;
    place();
    for (const input of [steps, rate]) {
      input.parentElement.hidden = !given.learning_rate && !given.steps && !given.seconds;
    }
    plan.textContent = obstacle || `${current.arms.join(" and ")}, ` + (steps.value || !given.seconds ? "on the same batches" : `as many steps as fit into about ${Math.round(given.seconds / 60)} minutes`);
    ready();
  }
  function place() {
    const isOther = Object.keys(model.get("training")?.arms ?? {}).length > 0 && !current.is_shown;
    root.classList.toggle("past", isOther);
    other.textContent = isOther ? "The map shows other ranks than those that were trained:" : "";
  }
  function follow() {
    const state = model.get("training") ?? {}, names = Object.keys(state.arms ?? {});
    running = Boolean(state.running);
    place();
    ready();
    winner.hidden = !state.winner;
    verdict.textContent = state.said ?? "";
    basis.textContent = state.basis ?? "";
    if (stops.children.length !== (running ? names.length : 0) || [...stops.children].some((stop, i) => stop.dataset.arm !== names[i])) {
      stops.replaceChildren();
      for (const name of running ? names : []) {
        const stop = describe(
          make("button", { type: "button", "data-arm": name }, stops, `Stop ${name}`),
          `End the training of ${name} after this step; the other goes on.`
        );
        stop.addEventListener("click", () => ask("stop", { name }));
      }
    }
    for (const stop of stops.children) {
      stop.disabled = !state.arms[stop.dataset.arm].running || state.arms[stop.dataset.arm].stopped;
    }
    lines.replaceChildren();
    if (running && state.bar?.words) drawBar(make("div", {}, lines), state.bar);
    names.forEach((name, i) => {
      const arm = state.arms[name], loss = arm.losses.at(-1)?.[1], held = arm.held.at(-1)?.[1];
      const row = make("div", { class: `arm arm${i}`, "data-arm": name }, lines);
      make(
        "div",
        { class: "ranks" },
        row,
        `${name}: ${arm.ranks}; ${arm.parameters.toLocaleString("en-US")} trained parameters`
      );
      if (!arm.planned) return;
      make("progress", { max: arm.planned, value: arm.step, "aria-label": `training of ${name}` }, row);
      row.append(
        `step ${arm.step} of ${arm.planned}` + (loss === void 0 ? "" : `, training loss ${loss.toPrecision(3)}`) + (held === void 0 ? "" : `, held-out loss ${held.toPrecision(4)}`) + (arm.stopped ? ", stopped" : "")
      );
    });
    curves.replaceChildren();
    if (names.some((name) => state.arms[name].losses.length)) {
      lossCurves(curves, state.arms, Math.max(280, Math.min(430, width())));
    }
    answers.replaceChildren();
    if (state.answers?.length) drawAnswers(answers, state.answers, names);
  }
  root.addEventListener("input", () => tell({ race: current }));
  model.on("change:training", follow);
  follow();
  return tell;
}
function drawAnswers(parent, entries, names) {
  const arms = names.filter((name) => name in entries[0].by), right = (name) => entries.filter((one) => one.by[name].right).length;
  const counted = arms.filter((name) => entries[0].by[name].right !== null).map(
    (name) => `${name} ${right(name)} of ${entries.length} right`
  );
  const mark = ({ text, right: right2 }) => `${right2 === null ? "" : right2 ? "\u2713 " : "\u2717 "}${text}`;
  drawTable(parent, {
    caption: `Answers to held-out requests${counted.length ? `: ${counted.join(", ")}` : ""}`,
    head: ["request", "right answer", ...arms],
    rows: entries.map((one) => [one.request, one.right, ...arms.map((name) => mark(one.by[name]))]),
    text: [0, 1, 2, 3]
  });
}

// workbench.js
var OTHER_RUN = "The run was trained with other ranks than these: what it used of them is in the panels Training and Rank use, not on the map.";
var TEXTS_ASKED = "Include the panels with the text of samples in the page?";
var NARROWEST = 14;
function renderWorkbench({ model, el }) {
  const about = model.get("about"), page = Boolean(about.page), count = about.names.length, hasTexts = about.panels.some(
    ({ parts }) => parts.some(({ kind }) => ["reads", "attribution", "effects"].includes(kind))
  );
  const root = make("div", { class: "tlora", "data-lm-suppress-shortcuts": "true" }, el);
  const bar = make("div", { class: "bar" }, root), message = make("div", { class: "message", role: "status" }, root);
  guide(root, page, Boolean(about.names.length));
  const tablist = make("div", { class: "tabs", role: "tablist", "aria-label": "What the map shows" }, root);
  const body = make("div", { class: "body" }, root);
  const map = make("div", { class: "map", role: "tabpanel", "aria-label": "Map of the modules" }, body);
  const svg = make("svg", {}, map), legend = make("div", { class: "legend" }, map);
  const side = make("div", { class: "side" }, body), foot = make("div", { class: "foot" }, body);
  const tip = make("div", { class: "tip", "aria-hidden": "true" }, root);
  explainer(root);
  let current = model.get("current"), cells = [], bars = [], drag = null, focus = model.get("selected").at(-1) ?? 0;
  const queue = [];
  let busy = false, more = false, gestures = 0, version = 1, resampled = 0, timer = null;
  function ask(call, args = {}, gesture = null) {
    if (gesture !== null && queue.at(-1)?.gesture === gesture) queue.pop();
    queue.push({ call, args, gesture });
    next();
  }
  function next() {
    if (busy) return;
    if (!queue.length) return idle();
    busy = true;
    model.send({ ...queue.shift(), id: version });
  }
  function idle() {
    if (page || !about.resamples || current.is_captured) return;
    clearTimeout(timer);
    if ((more || resampled < version) && !drag) {
      timer = setTimeout(() => {
        resampled = version;
        ask("resample");
      }, more ? 0 : 400);
    }
  }
  const changed = () => {
    version++;
    more = false;
    idle();
  };
  function receive(content) {
    if ("answer" in content) {
      busy = false;
      more = content.more;
      next();
    }
    if (content.file) download(content.file, new Blob([content.text], { type: "text/html" }));
  }
  const tab = () => about.tabs.find((one) => one.name === model.get("tab") && (!one.run || isOfRun())) ?? about.tabs[1];
  const change = (k) => current.ranks[k] - current.kept[k];
  const isOfRun = () => about.run?.every((rank, k) => rank === current.ranks[k]);
  function value(t, k) {
    if (t.run && !isOfRun()) return null;
    if (t.of === "change") return change(k);
    if (t.trained) return model.get("training")?.arms?.[t.trained]?.updates[k] ?? null;
    if (t.of) return t.of === "ranks" && !current.ranks[k] ? null : current[t.of][k];
    return (t.curves ? t.curves[k][current.ranks[k] - 1] : t.values[k]) ?? null;
  }
  function text(t, k) {
    const v = value(t, k);
    if (v === null) return "";
    if (t.kind === "change") return v ? signed(v) : "";
    if (["percent", "signed"].includes(t.kind)) {
      return 100 * v >= 9.95 ? (100 * v).toFixed(0) : (100 * v).toFixed(1).replace(/^(-?)0/, "$1").replace("-", MINUS);
    }
    return number(v);
  }
  const REASONS = {
    score: "by its score",
    captured: "by the gradient that its directions capture",
    uniform: "the same for all",
    ceiling: "the most allowed",
    floor: "the least allowed"
  };
  const place = (k) => `layer ${about.columns[about.column[k]]} ${about.rows[about.row[k]]}`;
  const held = (k) => change(k) ? ` (kept: ${current.kept[k]})` : "";
  const brief = (k) => current.ranks[k] ? `Rank ${current.ranks[k]}${held(k)}, ${REASONS[current.reasons[k]] ?? current.reasons[k]}` : `Left out: no adapter${held(k)}`;
  function why(k) {
    const rank = current.ranks[k], reason = current.reasons[k], uniform = current.rank, ideal = current.ideals[k];
    const scores = about.tabs.find((one) => one.name === "sensitivity").values, mean = scores.reduce((sum, v) => sum + (v ?? 0), 0) / count;
    const score = scores[k] === null || !mean ? "" : `score ${number(scores[k] / mean)} \xD7 the mean`;
    const drawn = model.get("resampled")?.[k] ?? [], range = drawn.length ? `; ${[.../* @__PURE__ */ new Set([drawn[0][0], drawn.at(-1)[0]])].join(" to ")} on other samples` : "";
    const most = `; at most ${current.most[k]}`;
    if (!rank) return `Left out: no adapter${held(k)}${score && `, ${score}`}.`;
    const asks = ideal === null ? "" : `, which asks for ${number(ideal)}`;
    const lead = current.is_captured ? REASONS.captured : score, byRule = `${lead}: ${rank} instead of ${uniform}${range}${most}`;
    const sentence = {
      score: byRule,
      captured: byRule,
      uniform: `The same for every adapted module, whatever its score${score && ` (${score})`}`,
      ceiling: `${lead}${asks}: ${rank} is the most allowed${range}`,
      floor: `${lead}${asks}: ${rank} is the least allowed${range}`,
      "by hand": `Set by hand to ${rank} instead of ${uniform}${score && `; ${score}`}`
    }[reason] ?? `${reason}: ${rank} instead of ${uniform}`;
    return `Rank ${rank}${held(k)}. ${sentence[0].toUpperCase()}${sentence.slice(1)}.`;
  }
  function words(k) {
    const rank = current.ranks[k], lines = [why(k)], of = (name) => about.tabs.find((one) => one.name === name);
    if (rank) {
      lines.push(
        `Scaling ${number(current.scalings[k])}${current.controls.scaling === "nominal" && current.scalings[k] !== 1 ? ", by the score, whatever the rank" : ""}`
      );
    }
    const s = of("sensitivity"), ends2 = s.low ? `, 95 % interval ${percent(s.low[k])} to ${percent(s.high[k])}` : "";
    if (s.values[k] !== null) lines.push(`${percent(s.values[k])} of all scores${ends2}`);
    for (const t of about.tabs) {
      if (["sensitivity", "rank", "change", "scaling"].includes(t.name) || value(t, k) === null) continue;
      lines.push(`${["percent", "signed"].includes(t.kind) ? percent(value(t, k)) : number(value(t, k))} ${t.unit}`);
    }
    return lines;
  }
  function build() {
    const wide = Math.max(320, map.clientWidth), named = Math.max(...about.rows.map((r) => r.length));
    const left = Math.min(6.3 * Math.min(named, 24) + 12, 0.3 * wide), right = 46, columns = about.columns.length;
    const bands = Math.ceil(columns * NARROWEST / (wide - left - right)), each = Math.ceil(columns / bands);
    const w = Math.min(34, (wide - left - right) / each), h = TALL, top = 34, rows = about.rows.length;
    const stack = (row) => row.includes(".") ? row.split(".")[0] : "", gaps = [];
    about.rows.forEach(
      (row, j) => gaps.push(j && stack(row) !== stack(about.rows[j - 1]) ? gaps[j - 1] + 8 : gaps[j - 1] ?? 0)
    );
    const tall = top + rows * h + gaps[rows - 1] + 20;
    const labels = { svg: true, class: "label" }, every = Math.ceil(18 / w);
    svg.replaceChildren();
    for (const [name, v] of Object.entries({
      width: wide,
      height: bands * tall,
      role: "grid",
      "aria-multiselectable": "true",
      "aria-label": "Modules: projections down, layers across. Arrow keys move, plus and minus change the rank, Delete gives it back to the score, X leaves a module out"
    })) svg.setAttribute(name, v);
    cells = [];
    bars = [];
    for (let b = 0; b < bands; b++) {
      const y0 = b * tall + top, first = b * each, here = about.columns.slice(first, first + each);
      const x = (i) => left + w * (i - first), y = (j) => y0 + h * j + gaps[j];
      const head = make("g", { role: "row" }, svg);
      make(
        "text",
        { ...labels, x: left - 6, y: y0 + rows * h + gaps[rows - 1] + 14, "text-anchor": "end", role: "columnheader" },
        head,
        "layer"
      );
      here.forEach((layer, i) => {
        bars.push({
          column: first + i,
          rect: make("rect", { class: "total", x: x(first + i) + 1, width: w - 2 }, svg),
          base: y0 - 3
        });
        const label = make(
          "text",
          {
            ...labels,
            x: x(first + i) + w / 2,
            y: y0 + rows * h + gaps[rows - 1] + 14,
            "text-anchor": "middle",
            role: "columnheader",
            "data-column": first + i,
            "aria-label": `layer ${layer}`
          },
          head,
          (first + i) % every ? "\xB7" : layer
        );
        make("title", { svg: true }, label, `Select layer ${layer}`);
      });
      about.rows.forEach((name, j) => {
        const row = make("g", { role: "row" }, svg), short = name.length > left / 6.3 ? "\u2026" + name.slice(-Math.floor(left / 6.3) + 2) : name;
        const label = make(
          "text",
          { ...labels, x: left - 6, y: y(j) + h / 2 + 4, "text-anchor": "end", role: "rowheader", "data-row": j },
          row,
          short
        );
        make("title", { svg: true }, label, `Select ${name} of all layers`);
        bars.push({
          row: j,
          rect: make("rect", { class: "total", x: left + w * here.length + 4, y: y(j) + 2, height: h - 4 }, svg),
          room: right - 8
        });
        for (let k = 0; k < count; k++) {
          const i = about.column[k];
          if (about.row[k] !== j || i < first || i >= first + each) continue;
          const g = make("g", {
            class: "cell",
            role: "gridcell",
            tabindex: -1,
            "data-k": k,
            transform: `translate(${x(i)} ${y(j)})`
          }, row);
          make("rect", { x: 1, y: 1, width: w - 2, height: h - 2, rx: 2 }, g);
          make("text", {
            svg: true,
            x: w / 2,
            y: h / 2 + 4,
            "text-anchor": "middle",
            "font-size": w < 17 ? 8.5 : w < 22 ? 9.5 : 11
          }, g);
          make("path", { class: "mark" }, g);
          cells[k] = { g, w, h, rect: g.childNodes[0], text: g.childNodes[1], mark: g.childNodes[2] };
        }
      });
    }
    paint();
  }
  const MARKS = {
    // at the ceiling a line above, at the floor one below, a cross where there is no adapter, beside a number a small one
    ceiling: (w) => `M3 3.5H${w - 3}`,
    floor: (w, h) => `M3 ${h - 3.5}H${w - 3}`,
    "left out": (w, h, beside) => beside ? `M${w - 6} 2l4 4m0-4l-4 4` : `M5 5L${w - 5} ${h - 5}M5 ${h - 5}L${w - 5} 5`
  };
  function paint() {
    if (!cells.length) return;
    const t = tab(), values = cells.map((_, k) => value(t, k)), known = values.filter((v) => v !== null);
    const dark = isDark(root), ground = groundOf(dark);
    const diverges = ["ratio", "change", "signed"].includes(t.kind), selected = new Set(model.get("selected"));
    const middle = current.middles[t.name] ?? 1, scaled = (v) => t.kind === "ratio" ? Math.log2(v / middle) : t.kind === "percent" ? Math.sqrt(v) : v;
    const most = { ratio: 3, change: current.rank }[t.kind] ?? (t.curves ? 1 : Math.max(...known.map((v) => Math.abs(scaled(v))), 1e-9));
    cells.forEach((cell, k) => {
      const v = values[k], s = v === null ? 0 : scaled(v) / most, hue = diverges ? s > 0 ? RED : BLUE : GREEN;
      const fill = v === null ? dark ? [58, 58, 58] : [220, 220, 220] : blend(ground, hue, s);
      const written = cell.w < 12 ? "" : text(t, k), reason = current.reasons[k];
      put(cell.rect, "fill", `rgb(${fill})`);
      if (cell.text.textContent !== written) cell.text.textContent = written;
      const ink = inkOn(fill);
      put(cell.text, "fill", ink);
      put(cell.mark, "d", MARKS[reason]?.(cell.w, cell.h, written) ?? "");
      put(cell.mark, "stroke", ink);
      put(cell.g, "class", `cell${reason === "by hand" ? " hand" : ""}${selected.has(k) ? " on" : ""}`);
      put(cell.g, "tabindex", k === focus ? 0 : -1);
      put(cell.g, "aria-selected", selected.has(k));
      put(
        cell.g,
        "aria-label",
        `${place(k)}, rank ${current.ranks[k]}, ${REASONS[reason] ?? reason}${t.of === "ranks" ? "" : `, ${written}`}`
      );
    });
    const mean = (which, place2) => {
      const in_ = values.filter((_, k) => about[which][k] === place2);
      return in_.reduce((a, v) => a + Math.abs(v ?? 0), 0) / (in_.length || 1);
    };
    const columns = about.columns.map((_, i) => mean("column", i)), rows = about.rows.map((_, j) => mean("row", j));
    for (const bar2 of bars) {
      const size2 = bar2.base ? 26 * columns[bar2.column] / (Math.max(...columns) || 1) : bar2.room * rows[bar2.row] / (Math.max(...rows) || 1);
      bar2.rect.setAttribute(bar2.base ? "height" : "width", size2);
      if (bar2.base) bar2.rect.setAttribute("y", bar2.base - size2);
    }
    const ends2 = {
      ratio: [`\u2264 ${number(middle / 2 ** most)}`, number(middle), `\u2265 ${number(middle * 2 ** most)}`],
      change: [`\u2264 ${MINUS}${most}`, "0", `\u2265 +${most}`],
      percent: ["0", percent((most / 2) ** 2), percent(most ** 2)],
      number: ["0", "", number(most)],
      signed: [`${MINUS}${percent(most)}`, "0", `+${percent(most)}`]
    }[t.kind];
    legend.replaceChildren();
    make("span", {}, legend, ends2[0]);
    const ramp = [...diverges ? [BLUE] : [], ground, diverges ? RED : GREEN].map((c) => `rgb(${c})`);
    make("span", { class: "ramp", style: `background: linear-gradient(to right, ${ramp})` }, legend, ends2[1]);
    make(
      "span",
      {},
      legend,
      `${ends2[2]} (${t.unit}; bars: ${["change", "signed"].includes(t.kind) ? "mean size" : "means"})`
    );
    for (const [sign, meaning] of [["dashed", "by hand"], ["over", "the most allowed"], ["under", "the least allowed"], [
      "cross",
      "left out"
    ]]) {
      if (!current.reasons.includes({ over: "ceiling", under: "floor" }[sign] ?? meaning)) continue;
      const entry = make("span", { class: "entry" }, legend);
      make("span", { class: `sign ${sign}` }, entry, sign === "cross" ? "\xD7" : "");
      entry.append(meaning);
      explained(entry, meaning);
    }
    for (const button2 of tablist.children) {
      button2.setAttribute("aria-selected", button2.dataset.tab === t.name);
      button2.setAttribute("tabindex", button2.dataset.tab === t.name ? 0 : -1);
    }
    offer();
    tell();
  }
  function offer() {
    for (const button2 of tablist.children) {
      const { trained, run } = about.tabs.find((one) => one.name === button2.dataset.tab);
      button2.hidden = trained && !model.get("training")?.arms?.[trained] || run && !isOfRun();
    }
  }
  const whole = (n) => Math.abs(n).toLocaleString("en-US"), plus = (n) => (n < 0 ? MINUS : "+") + whole(n);
  function headline() {
    const adapted = current.ranks.filter((rank) => rank), [low, high] = [Math.min(...adapted), Math.max(...adapted)];
    const top = current.ranks.flatMap((rank, k) => rank === high ? [k] : []), unit = current.controls.budget;
    const price = unit === "ranks" ? about.outs.map(() => 1) : about.outs, spent = price.reduce((sum, cost, k) => sum + cost * current.ranks[k], 0);
    const ranks = low === high ? `Every module ${adapted.length < count ? "that is adapted " : ""}gets rank ${high}` : `Ranks from ${low} to ${high} instead of ${current.rank} everywhere; most to ${top.length > 1 ? `${top.length} modules` : place(top[0])}`;
    return `${ranks}. ${whole(spent)} of ${whole(current.rank * price.reduce((sum, cost) => sum + cost, 0))} ${unit === "ranks" ? unit : "trainable parameters"}.`;
  }
  function changes() {
    const moved2 = about.names.flatMap((_, k) => change(k) ? [k] : []).sort(
      (a, b) => Math.abs(change(b)) - Math.abs(change(a))
    );
    if (!moved2.length) return "no rank changed";
    const sum = (of) => moved2.reduce((all2, k) => all2 + of(k), 0), adapted = current.ranks.filter((rank, k) => rank || current.kept[k]).length;
    const more2 = sum((k) => Math.max(0, change(k))), fewer = -sum((k) => Math.min(0, change(k))), grown = sum((k) => change(k) * about.outs[k]);
    const why2 = grown && more2 === fewer ? " (a rank costs more in modules with more outputs)" : "";
    const judge = `Only training tells whether that is better: ${page ? "tlora race" : "Train both"}`;
    return `${moved2.length} of ${adapted} modules changed, ${whole(more2)} ranks more and ${whole(fewer)} fewer, ${plus(grown)} trainable parameters${why2}; most: ${moved2.slice(0, 3).map((k) => `${plus(change(k))} ${place(k)}`).join(", ")}. ${judge}`;
  }
  function costs() {
    const sizes = (ranks, trainsA) => {
      const b = ranks.reduce((sum, rank, k) => sum + rank * about.outs[k], 0), a = ranks.reduce((sum, rank, k) => sum + rank * about.ins[k], 0), trained = trainsA ? a + b : b;
      return [trained, 4 * (a + b), 8 * trained, about.peak?.[Number(trainsA)] + 4 * (a + b) + 12 * trained];
    };
    const [kept, now, lora] = [
      sizes(current.kept, false),
      sizes(current.ranks, false),
      sizes(current.ranks.map(() => current.rank), true)
    ];
    const names = [
      "trainable parameters",
      "adapter, float32",
      "AdamW states, float32",
      ...about.peak ? ["peak memory of training"] : []
    ];
    return names.map((name, i) => {
      const write = i ? sizeText : whole;
      return [name, write(kept[i]), write(now[i]), percent(now[i] / kept[i]), write(lora[i])];
    });
  }
  function warning() {
    const adapted = current.ranks.filter((rank) => rank).length, full = current.ranks.filter((rank, k) => rank && rank === current.most[k]).length;
    return 2 * full < adapted ? "" : `${full} of ${adapted} modules have the highest rank allowed, so the ${current.is_captured ? "gradient decides" : "scores decide"} little: lower the rank, or raise max_rank, and with it that of tlora.task_subspaces.`;
  }
  function tell() {
    const k = model.get("selected").at(-1), many = model.get("selected").length;
    said.replaceChildren();
    if (k !== void 0) {
      make("h2", {}, said, place(k) + (many > 1 ? `, and ${many - 1} more selected` : ""));
      make("div", { class: "name" }, said, about.names[k]);
      words(k).forEach((line2, i) => make("div", i ? {} : { class: "why" }, said, line2));
      charts.draw({ k, place: place(k), rank: current.ranks[k], counts: model.get("resampled")?.[k] });
    }
    message.textContent = current.message || warning();
    message.classList.toggle("note", Boolean(current.note));
    finding.textContent = headline();
    table.replaceChildren();
    const head = make("tr", {}, make("thead", {}, table)), rows = make("tbody", {}, table);
    for (const name of ["", "kept", "new", "new, of kept", `LoRA, rank ${current.rank}`]) {
      explained(make(name ? "th" : "td", name ? { scope: "col" } : {}, head, name), name.replace(/^LoRA.*/, "lora"));
    }
    for (const cells2 of costs()) {
      cells2.reduce(
        (tr, cell, i) => (explained(make(i ? "td" : "th", i ? {} : { scope: "row" }, tr, cell), i ? "" : cell), tr),
        make("tr", {}, rows)
      );
    }
    moved.textContent = `Since it was kept: ${changes()}.`;
    if (about.run && !isOfRun()) make("div", {}, moved, OTHER_RUN);
    line.textContent = current.code;
    for (const [name, control2] of Object.entries(controls)) {
      const now = current.controls[name];
      if (control2.held) continue;
      control2.disabled = now === null;
      control2.value = now ?? "";
      if (control2.output) control2.output.textContent = now;
    }
    [undo.disabled, redo.disabled] = [!current.undo, !current.redo];
    race?.(current);
    refresh?.(current);
  }
  const controls = {};
  function control(name, label, tag, attributes, options = []) {
    const box = explained(make("label", { class: "control" }, bar, label)), input = make(tag, attributes, box);
    for (const option of options) make("option", {}, input, option);
    if (attributes.type === "range") input.output = make("output", {}, box);
    let gesture = ++gestures;
    input.addEventListener(attributes.type === "number" || tag === "select" ? "change" : "input", () => {
      const now = tag === "select" ? input.value : Number(input.value);
      if (attributes.type === "number" && (input.value === "" || !input.validity.valid)) return tell();
      input.held = attributes.type === "range";
      if (input.output) input.output.textContent = input.value;
      ask("set", { [name]: now }, `control ${gesture}`);
    });
    input.addEventListener("change", () => {
      gesture = ++gestures;
      input.held = false;
      if (!busy && !queue.length) tell();
    });
    input.addEventListener("blur", () => {
      input.held = false;
    });
    controls[name] = input;
  }
  function button(parent, label, title, action) {
    const element = describe(make("button", { type: "button" }, parent, label), title);
    element.addEventListener("click", action);
    return element;
  }
  if (!page) {
    control("budget", "Budget", "select", {}, ["ranks", "parameters"]);
    control("scaling", "Scaling", "select", {}, ["nominal", "allocated"]);
  }
  control("rank", "Rank", "input", { type: "range", min: 1, max: about.most, step: 1 });
  control("temperature", "Temperature", "input", { type: "range", min: 0, max: 1, step: 1 / about.steps });
  if (!page) {
    control("min_rank", "min_rank", "input", { type: "number", min: 0, max: about.most });
    control("max_rank", "max_rank", "input", { type: "number", min: 1, max: about.most });
    const presets = make("span", { class: "group", role: "group", "aria-label": "Presets" }, bar);
    for (const [name, meaning] of Object.entries(about.presets)) {
      button(presets, name, meaning, () => ask("preset", { name }));
    }
  }
  const steps = make("span", { class: "group", role: "group", "aria-label": "History" }, bar);
  const undo = button(steps, "Undo", "Take the last change back (Ctrl+Z)", () => ask("undo"));
  const redo = button(steps, "Redo", "Repeat it (Ctrl+Shift+Z)", () => ask("redo"));
  if (!page) button(steps, "Keep", "Count changes from here on", () => ask("keep"));
  for (const t of about.tabs) {
    if (page && t.trained) continue;
    const element = explained(
      make("button", { type: "button", role: "tab", "data-tab": t.name }, tablist, t.title),
      t.of === "ranks" ? "rank" : t.name === "overlap" ? "overlap" : t.title
    );
    element.addEventListener("click", () => show(t.name));
  }
  onArrows(tablist, (target) => show(target.dataset.tab));
  function show(name) {
    model.set("tab", name);
    model.save_changes();
    paint();
  }
  const said = make("div", { class: "said", "aria-live": "polite" }, side), charts = moduleCharts(about, { spectrum: 0 });
  side.appendChild(charts.root);
  const finding = make("div", { class: "finding" }, foot), copied = make("div", { class: "copied" }, foot);
  const line = copyable(copied), out = make("span", { class: "group" }, foot);
  const table = make("table", {}, foot), moved = make("div", { class: "moved" }, foot);
  button(
    out,
    "SVG",
    "Download the map as a vector picture",
    () => download("allocation.svg", new Blob([picture()], { type: "image/svg+xml" }))
  );
  button(out, "PNG", "Download the map as a picture", png);
  if (!page) {
    button(
      out,
      "Page",
      "Download a page that shows the map without a kernel",
      () => ask("page", { texts: hasTexts && confirm(TEXTS_ASKED) })
    );
    button(
      out,
      `Save session, ${about.session}`,
      "Write the results and the allocation to the folder workbench-session; covariances are not in it",
      () => ask("save")
    );
  }
  const race = page ? null : racePanel(body, { about, model, ask, width: () => map.clientWidth || 400 });
  let refresh = null;
  model.on("msg:custom", receive);
  const panels = make("div", { class: "panels" }, root);
  if (about.panels.length) {
    refresh = page ? panelSections(panels, about, current, model, ask) : panelTabs(panels, about, model, ask);
  }
  const at = (event) => {
    const g = el.getRootNode().elementFromPoint(event.clientX, event.clientY)?.closest(".cell");
    return g && svg.contains(g) ? Number(g.dataset.k) : null;
  };
  const all = (which, place2) => about[which].flatMap((p, k) => p === place2 ? [k] : []);
  function select(modules, last = modules.at(-1)) {
    if (last === void 0) return;
    focus = last;
    model.set("selected", [...modules.filter((k) => k !== last), last]);
    model.save_changes();
    paint();
  }
  function inform(k, x, y) {
    tip.replaceChildren();
    make("b", {}, tip, place(k));
    make("div", {}, tip, brief(k));
    const box = root.getBoundingClientRect();
    tip.style.display = "block";
    tip.style.left = `${Math.max(0, Math.min(x - box.left + 14, box.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${y - box.top + 16}px`;
  }
  svg.addEventListener("pointerdown", (event) => {
    const { row, column } = event.target.dataset;
    if (row !== void 0) return select(all("row", Number(row)));
    if (column !== void 0) return select(all("column", Number(column)));
    const k = at(event);
    if (k === null || event.button) return;
    event.preventDefault();
    cells[k].g.focus({ preventScroll: true });
    const before = model.get("selected");
    if (event.shiftKey) return select(all("row", about.row[k]), k);
    if (event.ctrlKey || event.metaKey) {
      return select(before.includes(k) ? before.filter((one) => one !== k) : [...before, k]);
    }
    if (!before.includes(k)) select([k]);
    else select(before, k);
    drag = { k, y: event.clientY, rank: current.ranks[k], last: current.ranks[k], gesture: `drag ${++gestures}` };
    svg.setPointerCapture(event.pointerId);
    tip.style.display = "none";
  });
  svg.addEventListener("pointermove", (event) => {
    if (drag) {
      const by = Math.round((drag.y - event.clientY) / 4);
      const rank = by ? Math.max(1, Math.min(about.most, drag.rank + by)) : drag.rank;
      if (rank === drag.last) return;
      drag.last = rank;
      return ask("set_rank", { modules: model.get("selected"), rank }, drag.gesture);
    }
    const k = at(event);
    if (k === null) tip.style.display = "none";
    else inform(k, event.clientX, event.clientY);
  });
  svg.addEventListener("pointerleave", () => {
    tip.style.display = "none";
  });
  for (const end of ["pointerup", "pointercancel"]) {
    svg.addEventListener(end, () => {
      if (drag && drag.last === drag.rank && model.get("selected").length > 1) select([drag.k]);
      drag = null;
      idle();
    });
  }
  svg.addEventListener("dblclick", (event) => {
    if (at(event) !== null) ask("release", { modules: [at(event)] });
  });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    const step = { "+": 1, "=": 1, "-": -1 }[event.key] ?? (event.altKey && move ? -move[1] : 0), modules = model.get("selected");
    if (step) ask("set_rank", { modules, rank: Math.max(1, current.ranks[focus] + step) });
    else if (move && !event.altKey) {
      let [i, j] = [about.column[focus], about.row[focus]], k = -1;
      while (k < 0 && i >= 0 && j >= 0 && i < about.columns.length && j < about.rows.length) {
        [i, j] = [i + move[0], j + move[1]];
        k = cells.findIndex((_, one) => about.column[one] === i && about.row[one] === j);
      }
      if (k >= 0) {
        select(event.shiftKey ? [.../* @__PURE__ */ new Set([...modules, k])] : [k], k);
        cells[k].g.focus();
      }
    } else if (event.key === " " && (event.shiftKey || event.ctrlKey)) {
      select(event.shiftKey ? all("row", about.row[focus]) : all("column", about.column[focus]), focus);
    } else if (event.key === "Escape") select([focus]);
    else if (["Delete", "Backspace"].includes(event.key)) ask("release", { modules });
    else if (event.key === "x") ask("leave_out", { modules });
    else return;
    event.preventDefault();
  });
  root.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && "zy".includes(key) && event.target.type !== "number") {
      ask(key === "y" || event.shiftKey ? "redo" : "undo");
      event.preventDefault();
    }
    event.stopPropagation();
  });
  function picture() {
    const copy = svg.cloneNode(true), from = [svg, ...svg.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
    from.forEach((one, i) => {
      const look = getComputedStyle(one);
      for (const name of ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-family", "font-size"]) {
        to[i].style[name] = look[name];
      }
    });
    const ground = `rgb(${groundOf(isDark(root))})`;
    copy.prepend(make("rect", { width: "100%", height: "100%", fill: ground }));
    return new XMLSerializer().serializeToString(copy);
  }
  function png() {
    const drawn = new Image(), scale = 2;
    drawn.onload = () => {
      const canvas = make("canvas", { width: scale * svg.clientWidth, height: scale * svg.clientHeight });
      canvas.getContext("2d").drawImage(drawn, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => download("allocation.png", blob));
    };
    drawn.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(picture());
  }
  model.on("change:current", () => {
    const ranks = current.ranks;
    current = model.get("current");
    paint();
    if (ranks.some((r, k) => r !== current.ranks[k])) changed();
  });
  model.on("change:tab", paint);
  model.on("change:selected", () => {
    focus = model.get("selected").at(-1) ?? focus;
    paint();
  });
  model.on("change:resampled", tell);
  model.on("change:training", () => tab().trained ? paint() : offer());
  let width = 0;
  const resized = new ResizeObserver(() => {
    if (map.clientWidth && map.clientWidth !== width) {
      width = map.clientWidth;
      build();
    }
  });
  const themed = new MutationObserver(paint);
  resized.observe(map);
  themed.observe(document.body, { attributes: true });
  idle();
  return () => {
    resized.disconnect();
    themed.disconnect();
    clearTimeout(timer);
  };
}

// allocate.js
function refuse() {
  throw new RangeError("the limits cannot be met");
}
var total = (units, costs) => units.reduce((sum, count, i) => sum + count * costs[i], 0);
function integers(values) {
  const bits = values.map((value) => new DataView(new Float64Array([value]).buffer).getBigUint64(0, true));
  const powers = bits.map((b) => Math.max(1, Number(b >> 52n))), least = Math.min(...powers.filter((_, i) => values[i]), 2046);
  return {
    least,
    numerators: bits.map((b, i) => values[i] ? (b & 0xfffffffffffffn | (b >> 52n ? 1n << 52n : 0n)) << BigInt(powers[i] - least) : 0n)
  };
}
function exactSum(values) {
  const { least, numerators } = integers(values);
  return Number(numerators.reduce((a, b) => a + b, 0n)) * 2 ** (least - 1075);
}
var roundEven = (x) => Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);
function apportion(weights, budget, low, high, costs = weights.map(() => 1)) {
  if (total(low, costs) > budget) refuse();
  budget = Math.min(budget, total(high, costs));
  const full = weights.map((weight, i) => weight ? high[i] : low[i]);
  if (total(full, costs) <= budget) [low, weights] = [full, weights.map(() => 1)];
  const { numerators } = integers(weights), [floor, ceiling, cost] = [low, high, costs].map((column) => column.map(BigInt));
  const sum = (members, of) => members.reduce((all, i) => all + of(i), 0n);
  let free = [...weights.keys()], rest = BigInt(budget), scale;
  for (; ; ) {
    scale = sum(free, (i) => numerators[i] * cost[i]);
    const beyond = (limit2) => (i) => numerators[i] * rest - limit2[i] * scale, over = beyond(ceiling), under = beyond(floor);
    const cut = free.filter((i) => over(i) > 0n), raised = free.filter((i) => under(i) < 0n);
    const surplus = sum(cut, (i) => over(i) * cost[i]) + sum(raised, (i) => under(i) * cost[i]);
    if (!surplus) break;
    const [fixed, limit] = surplus > 0n ? [new Set(cut), ceiling] : [new Set(raised), floor];
    rest -= sum([...fixed], (i) => limit[i] * cost[i]);
    free = free.filter((i) => !fixed.has(i));
  }
  const units = numerators.map(
    (numerator, i) => Math.min(Math.max(Number(numerator * rest / scale), low[i]), high[i])
  );
  const lack = (i) => BigInt(units[i]) * scale - numerators[i] * rest, lacks = units.map((_, i) => lack(i));
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
function allocate(rule, about) {
  const { rank, edits, scores, temperature } = rule, kept = scores.flatMap((_, k) => rule.excluded.includes(k) ? [] : [k]);
  const price = rule.budget === "ranks" ? scores.map(() => 1) : about.outs, budget = rank * price.reduce((a, b) => a + b, 0);
  const [costs, floors, ceilings] = [price, rule.floors, rule.ceilings].map((column) => kept.map((k) => column[k]));
  const low = kept.map((k, i) => edits[k] ?? floors[i]), high = kept.map((k, i) => edits[k] ?? ceilings[i]);
  if (!kept.some((k) => scores[k]) || low.some((least, i) => least > ceilings[i])) refuse();
  if (total(low, costs) > budget || budget - total(high, costs) >= Math.max(...costs)) refuse();
  const powers = kept.map((k) => scores[k] ** temperature), weights = rule.adapt_ranks ? powers : kept.map(() => 1);
  const energies = rule.energies && kept.map((k) => rule.energies[k]), known = energies?.map((one) => one.length);
  const shares = energies ? apportionByGain(energies, budget, low, high, costs) : apportion(weights, budget, low, high, costs);
  const alpha = rule.alpha ?? rank, sum = exactSum(powers), cost = exactSum(weights.map((weight, i) => weight * costs[i]));
  const asked = energies ? apportionByGain(energies, budget, kept.map(() => 0), known, costs) : weights.map((weight) => budget * weight / cost);
  const alphas = powers.map((power) => rule.adapt_scales ? Math.max(alpha, roundEven(alpha * powers.length * power / sum)) : alpha);
  const found = {
    rank,
    ranks: scores.map(() => 0),
    scalings: scores.map(() => null),
    ideals: scores.map(() => null),
    most: scores.map(() => 0),
    reasons: scores.map(() => "left out")
  };
  kept.forEach((k, i) => {
    found.most[k] = high[i];
    if (!shares[i]) return;
    const isOpen = energies && asked[i] === known[i] && known[i] < Math.min(about.outs[k], about.ins[k]);
    const ideal = isOpen ? Infinity : asked[i], byRule = energies ? "captured" : temperature && rule.adapt_ranks ? "score" : "uniform";
    found.ranks[k] = shares[i];
    found.ideals[k] = isOpen ? null : ideal;
    found.scalings[k] = alphas[i] / (rule.scaling === "allocated" ? shares[i] : rank);
    found.reasons[k] = k in edits ? "by hand" : shares[i] === high[i] && high[i] < ideal ? "ceiling" : shares[i] === low[i] && low[i] > ideal ? "floor" : byRule;
  });
  return { ...found, middles: { rank, scaling: alpha / rank } };
}

// offline.js
function allocationCode(rule, about) {
  const quoted2 = (k) => `'${about.names[k]}'`, edits = Object.entries(rule.edits), values = {
    ...rule.code,
    rank: rule.rank,
    temperature: Number.isInteger(rule.temperature) ? rule.temperature.toFixed(1) : rule.temperature
  };
  if (rule.temperature === 1) delete values.temperature;
  if (rule.changed) values.exclude_modules = `[${rule.excluded.map(quoted2).join(", ")}]`;
  if (!rule.excluded.length) delete values.exclude_modules;
  const call = `tlora.allocate(${["calibration.sensitivity", ...Object.entries(values).map(([name, value]) => `${name}=${value}`)].join(", ")})`;
  return call + (edits.length ? `.edit({${edits.map(([k, rank]) => `${quoted2(k)}: ${rank}`).join(", ")}})` : "");
}
var WRITTEN = "These tables show the allocation that the page was written with: they do not follow changes.";
var REFUSED = "The budget, the limits and the ranks set by hand do not allow this.";
function offline(data) {
  const about = { ...data.about, page: true }, values = { ...data, about }, listeners = {}, past = [], future = [];
  const tell = (name, ...args) => (listeners[name] ?? []).forEach((listener) => listener(...args));
  let rule = data.rule, last = null;
  function show(now, message = "") {
    const found = allocate(now, about);
    rule = now;
    values.resampled = [];
    values.current = {
      ...data.current,
      ...found,
      message,
      code: allocationCode(rule, about),
      undo: past.length,
      redo: future.length,
      controls: {
        ...data.current.controls,
        rank: rule.rank,
        temperature: data.current.controls.temperature === null ? null : rule.temperature
      },
      allocation: [{ kind: "text", text: WRITTEN }, ...data.current.allocation]
    };
    tell("change:current");
  }
  function move(now, gesture = null, message = "") {
    allocate(now, about);
    if (gesture === null || gesture !== last) past.push(rule);
    last = gesture;
    future.length = 0;
    show(now, message);
  }
  function decide(modules, { rank = null, out = false } = {}) {
    const edits = Object.fromEntries(Object.entries(rule.edits).filter(([k]) => !modules.includes(Number(k))));
    if (rank) {
      for (const k of modules) edits[k] = rank;
    }
    const excluded = rule.excluded.filter((k) => !modules.includes(k)).concat(out ? modules : []).sort((a, b) => a - b);
    return { ...rule, edits, excluded, changed: rule.changed || out || excluded.length < rule.excluded.length };
  }
  function drag(modules, rank, gesture) {
    const present = values.current.ranks[modules[0]] || 1, step = Math.sign(rank - present);
    const isRefused = (one) => {
      try {
        allocate(decide(modules, { rank: one }), about);
      } catch (error) {
        if (error instanceof RangeError) return true;
        throw error;
      }
      return false;
    };
    if (!isRefused(rank)) return move(decide(modules, { rank }), gesture);
    let [low, high] = [0, Math.abs(rank - present)];
    while (low < high) {
      const middle = low + high >> 1;
      if (isRefused(present + step * middle)) high = middle;
      else low = middle + 1;
    }
    if (!low) refuse();
    const nearest = present + step * (low - 1);
    move(
      decide(modules, { rank: nearest }),
      gesture,
      `Rank ${rank} does not fit the budget and the limits: ${nearest} is the nearest that does.`
    );
  }
  function back(from, to) {
    if (!from.length) return;
    to.push(rule);
    last = null;
    show(from.pop());
  }
  const answers = {
    read: ({ module }) => {
      values.reading = data.readings[module];
      tell("change:reading");
    },
    set: (options, gesture) => move({ ...rule, ...options }, gesture),
    set_rank: ({ modules, rank }, gesture) => drag(modules, rank, gesture),
    release: ({ modules }) => move(decide(modules)),
    leave_out: ({ modules }) => move(decide(modules, { out: true })),
    undo: () => back(past, future),
    redo: () => back(future, past)
  };
  return {
    get: (name) => values[name],
    set: (name, value) => {
      values[name] = value;
      tell(`change:${name}`);
    },
    save_changes: () => {
    },
    on: (name, listener) => {
      (listeners[name] ??= []).push(listener);
    },
    send: ({ call, args, gesture = null, id }) => {
      try {
        answers[call](args, gesture);
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        show(rule, REFUSED);
      }
      tell("msg:custom", { answer: id });
    }
  };
}

// page.js
function renderPage(data, el) {
  if (data.about.names.length) return renderWorkbench({ model: offline(data), el });
  panelSections(make("div", { class: "tlora" }, el), data.about, {}, null);
}

// widgets.js
function render({ model, el }) {
  return model.get("about") ? renderWorkbench({ model, el }) : renderMonitor({ model, el });
}
var widgets_default = { render };
export {
  widgets_default as default,
  offline,
  renderPage
};
