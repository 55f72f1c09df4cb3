import { make } from "./elements.js";
import { explained } from "./explain.js";
import { MINUS } from "./text.js";

function ticks(low, high, log, most) { // 1, 2, 5, 10 ..., thinned to powers of ten if there are too many
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
  const power = 10 ** Math.floor(Math.log10((high - low) / most || 1)),
    step = [1, 2, 5, 10].find((f) => f * power >= (high - low) / most) * power;
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) all.push(+v.toPrecision(12));
  return all;
}

// Lines on axes. A line has `label`, `points` [[x, y], ...] and may be `dots`, `dash`, `thin`, `gray`, or have a `name`
// (its class) or a `color` (the index of one). An axis has `label` and may have `log`, `percent`, `min`, `max`.
export function chart(
  parent,
  { title, lines, bars = [], x, y, cursor = null, width = 340, height = 150, legend = true },
) {
  const usable = ([a, b]) => Number.isFinite(a) && Number.isFinite(b) && (!x.log || a > 0) && (!y.log || b > 0);
  const points = lines.flatMap((one) => one.points).concat(bars).filter(usable);
  const span = (axis, values) => {
    let low = axis.min ?? Math.min(...values), high = axis.max ?? Math.max(...values);
    if (low === high) {
      [low, high] = axis.log
        ? [low / 2, high * 2]
        : [low - Math.abs(low) / 10 - 1e-9, high + Math.abs(high) / 10 + 1e-9];
    }
    return [low, high];
  };
  const named = legend ? lines.filter((one) => one.label && !one.gray) : [];
  if (named.length) {
    const row = make("div", { class: "key" }, parent);
    named.forEach((one) => {
      const entry = make("span", {
        class: `c${one.color ?? lines.filter((l) => !l.gray).indexOf(one)} ${one.name ?? ""}`,
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
    "aria-label": title,
  }, parent);
  if (!points.length) return svg;
  const [x0, x1] = span(x, points.map(([a]) => a)), [y0, y1] = span(y, points.map(([, b]) => b));
  const left = 50,
    right = 8,
    top = 6,
    bottom = 32,
    scale = (v, low, high, log) => (log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
  const at = (v) => left + (width - left - right) * scale(v, x0, x1, x.log);
  const up = (v) => top + (height - top - bottom) * (1 - scale(v, y0, y1, y.log));
  const write = (axis, v) => {
    if (axis.percent) return `${+(100 * v).toFixed(4)}\u00a0%`;
    if (axis.log && (v < 0.01 || v > 99999)) { // 10 to a power
      const [digits, power] = v.toExponential().split("e"),
        raised = [...String(Number(power))].map((
          c,
        ) => (c === "-" ? "\u207b" : "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"[c])).join("");
      return `${digits === "1" ? "" : `${digits}\u00b7`}10${raised}`;
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
      write(x, v),
    );
  }
  make("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }, svg);
  make("line", { class: "axis", x1: left, x2: left, y1: top, y2: height - bottom }, svg);
  explained(
    make(
      "text",
      { svg: true, class: "tick", x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" },
      svg,
      x.label,
    ),
  );
  explained(
    make(
      "text",
      {
        svg: true,
        class: "tick",
        transform: `translate(10 ${(top + height - bottom) / 2}) rotate(-90)`,
        "text-anchor": "middle",
      },
      svg,
      y.label,
    ),
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
    const color = one.gray ? "gray" : `c${one.color ?? i++} ${one.name ?? ""}`,
      inside = one.points.filter(usable).filter(([, b]) => b >= y0 - 1e-12);
    const path = inside.map(([a, b], k) => `${k ? "L" : "M"}${at(a).toFixed(1)} ${up(b).toFixed(1)}`).join("");
    make("path", { class: `curve ${color}${one.thin ? " thin" : ""}${one.dash ? " dash" : ""}`, d: path }, svg);
    if (one.dots || (inside.length === 1 && !one.gray)) {
      for (const [a, b] of inside) make("circle", { class: color, cx: at(a), cy: up(b), r: 2.8 }, svg);
    }
  }
  return svg;
}

export function lossCurves(parent, arms, width) {
  const names = Object.keys(arms), lines = [];
  names.forEach((name, i) => {
    const single = names.length === 1, of = (what) => (single ? what : `${name}, ${what}`);
    const look = single ? "" : `arm${i}`, dash = i === 1; // a later curve hides no earlier one
    lines.push({
      label: of("training"),
      term: "training loss",
      points: arms[name].losses,
      thin: true,
      dash,
      name: look,
      color: i,
    });
    lines.push({
      label: of(single ? "validation" : "held out"),
      term: "held-out loss",
      points: arms[name].held,
      dots: true,
      dash,
      name: look,
      color: single ? 1 : i,
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
    height: 150,
  });
}
