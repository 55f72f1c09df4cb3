import { BLUE, RED, tint } from "./colors.js";
import { make } from "./elements.js";
import { isSpecial, signedNumber, visible } from "./text.js";

export function coloredToken(box, text, share, dark) {
  const { fill, ink } = tint(share, dark);
  return make(
    "span",
    { class: `token${isSpecial(text) ? " special" : ""}`, style: `background: ${fill}; color: ${ink}` },
    box,
    visible(text),
  );
}

export function drawRamp(parent, most, words, dark) { // the colors of values from -most to most
  const legend = make("div", { class: "legend" }, parent);
  make("span", {}, legend, signedNumber(-most));
  make(
    "span",
    { class: "ramp", style: `background: linear-gradient(to right, rgb(${BLUE}), ${tint(0, dark).fill}, rgb(${RED}))` },
    legend,
    "0",
  );
  make("span", {}, legend, `${signedNumber(most)} (${words})`);
}
