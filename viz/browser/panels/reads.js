import { isDark, largest } from "../colors.js";
import { make } from "../elements.js";
import { coloredToken, drawRamp } from "../strip.js";
import { MINUS, percent, quoted, signedNumber, visible } from "../text.js";

const LISTED = 5;
const WINDOW = 40;
const STRONGEST = 8;
const DRAWN_SAMPLES = 4;
export function readsPart(parent, part, { about, model, ask }) {
  const choice = { open: null, need: false, whole: new Set() };
  const sides = Object.fromEntries(Object.entries(part.sides).map(([name, side]) => [name, readTokens(side)]));
  const root = make("div", { class: "reads strips" }, parent);
  let values = null, wasOnPage = false; // values of the module that is shown
  const selected = () => model.get("selected").at(-1) ?? 0;
  function follow() { // the selected module, or its values, have changed
    if (!root.isConnected && wasOnPage) return stop(); // another panel is open
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
    const k = selected(),
      tokens = sides[part.side[k]],
      rank = model.get("current").ranks[k],
      place = `layer ${about.columns[about.column[k]]} ${about.rows[about.row[k]]}`;
    const focused =
      root.contains(document.activeElement) || root.getRootNode().activeElement?.closest?.(".reads") === root
        ? (root.getRootNode().activeElement?.dataset.key ?? null)
        : null;
    root.replaceChildren();
    const bar = make("div", { class: "bar" }, root);
    make("h3", {}, bar, place);
    if (!tokens) return make("p", {}, root, "This module reads positions, not tokens.");
    if (part.need) {
      const box = make("span", { class: "group", role: "group", "aria-label": "Values" }, bar);
      for (const [need, label] of [[false, "z: read"], [true, "z \u00d7 need: read and needed"]]) {
        make("button", { type: "button", "aria-pressed": choice.need === need, "data-key": `need ${need}` }, box, label)
          .addEventListener("click", () => {
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
    const byKind = (shares) =>
      part.kinds.map((kind, n) => `${kind} ${shares[n] === null ? "\u2013" : percent(shares[n])}`).join(", ");
    make(
      "p",
      {},
      root,
      `All directions together, on constant tokens: ${
        byKind(part.constant[k])
      } of z\u00b2. The top tokens of two halves of the samples agree: ${byKind(part.agreement[k])}. ` +
        `${
          part.samples < part.of
            ? `${part.samples} of the ${part.of} samples that were read are in this page.`
            : `${part.of} samples.`
        }` +
        (part.sinks.includes(k)
          ? " The first token of each sample dominates this module (an attention sink): direction_activations(..., first_token=False) leaves it out."
          : ""),
    );
    const scroll = make("div", { class: "scroll" }, root),
      table = make("table", { "aria-label": `Tokens at both ends of the directions of ${place}` }, scroll);
    const head = make("tr", {}, make("thead", {}, table)), body = make("tbody", {}, table);
    make("th", { scope: "col" }, head, "direction");
    part.kinds.forEach((kind, n) =>
      make("th", { scope: "col", class: "words" }, head, part.meanings[n] ? `${kind}: ${part.meanings[n]}` : kind)
    );
    for (let d = 0; d < values.directions; d++) {
      if (d === rank) {
        const cut = make("tr", { class: "cut" }, body);
        make(
          "td",
          { colspan: part.kinds.length + 1 },
          cut,
          `rank ${rank}: directions above are kept, those below are cut off`,
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
          tokens,
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
      "data-column": n,
    }, cell);
    const said = [];
    for (const sign of [1, -1]) {
      const line = make("span", { class: "line", "aria-hidden": "true" }, button), found = ends(v, sign, tokens);
      make("b", {}, line, sign > 0 ? "+" : MINUS);
      for (const { at, hits, all } of found.slice(0, LISTED)) {
        const chip = make("span", {
          class: `chip p${tokens.part[at]}`,
          title: `${quoted(tokens.text(at))}: ${hits} of ${all} in the ${part.parts[tokens.part[at]]} part, up to ${
            signedNumber(v[at])
          }`,
        }, line);
        make("span", { class: "ctx" }, chip, visible(tokens.before(at, 2)));
        token(chip, tokens.text(at), v[at] / most);
        make("span", { class: "times" }, chip, `\u00d7${hits}`);
      }
      if (found.length > LISTED) make("span", { class: "times" }, line, `+ ${found.length - LISTED} more`);
      if (!found.length) make("span", { class: "times" }, line, "nothing beyond a fifth of the other end");
      said.push(
        `${sign > 0 ? "high" : "low"} at ${
          found.slice(0, LISTED).map(({ at }) => quoted(tokens.text(at).trim() || tokens.text(at))).join(", ") ||
          "nothing"
        }`,
      );
    }
    const squares = (isCounted) => v.reduce((sum, one, i) => sum + (isCounted(i) ? one * one : 0), 0);
    make(
      "span",
      { class: "times", "aria-hidden": "true" },
      button,
      `${percent(squares((i) => tokens.part[i] === 0) / squares(() => true))} on constant tokens`,
    );
    button.setAttribute("aria-label", `${part.kinds[n]}, direction ${d + 1}: ${said.join("; ")}`);
    button.addEventListener("click", () => {
      [choice.open, choice.whole] = [isOpen ? null : { d, n }, new Set()];
      draw();
    });
  }
  function drawSamples(cell, n, d, tokens) {
    const v = valuesOf(n, d), most = largest(v);
    drawRamp(
      cell,
      most,
      `${choice.need ? "z \u00d7 need" : "z"}, direction ${d + 1} of ${
        part.kinds[n]
      }; narrow: constant tokens; click a number for the whole sample`,
      isDark(root),
    );
    const peaks = tokens.spans.map(([start, end]) => largest(v.slice(start, end))),
      order = [...peaks.keys()].sort((a, b) => peaks[b] - peaks[a]);
    const rest = order.slice(STRONGEST).sort((a, b) => ((a * 7919 + 13) % 101) - ((b * 7919 + 13) % 101));
    const shown = rest.length > DRAWN_SAMPLES ? [...order.slice(0, STRONGEST), ...rest.slice(0, DRAWN_SAMPLES)] : order;
    shown.forEach((s, i) => {
      if (i === STRONGEST && rest.length > DRAWN_SAMPLES) {
        make("div", { class: "key" }, cell, `${DRAWN_SAMPLES} of the other ${rest.length} samples, drawn at random`);
      }
      const isWhole = choice.whole.has(s) !== (i === 0); // the strongest is shown whole
      const line = make("div", { class: "sample" }, cell);
      const more = make(
        "button",
        {
          type: "button",
          "aria-expanded": isWhole,
          "data-key": `sample ${s}`,
          title: "largest value of the sample; click for the whole sample",
          "aria-label": `sample ${s + 1}, up to ${peaks[s].toFixed(1)}`,
        },
        line,
        peaks[s].toFixed(1),
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
      one.title = `${quoted(tokens.text(i))} ${choice.need ? "z \u00d7 need" : "z"} ${signedNumber(v[i])}${
        values.need && !choice.need ? `, need ${values.need[i].toFixed(2)}` : ""
      }, ${part.parts[tokens.part[i]]}`;
      if (narrow) one.classList.add("narrow");
      if (i === peak) one.classList.add("peak");
      if (isWhole && tokens.text(i).endsWith("\n")) make("br", {}, box);
    }
  }
  const token = (box, text, share) => coloredToken(box, text, share, isDark(root));
  root.addEventListener("keydown", (event) => { // arrows move between the directions and the kinds
    const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key],
      at = event.target.dataset;
    if (!move || at.column === undefined) return;
    root.querySelector(`[data-row="${Number(at.row) + move[0]}"][data-column="${Number(at.column) + move[1]}"]`)
      ?.focus();
    event.preventDefault();
  });
  follow();
}

// Values of one module from its bytes.
function unpack({ module, directions, scales, values }, hasNeed) {
  if (!values) return { module };
  const bytes = Int8Array.from(atob(values), (c) => c.charCodeAt(0)), width = bytes.length / scales.length;
  const row = (n) => Array.from(bytes.subarray(n * width, (n + 1) * width), (v) => v * scales[n]);
  return { module, directions, row, need: hasNeed ? row(scales.length - 1) : null };
}

// The tokens of all samples, and which of them are the same token: by text and part, constant ones also by the token before.
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
    before: (i, most) => text.slice(Math.max(spans[sample[i]][0], i - most), i).map((t) => texts[t]).join(""),
  };
}

// One end: distinct tokens beyond half of its peak and a fifth of the other end's, the furthest first.
export function ends(v, sign, tokens) {
  const far = v.map((one) => sign * one),
    limit = Math.max(far.reduce((a, b) => Math.max(a, b)) / 2, largest(v) / 5),
    found = {};
  far.forEach((one, i) => {
    if (one < limit) return;
    const hit = found[tokens.group[i]] ??= { at: i, hits: 0, all: tokens.all[tokens.group[i]] };
    hit.hits++;
    if (one > far[hit.at]) hit.at = i;
  });
  return Object.values(found).sort((a, b) => far[b.at] - far[a.at]);
}
