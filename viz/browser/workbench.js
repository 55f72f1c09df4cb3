import { blend, BLUE, GREEN, groundOf, inkOn, isDark, RED } from "./colors.js";
import { copyable } from "./controls.js";
import { download, make, onArrows, put } from "./elements.js";
import { describe, explained, explainer } from "./explain.js";
import { TALL } from "./grid.js";
import { guide } from "./guide.js";
import { moduleCharts } from "./module_charts.js";
import { panelSections, panelTabs } from "./panels/panels.js";
import { racePanel } from "./race.js";
import { MINUS, number, percent, signed, sizeText } from "./text.js";

const OTHER_RUN =
  "The run was trained with other ranks than these: what it used of them is in the panels Training and Rank use, not on the map.";
const TEXTS_ASKED = "Include the panels with the text of samples in the page?";
const NARROWEST = 14; // pixels of a cell
export function renderWorkbench({ model, el }) {
  const about = model.get("about"),
    page = Boolean(about.page),
    count = about.names.length,
    hasTexts = about.panels.some(({ parts }) =>
      parts.some(({ kind }) => ["reads", "attribution", "effects"].includes(kind))
    );
  const root = make("div", { class: "tlora", "data-lm-suppress-shortcuts": "true" }, el); // typing stays in here
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
  // --- Requests: one is under way at a time; of those that one gesture makes only the last has to be sent.
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
  function idle() { // when the user rests, ranks from resampled scores, in parts: the next request does not wait for all
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
  // --- What the tabs show.
  const tab = () => about.tabs.find((one) => one.name === model.get("tab") && (!one.run || isOfRun())) ?? about.tabs[1];
  const change = (k) => current.ranks[k] - current.kept[k];
  const isOfRun = () => about.run?.every((rank, k) => rank === current.ranks[k]); // else the run says nothing about these ranks
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
    floor: "the least allowed",
  };
  const place = (k) => `layer ${about.columns[about.column[k]]} ${about.rows[about.row[k]]}`;
  const held = (k) => (change(k) ? ` (kept: ${current.kept[k]})` : "");
  const brief = (
    k,
  ) => (current.ranks[k]
    ? `Rank ${current.ranks[k]}${held(k)}, ${REASONS[current.reasons[k]] ?? current.reasons[k]}`
    : `Left out: no adapter${held(k)}`);
  function why(k) { // the reason of a rank, with its numbers
    const rank = current.ranks[k], reason = current.reasons[k], uniform = current.rank, ideal = current.ideals[k];
    const scores = about.tabs.find((one) => one.name === "sensitivity").values,
      mean = scores.reduce((sum, v) => sum + (v ?? 0), 0) / count;
    const score = scores[k] === null || !mean ? "" : `score ${number(scores[k] / mean)} \u00d7 the mean`;
    const drawn = model.get("resampled")?.[k] ?? [],
      range = drawn.length ? `; ${[...new Set([drawn[0][0], drawn.at(-1)[0]])].join(" to ")} on other samples` : "";
    const most = `; at most ${current.most[k]}`;
    if (!rank) return `Left out: no adapter${held(k)}${score && `, ${score}`}.`;
    const asks = ideal === null ? "" : `, which asks for ${number(ideal)}`;
    const lead = current.is_captured ? REASONS.captured : score,
      byRule = `${lead}: ${rank} instead of ${uniform}${range}${most}`;
    const sentence = {
      score: byRule,
      captured: byRule,
      uniform: `The same for every adapted module, whatever its score${score && ` (${score})`}`,
      ceiling: `${lead}${asks}: ${rank} is the most allowed${range}`,
      floor: `${lead}${asks}: ${rank} is the least allowed${range}`,
      "by hand": `Set by hand to ${rank} instead of ${uniform}${score && `; ${score}`}`,
    }[reason] ?? `${reason}: ${rank} instead of ${uniform}`;
    return `Rank ${rank}${held(k)}. ${sentence[0].toUpperCase()}${sentence.slice(1)}.`;
  }
  function words(k) { // everything that is known of a module
    const rank = current.ranks[k], lines = [why(k)], of = (name) => about.tabs.find((one) => one.name === name);
    if (rank) {
      lines.push(
        `Scaling ${number(current.scalings[k])}${
          current.controls.scaling === "nominal" && current.scalings[k] !== 1 ? ", by the score, whatever the rank" : ""
        }`,
      );
    }
    const s = of("sensitivity"), ends = s.low ? `, 95 % interval ${percent(s.low[k])} to ${percent(s.high[k])}` : "";
    if (s.values[k] !== null) lines.push(`${percent(s.values[k])} of all scores${ends}`);
    for (const t of about.tabs) {
      if (["sensitivity", "rank", "change", "scaling"].includes(t.name) || value(t, k) === null) continue;
      lines.push(`${["percent", "signed"].includes(t.kind) ? percent(value(t, k)) : number(value(t, k))} ${t.unit}`);
    }
    return lines;
  }
  // --- The map. Where the page is too narrow for all layers, they go on in a second band below.
  function build() {
    const wide = Math.max(320, map.clientWidth), named = Math.max(...about.rows.map((r) => r.length));
    const left = Math.min(6.3 * Math.min(named, 24) + 12, 0.3 * wide), right = 46, columns = about.columns.length;
    const bands = Math.ceil((columns * NARROWEST) / (wide - left - right)), each = Math.ceil(columns / bands);
    const w = Math.min(34, (wide - left - right) / each), h = TALL, top = 34, rows = about.rows.length;
    const stack = (row) => (row.includes(".") ? row.split(".")[0] : ""), gaps = []; // encoder and decoder stand apart
    about.rows.forEach((row, j) =>
      gaps.push(j && stack(row) !== stack(about.rows[j - 1]) ? gaps[j - 1] + 8 : gaps[j - 1] ?? 0)
    );
    const tall = top + rows * h + gaps[rows - 1] + 20;
    const labels = { svg: true, class: "label" }, every = Math.ceil(18 / w);
    svg.replaceChildren();
    for (
      const [name, v] of Object.entries({
        width: wide,
        height: bands * tall,
        role: "grid",
        "aria-multiselectable": "true",
        "aria-label": "Modules: projections down, layers across. Arrow keys move, plus and minus change the rank, " +
          "Delete gives it back to the score, X leaves a module out",
      })
    ) svg.setAttribute(name, v);
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
        "layer",
      );
      here.forEach((layer, i) => {
        bars.push({
          column: first + i,
          rect: make("rect", { class: "total", x: x(first + i) + 1, width: w - 2 }, svg),
          base: y0 - 3,
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
            "aria-label": `layer ${layer}`,
          },
          head,
          (first + i) % every ? "\u00b7" : layer,
        );
        make("title", { svg: true }, label, `Select layer ${layer}`);
      });
      about.rows.forEach((name, j) => {
        const row = make("g", { role: "row" }, svg),
          short = name.length > left / 6.3 ? "\u2026" + name.slice(-Math.floor(left / 6.3) + 2) : name;
        const label = make(
          "text",
          { ...labels, x: left - 6, y: y(j) + h / 2 + 4, "text-anchor": "end", role: "rowheader", "data-row": j },
          row,
          short,
        );
        make("title", { svg: true }, label, `Select ${name} of all layers`);
        bars.push({
          row: j,
          rect: make("rect", { class: "total", x: left + w * here.length + 4, y: y(j) + 2, height: h - 4 }, svg),
          room: right - 8,
        });
        for (let k = 0; k < count; k++) {
          const i = about.column[k];
          if (about.row[k] !== j || i < first || i >= first + each) continue;
          const g = make("g", {
            class: "cell",
            role: "gridcell",
            tabindex: -1,
            "data-k": k,
            transform: `translate(${x(i)} ${y(j)})`,
          }, row);
          make("rect", { x: 1, y: 1, width: w - 2, height: h - 2, rx: 2 }, g);
          make("text", {
            svg: true,
            x: w / 2,
            y: h / 2 + 4,
            "text-anchor": "middle",
            "font-size": w < 17 ? 8.5 : w < 22 ? 9.5 : 11,
          }, g);
          make("path", { class: "mark" }, g);
          cells[k] = { g, w, h, rect: g.childNodes[0], text: g.childNodes[1], mark: g.childNodes[2] };
        }
      });
    }
    paint();
  }
  const MARKS = { // at the ceiling a line above, at the floor one below, a cross where there is no adapter, beside a number a small one
    ceiling: (w) => `M3 3.5H${w - 3}`,
    floor: (w, h) => `M3 ${h - 3.5}H${w - 3}`,
    "left out": (
      w,
      h,
      beside,
    ) => (beside ? `M${w - 6} 2l4 4m0-4l-4 4` : `M5 5L${w - 5} ${h - 5}M5 ${h - 5}L${w - 5} 5`),
  };
  function paint() {
    if (!cells.length) return;
    const t = tab(), values = cells.map((_, k) => value(t, k)), known = values.filter((v) => v !== null);
    const dark = isDark(root), ground = groundOf(dark);
    const diverges = ["ratio", "change", "signed"].includes(t.kind), selected = new Set(model.get("selected"));
    const middle = current.middles[t.name] ?? 1,
      scaled = (v) => (t.kind === "ratio" ? Math.log2(v / middle) : t.kind === "percent" ? Math.sqrt(v) : v);
    const most = { ratio: 3, change: current.rank }[t.kind] ??
      (t.curves ? 1 : Math.max(...known.map((v) => Math.abs(scaled(v))), 1e-9)); // the same for all allocations
    cells.forEach((cell, k) => {
      const v = values[k], s = v === null ? 0 : scaled(v) / most, hue = diverges ? (s > 0 ? RED : BLUE) : GREEN;
      const fill = v === null ? (dark ? [58, 58, 58] : [220, 220, 220]) : blend(ground, hue, s);
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
        `${place(k)}, rank ${current.ranks[k]}, ${REASONS[reason] ?? reason}${t.of === "ranks" ? "" : `, ${written}`}`,
      );
    });
    const mean = (which, place) => {
      const in_ = values.filter((_, k) => about[which][k] === place);
      return in_.reduce((a, v) => a + Math.abs(v ?? 0), 0) / (in_.length || 1);
    };
    const columns = about.columns.map((_, i) => mean("column", i)), rows = about.rows.map((_, j) => mean("row", j));
    for (const bar of bars) {
      const size = bar.base
        ? 26 * columns[bar.column] / (Math.max(...columns) || 1)
        : bar.room * rows[bar.row] / (Math.max(...rows) || 1);
      bar.rect.setAttribute(bar.base ? "height" : "width", size);
      if (bar.base) bar.rect.setAttribute("y", bar.base - size);
    }
    const ends = {
      ratio: [`\u2264 ${number(middle / 2 ** most)}`, number(middle), `\u2265 ${number(middle * 2 ** most)}`],
      change: [`\u2264 ${MINUS}${most}`, "0", `\u2265 +${most}`],
      percent: ["0", percent((most / 2) ** 2), percent(most ** 2)],
      number: ["0", "", number(most)],
      signed: [`${MINUS}${percent(most)}`, "0", `+${percent(most)}`],
    }[t.kind];
    legend.replaceChildren();
    make("span", {}, legend, ends[0]);
    const ramp = [...(diverges ? [BLUE] : []), ground, diverges ? RED : GREEN].map((c) => `rgb(${c})`);
    make("span", { class: "ramp", style: `background: linear-gradient(to right, ${ramp})` }, legend, ends[1]);
    make(
      "span",
      {},
      legend,
      `${ends[2]} (${t.unit}; bars: ${["change", "signed"].includes(t.kind) ? "mean size" : "means"})`,
    );
    for (
      const [sign, meaning] of [["dashed", "by hand"], ["over", "the most allowed"], ["under", "the least allowed"], [
        "cross",
        "left out",
      ]]
    ) {
      if (!current.reasons.includes({ over: "ceiling", under: "floor" }[sign] ?? meaning)) continue;
      const entry = make("span", { class: "entry" }, legend);
      make("span", { class: `sign ${sign}` }, entry, sign === "cross" ? "\u00d7" : "");
      entry.append(meaning);
      explained(entry, meaning);
    }
    for (const button of tablist.children) {
      button.setAttribute("aria-selected", button.dataset.tab === t.name);
      button.setAttribute("tabindex", button.dataset.tab === t.name ? 0 : -1);
    }
    offer();
    tell();
  }
  function offer() { // tabs of what has been trained
    for (const button of tablist.children) {
      const { trained, run } = about.tabs.find((one) => one.name === button.dataset.tab);
      button.hidden = (trained && !model.get("training")?.arms?.[trained]) || (run && !isOfRun());
    }
  }
  const whole = (n) => Math.abs(n).toLocaleString("en-US"), plus = (n) => (n < 0 ? MINUS : "+") + whole(n);
  function headline() {
    const adapted = current.ranks.filter((rank) => rank), [low, high] = [Math.min(...adapted), Math.max(...adapted)];
    const top = current.ranks.flatMap((rank, k) => (rank === high ? [k] : [])), unit = current.controls.budget;
    const price = unit === "ranks" ? about.outs.map(() => 1) : about.outs,
      spent = price.reduce((sum, cost, k) => sum + cost * current.ranks[k], 0);
    const ranks = low === high
      ? `Every module ${adapted.length < count ? "that is adapted " : ""}gets rank ${high}`
      : `Ranks from ${low} to ${high} instead of ${current.rank} everywhere; most to ${
        top.length > 1 ? `${top.length} modules` : place(top[0])
      }`;
    return `${ranks}. ${whole(spent)} of ${whole(current.rank * price.reduce((sum, cost) => sum + cost, 0))} ${
      unit === "ranks" ? unit : "trainable parameters"
    }.`;
  }
  function changes() { // how many modules, by how much, and which most
    const moved = about.names.flatMap((_, k) => (change(k) ? [k] : [])).sort((a, b) =>
      Math.abs(change(b)) - Math.abs(change(a))
    );
    if (!moved.length) return "no rank changed";
    const sum = (of) => moved.reduce((all, k) => all + of(k), 0),
      adapted = current.ranks.filter((rank, k) => rank || current.kept[k]).length;
    const more = sum((k) => Math.max(0, change(k))),
      fewer = -sum((k) => Math.min(0, change(k))),
      grown = sum((k) => change(k) * about.outs[k]);
    const why = grown && more === fewer ? " (a rank costs more in modules with more outputs)" : "";
    const judge = `Only training tells whether that is better: ${page ? "tlora race" : "Train both"}`;
    return `${moved.length} of ${adapted} modules changed, ${whole(more)} ranks more and ${whole(fewer)} fewer, ` +
      `${plus(grown)} trainable parameters${why}; most: ${
        moved.slice(0, 3).map((k) => `${plus(change(k))} ${place(k)}`).join(", ")
      }. ${judge}`;
  }
  function costs() { // of the kept and the new allocation, A frozen, their ratio, and those of plain LoRA
    const sizes = (ranks, trainsA) => {
      const b = ranks.reduce((sum, rank, k) => sum + rank * about.outs[k], 0),
        a = ranks.reduce((sum, rank, k) => sum + rank * about.ins[k], 0),
        trained = trainsA ? a + b : b;
      return [trained, 4 * (a + b), 8 * trained, about.peak?.[Number(trainsA)] + 4 * (a + b) + 12 * trained]; // AdamW: two states; and a gradient
    };
    const [kept, now, lora] = [
      sizes(current.kept, false),
      sizes(current.ranks, false),
      sizes(current.ranks.map(() => current.rank), true),
    ];
    const names = [
      "trainable parameters",
      "adapter, float32",
      "AdamW states, float32",
      ...(about.peak ? ["peak memory of training"] : []),
    ];
    return names.map((name, i) => {
      const write = i ? sizeText : whole;
      return [name, write(kept[i]), write(now[i]), percent(now[i] / kept[i]), write(lora[i])];
    });
  }
  function warning() { // scores that decide little
    const adapted = current.ranks.filter((rank) => rank).length,
      full = current.ranks.filter((rank, k) => rank && rank === current.most[k]).length;
    return 2 * full < adapted
      ? ""
      : `${full} of ${adapted} modules have the highest rank allowed, so the ${
        current.is_captured ? "gradient decides" : "scores decide"
      } little: lower the rank, or raise max_rank, and with it that of tlora.task_subspaces.`;
  }
  function tell() { // beside the map and below it
    const k = model.get("selected").at(-1), many = model.get("selected").length;
    said.replaceChildren();
    if (k !== undefined) {
      make("h2", {}, said, place(k) + (many > 1 ? `, and ${many - 1} more selected` : ""));
      make("div", { class: "name" }, said, about.names[k]);
      words(k).forEach((line, i) => make("div", i ? {} : { class: "why" }, said, line));
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
    for (const cells of costs()) {
      cells.reduce(
        (tr, cell, i) => (explained(make(i ? "td" : "th", i ? {} : { scope: "row" }, tr, cell), i ? "" : cell), tr),
        make("tr", {}, rows),
      );
    }
    moved.textContent = `Since it was kept: ${changes()}.`;
    if (about.run && !isOfRun()) make("div", {}, moved, OTHER_RUN);
    line.textContent = current.code;
    for (const [name, control] of Object.entries(controls)) {
      const now = current.controls[name];
      if (control.held) continue;
      control.disabled = now === null;
      control.value = now ?? "";
      if (control.output) control.output.textContent = now;
    }
    [undo.disabled, redo.disabled] = [!current.undo, !current.redo];
    race?.(current);
    refresh?.(current);
  }
  // --- Controls.
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
      if (!busy && !queue.length) tell(); // what was refused while it was held
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
    if (page && t.trained) continue; // there nothing trains
    const element = explained(
      make("button", { type: "button", role: "tab", "data-tab": t.name }, tablist, t.title),
      t.of === "ranks" ? "rank" : t.name === "overlap" ? "overlap" : t.title,
    );
    element.addEventListener("click", () => show(t.name));
  }
  onArrows(tablist, (target) => show(target.dataset.tab));
  function show(name) {
    model.set("tab", name);
    model.save_changes();
    paint();
  }
  const said = make("div", { class: "said", "aria-live": "polite" }, side),
    charts = moduleCharts(about, { spectrum: 0 });
  side.appendChild(charts.root);
  const finding = make("div", { class: "finding" }, foot), copied = make("div", { class: "copied" }, foot);
  const line = copyable(copied), out = make("span", { class: "group" }, foot);
  const table = make("table", {}, foot), moved = make("div", { class: "moved" }, foot);
  button(
    out,
    "SVG",
    "Download the map as a vector picture",
    () => download("allocation.svg", new Blob([picture()], { type: "image/svg+xml" })),
  );
  button(out, "PNG", "Download the map as a picture", png);
  if (!page) {
    button(
      out,
      "Page",
      "Download a page that shows the map without a kernel",
      () => ask("page", { texts: hasTexts && confirm(TEXTS_ASKED) }),
    );
    button(
      out,
      `Save session, ${about.session}`,
      "Write the results and the allocation to the folder workbench-session; covariances are not in it",
      () => ask("save"),
    );
  }
  const race = page ? null : racePanel(body, { about, model, ask, width: () => map.clientWidth || 400 });
  let refresh = null;
  model.on("msg:custom", receive); // before the panels ask for anything
  const panels = make("div", { class: "panels" }, root);
  if (about.panels.length) {
    refresh = page ? panelSections(panels, about, current, model, ask) : panelTabs(panels, about, model, ask);
  }
  // --- Pointer and keyboard.
  const at = (event) => { // while the pointer is captured, it is no target itself
    const g = el.getRootNode().elementFromPoint(event.clientX, event.clientY)?.closest(".cell");
    return g && svg.contains(g) ? Number(g.dataset.k) : null;
  };
  const all = (which, place) => about[which].flatMap((p, k) => (p === place ? [k] : []));
  function select(modules, last = modules.at(-1)) {
    if (last === undefined) return; // something stays selected
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
    if (row !== undefined) return select(all("row", Number(row)));
    if (column !== undefined) return select(all("column", Number(column)));
    const k = at(event);
    if (k === null || event.button) return;
    event.preventDefault(); // no selection of text
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
      if (drag && drag.last === drag.rank && model.get("selected").length > 1) select([drag.k]); // a mere click
      drag = null;
      idle();
    });
  }
  svg.addEventListener("dblclick", (event) => {
    if (at(event) !== null) ask("release", { modules: [at(event)] });
  });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    const step = { "+": 1, "=": 1, "-": -1 }[event.key] ?? (event.altKey && move ? -move[1] : 0),
      modules = model.get("selected");
    if (step) ask("set_rank", { modules, rank: Math.max(1, current.ranks[focus] + step) });
    else if (move && !event.altKey) {
      let [i, j] = [about.column[focus], about.row[focus]], k = -1;
      while (k < 0 && i >= 0 && j >= 0 && i < about.columns.length && j < about.rows.length) {
        [i, j] = [i + move[0], j + move[1]];
        k = cells.findIndex((_, one) => about.column[one] === i && about.row[one] === j);
      }
      if (k >= 0) {
        select(event.shiftKey ? [...new Set([...modules, k])] : [k], k);
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
    event.stopPropagation(); // keys of the notebook are not meant
  });
  // --- Pictures of the map.
  function picture() {
    const copy = svg.cloneNode(true),
      from = [svg, ...svg.querySelectorAll("*")],
      to = [copy, ...copy.querySelectorAll("*")];
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
  // --- What the kernel says.
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
  model.on("change:training", () => (tab().trained ? paint() : offer()));
  let width = 0; // laid out when it is on the page, and again when its width changes
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
