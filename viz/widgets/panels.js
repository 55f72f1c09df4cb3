// The panels of the workbench: what is known of the selected module, and sections of text, tables and charts.

// Beside the map: spectra with a line at the rank, shares by rank, and ranks from resampled scores.
function moduleCharts(about, choice) {
  const root = make("div", { class: "module" });
  let current = {};
  function draw(state) { // { k, place, rank, counts }
    current = state;
    const { k, place, rank, counts } = state;
    root.replaceChildren();
    if (about.spectra.length) drawSpectrum(k, place, rank);
    const lines = Object.entries(about.by_rank).map(([name, label]) => {
      const values = about.tabs.find((tab) => tab.name === name).curves[k];
      return { label, term: name === "overlap" ? "overlap" : label, points: values.map((value, i) => [i + 1, value]) };
    });
    if (lines.length) {
      chart(root, { title: `Shares by rank, ${place}`, lines: lines.map((one, i) => ({ ...one, color: i + 2 })), cursor: rank || null, height: 116,
        x: { label: "rank", min: 0, max: Math.max(...lines.map((one) => one.points.length)) + 1 }, y: { label: "share", percent: true, min: 0, max: 1 } });
    }
    if (counts?.length > 1) {
      const all = counts.reduce((sum, [, count]) => sum + count, 0), far = 2 ** Math.max(3, Math.ceil(Math.log2(1.02 * Math.max(rank, ...counts.map(([r]) => r)))));
      explained(make("div", { class: "key" }, root, `Rank from resampled scores: ${counts[0][0]} to ${counts.at(-1)[0]}`), "resamples");
      chart(root, { title: `Ranks from resampled scores, ${place}`, lines: [], bars: counts.map(([r, count]) => [r, count / all]), cursor: rank || null, height: 100,
        x: { label: "rank", min: 0, max: far }, y: { label: "resamples", percent: true, min: 0, max: 1 } });
    }
  }
  function drawSpectrum(k, place, rank) {
    const one = about.spectra[Math.min(choice.spectrum, about.spectra.length - 1)], mine = one.index[k];
    if (about.spectra.length > 1) {
      const label = make("label", { class: "control" }, root, "Spectrum"), select = make("select", {}, label);
      about.spectra.forEach((other, i) => { make("option", { value: i }, select, other.label).selected = i === choice.spectrum; });
      select.addEventListener("change", () => { choice.spectrum = Number(select.value); draw(current); root.querySelector("select").focus(); });
    }
    make("div", { class: "key" }, root, one.meaning[0].toUpperCase() + one.meaning.slice(1));
    const whats = Object.keys(one.curves), others = [...new Set(about.names.flatMap((_, other) => (about.row[other] === about.row[k] && one.index[other] !== mine ? [one.index[other]] : [])))];
    const colors = { energy: 0, variance: 1 }, at = (what, i, values) => one.curves[what].at[i].map((direction, n) => [direction, one.curves[what][values][i][n]]);
    const gray = (values) => others.map((i) => ({ gray: true, points: at(whats[0], i, values) }));
    const held = (what) => { // the last direction drawn within the rank
      const n = one.curves[what].at[mine].findLastIndex((direction) => direction <= rank);
      return n < 0 ? 0 : one.curves[what].sums[mine][n];
    };
    const far = Math.max(2, ...one.curves[whats[0]].at.map((directions) => directions.at(-1))), x = { label: "direction", log: true, min: 1, max: far };
    const lines = (values) => [...gray(values), ...whats.map((what) => ({ label: what, color: colors[what], points: at(what, mine, values) }))];
    chart(root, { title: `Cumulative shares of the directions of ${place}`, lines: lines("sums"), cursor: rank || null, height: 158, x: { ...x, label: "first directions taken" },
      y: { label: "cumulative share", percent: true, min: 0, max: 1 } });
    chart(root, { title: `Share of each direction of ${place}`, lines: lines("each"), cursor: rank || null, height: 124, legend: false, x,
      y: { label: "each direction", log: true, min: Math.max(1e-8, Math.min(...whats.flatMap((what) => one.curves[what].each.flat().filter((v) => v > 0)))) } });
    const rows = whats.map((what) => [what, rank ? percent(held(what)) : "", ...one.curves[what].needed[mine].map((n) => n ?? `over ${one.curves[what].at[mine].at(-1)}`)]);
    drawTable(root, { caption: "What they hold, and how many hold", head: ["", `first\u00a0${rank}`, "90\u00a0%", "95\u00a0%", "99\u00a0%"], rows });
  }
  return { root, draw };
}

// A line of Python with a button that copies it.
function copyable(parent) {
  const line = make("code", { tabindex: 0 }, parent), button = describe(make("button", { type: "button" }, parent, "Copy"), "Copy the line of Python");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(line.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1200);
  });
  return line;
}

const KINDS = {
  text: (parent, part) => make("p", {}, parent, part.text),
  table: drawTable,
  code(parent, part) {
    make("div", { class: "key" }, parent, part.caption);
    make("pre", { tabindex: 0, role: "region", "aria-label": part.caption }, parent, part.code);
  },
  chart: (parent, part) => chart(parent, { ...part, title: part.caption, width: 560, height: 220, y: part.y.percent ? { min: 0, max: 1, ...part.y } : part.y }),
  alignment: (parent, part, context) => alignmentPart(parent, part, context),
  reads: (parent, part, context) => readsPart(parent, part, context),
  attribution: (parent, part, context) => attributionPart(parent, part, context),
  effects: (parent, part) => effectsPart(parent, part),
  rescaling: (parent, part) => rescalingPart(parent, part),
};

// Two sides and a rank: the overlap of every module, its mean by rank, and the means by projection.
function alignmentPart(parent, { pairs }, { about, model }) {
  const start = model?.get("compared") ?? {}, found = pairs.findIndex(({ sides }) => sides[0] === start.left && sides[1] === start.right);
  let pair = pairs[Math.max(0, found)], rank = Math.min(start.rank ?? 8, pair.rank);
  const bar = make("div", { class: "bar" }, parent), box = make("label", { class: "control" }, bar, "Pair"), select = make("select", {}, box);
  pairs.forEach(({ sides }, i) => { make("option", { value: i }, select, sides.join(" and ")).selected = pairs[i] === pair; });
  const slide = make("label", { class: "control" }, bar, "Rank"), slider = make("input", { type: "range", min: 1, max: pair.rank, step: 1, value: rank }, slide);
  const output = make("output", {}, slide), below = make("div", {}, parent);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / (values.length || 1);
  function draw() {
    output.textContent = rank;
    below.replaceChildren();
    const known = about.names.flatMap((_, k) => (pair.overlaps[k].length ? [k] : [])), at = (k) => pair.overlaps[k][rank - 1];
    const top = known.reduce((best, k) => (at(k) > at(best) ? k : best), known[0]), place = (k) => `layer ${about.columns[about.column[k]]} ${about.rows[about.row[k]]}`;
    const chance = (k) => rank * pair.chance[k][0];
    make("p", { class: "finding" }, below, `${pair.sides.join(" and ")}: first ${rank === 1 ? "direction overlaps" : `${rank} directions overlap`} by ${percent(mean(known.map(at)))}, ` +
      `by chance ${percent(mean(known.map(chance)))}; most in ${place(top)}, ${percent(at(top))}`);
    const side = make("div", { class: "pair" }, below), cells = known.map((k) => [about.row[k], about.column[k], at(k), (100 * at(k)).toFixed(0)]);
    const map = make("div", {}, side), curve = make("div", {}, side), ranks = [...Array(pair.rank).keys()];
    make("div", { class: "key" }, map, "Overlap of each module, percent: projections down, layers across");
    cellGrid(map, { title: `Overlap of ${pair.sides.join(" and ")} at rank ${rank}`, rows: about.rows, columns: about.columns, cells, most: 1, width: 640 });
    chart(curve, { title: "Mean overlap by rank", cursor: rank, x: { label: "rank", min: 1, max: Math.max(2, pair.rank) }, y: { label: "overlap", percent: true, min: 0, max: 1 }, height: 190,
      lines: [{ label: "mean of all modules", points: ranks.map((r) => [r + 1, mean(known.map((k) => pair.overlaps[k][r]))]) },
        { label: "by chance", dash: true, points: ranks.map((r) => [r + 1, mean(known.map((k) => (r + 1) * pair.chance[k][0]))]) }] });
    const rows = about.rows.flatMap((name, j) => {
      const members = known.filter((k) => about.row[k] === j), angle = (i) => number(mean(members.map((k) => pair.angles[k][i])));
      return members.length ? [[name, percent(mean(members.map(at))), percent(mean(members.map(chance))), angle(0), angle(1), angle(2)]] : [];
    });
    drawTable(below, { caption: `By projection, means over layers; angles at rank ${pair.rank} in degrees`, head: ["projection", "overlap", "by chance", "smallest angle", "median", "largest"], rows });
  }
  select.addEventListener("change", () => { pair = pairs[Number(select.value)]; slider.max = pair.rank; rank = Math.min(rank, pair.rank); slider.value = rank; draw(); });
  slider.addEventListener("input", () => { rank = Number(slider.value); draw(); });
  draw();
}

function drawParts(parent, parts, context) {
  for (const part of parts) KINDS[part.kind](make("div", { class: `part ${part.folded ? "folded" : part.kind}` }, parent), part, context);
}

// All panels one below another, for the page.
function panelSections(parent, about, current, model, ask) {
  const drawn = {};
  for (const panel of about.panels) {
    const section = make("section", { class: "panel", id: panel.name }, parent);
    make("h2", {}, section, panel.title);
    if (panel.about) make("p", { class: "about" }, section, panel.about);
    drawn[panel.name] = make("div", { class: "parts" }, section);
    drawParts(drawn[panel.name], panel.name === "allocation" ? current.allocation : panel.parts, { about, model, ask });
  }
  return (now) => { // the one that follows the state
    drawn.allocation?.replaceChildren();
    if (drawn.allocation) drawParts(drawn.allocation, now.allocation, { about, model });
  };
}

// One panel at a time behind tabs, for the widget; a second click on a tab closes it.
function panelTabs(parent, about, model, ask) {
  const list = make("div", { class: "tabs", role: "tablist", "aria-label": "Panels" }, parent), box = make("div", { class: "panel" }, parent);
  const open = (name) => { model.set("panel", name); model.save_changes(); draw(); };
  about.panels.forEach((panel) => {
    const button = describe(make("button", { type: "button", role: "tab", "data-panel": panel.name }, list, panel.title), panel.about.split(/(?<=\.) /)[0]);
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
    drawParts(make("div", { class: "parts" }, box), name === "allocation" ? model.get("current").allocation ?? [] : panel.parts, { about, model, ask });
  }
  model.on("change:panel", draw);
  model.on("change:compared", draw);
  draw();
  return () => { if (model.get("panel") === "allocation") draw(); };
}
