import { chart } from "../chart.js";
import { copyable } from "../controls.js";
import { make } from "../elements.js";
import { drawTable } from "../table.js";
import { number, signedNumber } from "../text.js";

export function rescalingPart(parent, part) {
  const choice = (part.choice ??= { at: part.start, limit: part.limit ?? 0.05 }), { points } = part;
  const of = (kind) => points.flatMap((point, k) => (point.kind === kind ? [k] : [])), scales = of("scale");
  const root = make("div", { class: "rescaling" }, parent), bar = make("div", { class: "bar" }, root);
  const label = (words) => make("label", { class: "control" }, bar, words);
  const box = label("Scale"),
    slider = make("input", { type: "range", min: 0, max: scales.length - 1, step: 1 }, box),
    output = make("output", {}, box);
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
    label("Most that a text may lose, nats per token"),
  );
  limit.addEventListener("change", () => {
    if (limit.value !== "" && limit.validity.valid) choice.limit = Number(limit.value);
    toBest();
  });
  make("button", { type: "button" }, bar, "Best within the limit").addEventListener("click", toBest);
  const below = make("div", { class: "pair" }, root), curve = make("div", {}, below), at = make("div", {}, below);
  const finding = make("p", { class: "finding", role: "status" }, root),
    line = copyable(make("div", { class: "copied" }, root));
  function best() { // the number of the point with the lowest task loss within the limit
    const within = points.flatMap((point, k) => (point.lost <= choice.limit ? [k] : []));
    return within.reduce((a, k) => (a === null || points[k].task < points[a].task ? k : a), null);
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
      dash: true,
    }], ["part", "one part left out", { dots: true, name: "lone" }]]
      .map(([kind, name, look]) => ({
        label: name,
        points: of(kind).map((k) => [points[k].lost, points[k].task]),
        ...look,
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
      y: { label: "task loss, nats per token", log: true },
    });
    const title = `${point.label[0].toUpperCase()}${point.label.slice(1)}`;
    drawTable(at, {
      caption: [title, ...(point.without.length ? [point.without.join(", ")] : [])].join(": "),
      head: ["set", "loss", "change", "95 % interval over texts"],
      rows: point.rows,
    });
    const words = top === choice.at
      ? "the lowest task loss within the limit"
      : top === null
      ? "no point is within the limit"
      : `within the limit, ${points[top].label} is best, with a task loss of ${number(points[top].task)}`;
    finding.textContent = `${title}: task loss ${number(point.task)}, other text at most ${
      signedNumber(point.lost, 3)
    } nats per token; ${words}.`;
    line.textContent = isScale && !point.scale
      ? "# scale 0 is the base model: there is nothing to write"
      : `rescaling.save_adapter("milder", rescaling.points[${choice.at}])  # ${point.label}`;
  }
  draw();
}
