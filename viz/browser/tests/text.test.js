import assert from "node:assert/strict";
import { isSpecial, nats, number, percent, probability, quoted, signed, sizeText, whole } from "../text.js";

/** @type {[(value: any) => any, any, any][]} */
const CASES = [
  [percent, 0, "0\u00a0%"],
  [percent, 0.5, "50\u00a0%"],
  [percent, 0.0123, "1.2\u00a0%"],
  [number, 12.6, "13"],
  [number, 0.123, "0.12"],
  [number, 2, "2"],
  [signed, -3, "\u22123"],
  [signed, 3, "+3"],
  [signed, 0, "0"],
  [nats, 9.95, "+9.9"],
  [nats, -0.456, "\u22120.46"],
  [whole, -1234567, "1,234,567"],
  [sizeText, 999, "999 bytes"],
  [sizeText, 999.6, "1 kB"],
  [sizeText, 25500000000, "25.5 GB"],
  [probability, 0, "100\u00a0%"],
  [probability, Math.log(0.25), "25\u00a0%"],
  [probability, -50, "< .001\u00a0%"],
  [quoted, "a\n", "\u201ca\u23ce\u201d"],
  [isSpecial, " <|im_end|>", true],
  [isSpecial, "[CLS]", true],
  [isSpecial, "a < b", false],
];

for (const [write, value, text] of CASES) {
  Deno.test(`${write.name} of ${JSON.stringify(value)}`, () => assert.equal(write(value), text));
}
