import { isDark } from "../colors.js";
import { make } from "../elements.js";
import { coloredToken, drawRamp } from "../strip.js";
import { probability, quoted, signedNumber } from "../text.js";

const OPENED = 6; // texts that are shown before one asks for more
export function effectsPart(parent, part) {
  const choice = (part.choice ??= { set: "", all: false }),
    root = make("div", { class: "strips" }, parent),
    bar = make("div", { class: "bar" }, root);
  const select = make("select", {}, make("label", { class: "control" }, bar, "Texts"));
  for (const name of ["", ...part.sets]) {
    make("option", { value: name }, select, name || "all sets").selected = name === choice.set;
  }
  select.addEventListener("change", () => {
    Object.assign(choice, { set: select.value, all: false });
    draw();
  });
  const list = make("div", {}, root);
  const sizes = part.samples.flatMap(({ rise }) => rise.map(Math.abs)).sort((a, b) => a - b),
    most = Math.max(sizes[Math.floor(0.98 * sizes.length)], 1e-6);
  function draw() {
    const found = part.samples.filter(({ set }) => !choice.set || set === choice.set),
      shown = choice.all ? found : found.slice(0, OPENED);
    const dark = isDark(root);
    list.replaceChildren();
    drawRamp(
      list,
      most,
      "nats that a token gained or lost; beyond are 2\u00a0% of the tokens; faint: not measured",
      dark,
    );
    for (const { set, tokens, positions, base, rise } of shown) {
      const line = make("div", { class: "sample" }, list), mean = rise.reduce((sum, v) => sum + v, 0) / rise.length;
      make("span", { class: "set" }, line, `${set} ${signedNumber(-mean)}`).title =
        "change of the loss, nats per token";
      const strip = make("span", { class: "strip" }, line), at = new Map(positions.map((place, k) => [place, k]));
      tokens.forEach((text, place) => {
        const k = at.get(place), token = coloredToken(strip, text, k === undefined ? 0 : rise[k] / most, dark);
        if (k === undefined) token.classList.add("faint");
        else {token.title = `${quoted(text)}: ${signedNumber(rise[k])} nats, from ${probability(base[k])} to ${
            probability(base[k] + rise[k])
          }`;}
        if (text.endsWith("\n")) make("br", {}, strip);
      });
    }
    const hidden = found.length - shown.length,
      words = part.of > part.samples.length
        ? ` Of the ${part.of} texts, the worst ${part.samples.length} are here.`
        : "";
    const foot = make(
      "div",
      { class: "key" },
      list,
      `${shown.length} of ${found.length} texts, the worst first; the number is the change of the loss, nats per token.${words}`,
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
