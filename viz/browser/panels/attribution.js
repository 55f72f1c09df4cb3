import { isDark, largest, tint } from "../colors.js";
import { drawBar } from "../controls.js";
import { make, onArrows, put } from "../elements.js";
import { TALL } from "../grid.js";
import { drawRamp } from "../strip.js";
import { isSpecial, nats, probability, quoted, size, visible } from "../text.js";

const MEASURED = ["log-probability", "log-odds"];
const PAUSE = 400; // ms before the answer is written again
const PULL = 6; // pixels a rank
export function attributionPart(parent, part, { model, ask }) {
  const choice = (part.choice ??= { sample: 0, token: null, measure: 0, ranks: {} }); // ranks: what is left of the changed modules
  const root = make("div", { class: "attribution" }, parent);
  const samples = () => [...part.samples, ...(model?.get("explained")?.samples ?? [])];
  const known = (part.known ??= {}); // what the kernel has answered, by sample and key
  let one = null, focus = 0, drag = null, timer = null, wasOnPage = false, refused = "";
  const place = (
    k,
  ) => (part.columns[part.column[k]] < 0
    ? part.names[k]
    : `layer ${part.columns[part.column[k]]} ${part.rows[part.row[k]]}`);
  const changed = () => Object.keys(choice.ranks).map(Number);
  const key = () => changed().map((k) => `${k}:${choice.ranks[k]}`).join(); // numbers are in ascending order
  const answer = () => { // the kernel adds what the model then writes to what is stored
    const of = key(), stored = one.switched[of], added = known[`${choice.sample} ${of}`];
    return stored || added ? { ...stored, ...added } : undefined;
  };
  const sum = (values) => (choice.token === null ? values.reduce((a, b) => a + b, 0) : values[choice.token]);
  const gained = (m = choice.measure) => one.adapter[m].map((v, i) => v - one.base[m][i]);
  const contribution = (k, m = choice.measure) => sum(one.modules[m].map((token) => token[k]));
  const cost = (now, m = choice.measure) => sum(one.adapter[m].map((v, i) => v - now.values[m][i]));
  const isMeasured = (k) => part.live || `${k}:0` in one.switched;
  // --- What is always there.
  const bar = make("div", { class: "bar" }, root);
  const box = make("label", { class: "control" }, bar, "Answer"), select = make("select", { class: "sample" }, box);
  select.addEventListener("change", () => {
    choice.sample = Number(select.value);
    choice.token = null;
    drawSample();
  });
  const group = make("span", { class: "group", role: "group", "aria-label": "Measure" }, bar);
  const measures = MEASURED.map((name, m) =>
    press(group, name, m ? "log p \u2212 log(1 \u2212 p): has no ceiling" : "log p: ends at 0", () => {
      choice.measure = m;
      paint();
    })
  );
  const reset = press(bar, "Switch all on", "The adapter as trained (Escape)", () => {
    choice.ranks = {};
    change();
  });
  const text = make("div", { class: "request" }, root),
    strip = make("div", { class: "answer", role: "group", "aria-label": "Tokens of the answer" }, root);
  const scroll = make("div", { class: "scroll" }, root),
    svg = make("svg", { class: "chart" }, scroll),
    legend = make("div", { class: "legend" }, root);
  const finding = make("p", { class: "finding", role: "status" }, root),
    written = make("div", { class: "written" }, root); // below the map, which a click must not move
  const cells = [], bars = [];
  if (part.live) drawForm();
  function press(parent, label, title, action) {
    const button = make("button", { type: "button", title }, parent, label);
    button.addEventListener("click", action);
    return button;
  }
  function drawForm() {
    const form = make("form", { class: "bar" }, root),
      fields = ["A request of your own", "Its answer (default: the adapter's)"].map((label) => {
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
      const { running = false, said: words = "", bar, samples: own = [] } = model.get("explained") ?? {};
      send.disabled = running;
      said.replaceChildren(...(running || !own.length ? [words] : []));
      if (running) drawBar(make("div", {}, said), bar);
    };
    form.follow();
    root.form = form;
  }
  // --- The map of the modules: projections down, layers across.
  function build() {
    const left = 6.3 * Math.min(24, Math.max(...part.rows.map((row) => row.length))) + 12,
      top = 28,
      w = part.columns.length > 40 ? 20 : 26,
      h = TALL,
      right = 60;
    const width = left + w * part.columns.length + right,
      height = top + h * part.rows.length + 18,
      label = { svg: true, class: "label" };
    svg.replaceChildren();
    for (
      const [name, v] of Object.entries({
        width,
        height,
        viewBox: `0 0 ${width} ${height}`,
        style: `min-width: ${Math.min(width, 560)}px`,
        role: "grid",
        "aria-label": "Modules of the adapter: projections down, layers across. " +
          "Arrow keys move, Enter switches a module off and on, minus and plus change its rank, Shift and space switches its row, Control and space its column",
      })
    ) svg.setAttribute(name, v);
    const head = make("g", { role: "row" }, svg);
    make("text", { ...label, x: left - 6, y: height - 4, "text-anchor": "end", role: "columnheader" }, head, "layer");
    part.columns.forEach((layer, i) => {
      bars.push({
        members: members("column", i),
        base: top - 2,
        x: left + w * i + 3,
        rect: make("rect", { width: w - 6 }, svg),
      });
      const name = layer < 0 ? "outside" : `layer ${layer}`;
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
            "aria-label": name,
          },
          head,
          layer < 0 ? "\u2013" : layer,
        ),
        `Switch ${name} off or on`,
      );
    });
    part.rows.forEach((name, j) => {
      const row = make("g", { role: "row" }, svg),
        short = name.length > 24 ? "\u2026" + name.slice(-22) : name,
        y = top + h * j;
      make(
        "title",
        { svg: true },
        make(
          "text",
          { ...label, x: left - 6, y: y + h / 2 + 4, "text-anchor": "end", role: "rowheader", "data-row": j },
          row,
          short,
        ),
        `Switch ${name} off or on in all layers`,
      );
      bars.push({
        members: members("row", j),
        x: left + w * part.columns.length + 4,
        y: y + 4,
        room: right - 8,
        rect: make("rect", { height: h - 8 }, svg),
      });
      for (const k of members("row", j)) {
        const g = make("g", {
          class: "cell",
          role: "gridcell",
          "data-k": k,
          transform: `translate(${left + w * part.column[k]} ${y})`,
        }, row);
        const rect = make("rect", { x: 1, y: 1, width: w - 2, height: h - 2, rx: 2 }, g),
          text = make("text", { svg: true, x: w / 2, y: h / 2 + 4, "text-anchor": "middle", "font-size": 9.5 }, g);
        cells[k] = {
          g,
          w,
          h,
          rect,
          text,
          mark: make("path", { class: "mark" }, g),
          title: make("title", { svg: true }, g),
        };
      }
    });
  }
  const members = (which, at) => part[which].flatMap((one, k) => (one === at ? [k] : []));
  // --- What follows the sample, the token and the switches.
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
    for (const name of ["gained", "base", "adapter", "now", "now first"]) {
      make("span", { class: `${name} head` }, names, name);
    }
    one.positions.forEach((position, i) => {
      const card = make("div", { class: "card" }, strip);
      const button = press(card, "", "", () => {
        choice.token = choice.token === i ? null : i;
        paint();
      });
      button.className = "token";
      button.textContent = visible(one.tokens[position]);
      for (const name of ["gained", "base", "adapter", "now", "now first"]) make("span", { class: name }, card);
    });
    change();
  }
  function change() { // the sample or what is switched off
    clearTimeout(timer);
    refused = "";
    paint();
    if (changed().length && !answer() && part.live) {
      ask("switch", { sample: choice.sample, ranks: changed().map((k) => [k, choice.ranks[k]]) }, "switch");
    } else regenerate();
  }
  function regenerate() { // the greedy answer, when the reader rests
    const now = answer(), asked = key();
    if (!part.live || !now || now.answer !== undefined || drag) return;
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
    // the strip
    const rise = gained(),
      most = largest(rise),
      fill = (element, share) => {
        const c = tint(share, dark);
        element.style.background = c.fill;
        element.style.color = c.ink;
      };
    strip.classList.toggle("switched", off.length > 0);
    strip.firstChild.firstChild.setAttribute("aria-pressed", choice.token === null);
    [...strip.children].slice(1).forEach((card, i) => {
      const [button, gain, base, adapter, at, first] = card.children, p = (values) => probability(values[0][i]);
      fill(button, rise[i] / most);
      button.setAttribute("aria-pressed", choice.token === i);
      button.title = `${quoted(one.tokens[one.positions[i]])}: ${nats(rise[i])} nats of ${
        MEASURED[choice.measure]
      }; first choice of the base ${quoted(one.choices[0][i])}, of the adapter ${quoted(one.choices[1][i])}`;
      gain.textContent = nats(rise[i]);
      base.textContent = p(one.base);
      adapter.textContent = p(one.adapter);
      at.textContent = !off.length ? "" : now ? p(now.values) : "\u2026";
      if (now) fill(at, (now.values[choice.measure][i] - one.adapter[choice.measure][i]) / most);
      else at.removeAttribute("style");
      const another = now && !now.unchanged[i] ? visible(now.choices?.[i] ?? "another") : "";
      [first.textContent, first.title] = [another, another && `first choice: ${another}`];
    });
    // the answers
    written.replaceChildren();
    const lines = {
      "base answers": one.generated[0],
      "adapter answers": one.generated[1],
      ...(now && part.live && { "now answers": now.answer ?? "\u2026" }),
    };
    for (const [name, words] of Object.entries(lines)) {
      if (words !== undefined) {
        make("code", {}, make("div", { class: name.split(" ")[0] }, written, `${name}: `), words);
      }
    }
    // the map
    const values = part.names.map((_, k) => contribution(k)), top = largest(values);
    cells.forEach((cell, k) => {
      const c = tint(values[k] / top, dark), left = choice.ranks[k], cut = left > 0;
      put(cell.rect, "fill", c.fill);
      put(cell.text, "fill", c.ink);
      put(cell.mark, "stroke", c.ink);
      put(cell.mark, "d", left === 0 ? `M5 5L${cell.w - 5} ${cell.h - 5}M5 ${cell.h - 5}L${cell.w - 5} 5` : "");
      const written = left === 0
        ? ""
        : cut
        ? `${left}/${part.ranks[k]}`
        : Math.abs(values[k]) >= 0.15 * top
        ? Math.abs(values[k]).toFixed(Math.abs(values[k]) < 9.95 ? 1 : 0).replace(/^0/, "")
        : "";
      if (cell.text.textContent !== written) cell.text.textContent = written;
      const words = `${place(k)}: contributed ${nats(values[k])} nats; ${
        left === 0 ? "switched off" : `rank ${left ?? part.ranks[k]} of ${part.ranks[k]}`
      }`;
      put(cell.g, "aria-label", words);
      put(cell.g, "aria-selected", left !== undefined);
      put(cell.g, "tabindex", k === focus ? 0 : -1);
      put(cell.g, "class", `cell${cut ? " hand" : ""}${isMeasured(k) ? "" : " unknown"}`);
      const alone = one.switched[`${k}:0`] ?? known[`${choice.sample} ${k}:0`];
      cell.title.textContent = words + (alone ? `; leaving it out alone costs ${size(cost(alone))}` : "") +
        (isMeasured(k) ? "" : "; leaving it out is not measured here");
    });
    const sums = bars.map((bar) => bar.members.reduce((total, k) => total + values[k], 0)),
      isColumn = (bar) => bar.base !== undefined;
    for (const kind of [true, false]) {
      const longest = largest(bars.flatMap((bar, n) => (isColumn(bar) === kind ? [sums[n]] : [])));
      bars.forEach((bar, n) => {
        if (isColumn(bar) !== kind) return;
        const long = Math.abs(sums[n]) / longest * (kind ? 24 : bar.room),
          at = kind ? { x: bar.x, y: bar.base - long, height: long } : { x: bar.x, y: bar.y, width: long };
        for (const [name, v] of Object.entries(at)) put(bar.rect, name, v);
        put(bar.rect, "class", sums[n] > 0 ? "total gain" : "total loss");
      });
    }
    legend.replaceChildren();
    const token = choice.token === null ? "the whole answer" : quoted(one.tokens[one.positions[choice.token]]);
    drawRamp(
      legend,
      top,
      `nats of ${MEASURED[choice.measure]} contributed to ${token}; bars: sums${
        part.names.every((_, k) => isMeasured(k)) ? "" : "; dashed: leaving it out is not measured here"
      }`,
      dark,
    );
    finding.textContent = refused || conclude(off, now);
  }
  function conclude(off, now) { // what the changed modules contributed, and what is lost without them
    const what = choice.token === null ? "" : ` of ${quoted(one.tokens[one.positions[choice.token]].trim())}`;
    if (!off.length) { // the largest module whose cost is known
      const order = part.names.map((_, k) => k).sort((a, b) => Math.abs(contribution(b)) - Math.abs(contribution(a))),
        k = order.find((each) => `${each}:0` in one.switched);
      if (k === undefined) return `The answer gained ${size(sum(gained()))} nats.`;
      return sentence(`${place(k)} contributed`, "leaving it out alone", [k], one.switched[`${k}:0`], what);
    }
    const cut = off.filter((k) => choice.ranks[k]), subject = name(off);
    if (!now) return `Leaving out ${subject} \u2026`;
    const act = cut.length === off.length
      ? (off.length === 1 ? `cutting it to rank ${choice.ranks[off[0]]}` : "cutting them")
      : `leaving ${off.length > 1 ? "them" : "it"} out`;
    const tokens = now.unchanged.filter((same) => !same).length;
    return `${sentence(`${subject} contributed`, act, off, now, what)} ${
      tokens ? `The first choice changes at ${tokens} of ${now.unchanged.length} tokens.` : "No first choice changes."
    }`;
  }
  function sentence(subject, act, modules, now, what) {
    const added = (m) => modules.reduce((total, k) => total + contribution(k, m), 0),
      lost = cost(now, 0),
      spared = added(0) - lost;
    const isWhole = modules.every((k) => !choice.ranks[k]); // a cut may cost nothing because the rest of the module suffices
    let rest = "";
    if (lost < -0.005) rest = ", so the answer is likelier that way";
    else if (isWhole && spared > 0.005) rest = `, so the other modules make up for ${size(spared)}`;
    else if (added(0) > 0 && spared < -0.005) {
      rest = `, more than ${modules.length > 1 ? "they" : "it"} contributed: other modules build on ${
        modules.length > 1 ? "them" : "it"
      }`;
    }
    return `${subject[0].toUpperCase()}${subject.slice(1)} ${size(added(0))} of the ${
      size(sum(gained(0)))
    } nats${what}; ${act} costs ${size(lost)}${rest}. ` +
      `In log-odds, which have no ceiling: ${size(added(1))} of ${size(sum(gained(1)))}, cost ${size(cost(now, 1))}.`;
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
  // --- Switches.
  function turn(modules, rank = null) { // off, or on if all are off; or to a rank
    const before = choice.ranks, isOff = modules.every((k) => before[k] === 0);
    choice.ranks = { ...before };
    for (const k of modules) {
      const to = rank ?? (isOff ? part.ranks[k] : 0);
      if (to === part.ranks[k]) delete choice.ranks[k];
      else choice.ranks[k] = to;
    }
    if (part.live || !changed().length || answer()) return change();
    const alone = choice.ranks; // without a kernel: alone, if that was measured
    choice.ranks = Object.fromEntries(modules.filter((k) => k in alone).map((k) => [k, alone[k]]));
    if (changed().length && answer()) return change();
    const asked = name(modules);
    choice.ranks = before;
    refused =
      `What leaving out ${asked} costs was not measured: tlora.attribute(..., switch_off=["modules", "layers", "projections"]) measures all of them.`;
    paint();
  }
  const clamp = (k, rank) => Math.max(0, Math.min(part.ranks[k], rank)),
    rankOf = (k) => choice.ranks[k] ?? part.ranks[k];
  svg.addEventListener("pointerdown", (event) => {
    const { row, column } = event.target.dataset, k = event.target.closest(".cell")?.dataset.k;
    if (row !== undefined) return turn(members("row", Number(row)));
    if (column !== undefined) return turn(members("column", Number(column)));
    if (k === undefined || event.button) return;
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
    const move = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key],
      step = { "+": 1, "=": 1, "-": -1 }[event.key];
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
    event.stopPropagation(); // the keys of the other map are not meant
  });
  onArrows(strip);
  // --- What the kernel says.
  function follow() {
    if (!root.isConnected && wasOnPage) return events.forEach((event) => model.off?.(event, follow)); // another panel is open
    wasOnPage = root.isConnected;
    const { sample, key: of, ...found } = model.get("switched") ?? {};
    if (of !== undefined) known[`${sample} ${of}`] = { ...known[`${sample} ${of}`], ...found };
    root.form?.follow();
    const all = samples();
    if (select.children.length !== all.length) { // the reader's own answer has come
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
