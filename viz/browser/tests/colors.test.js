import assert from "node:assert/strict";
import { blend, groundOf, inkOn, largest, tint } from "../colors.js";

/**
 * The contrast of two colors, as WCAG 2 defines it.
 *
 * @type {(a: number[], b: number[]) => number}
 */
function contrast(a, b) {
  /** @type {(c: number) => number} */
  const linear = (c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const [low, high] = [a, b].map(([red, green, blue]) => {
    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue) + 0.05;
  }).sort((x, y) => x - y);
  return high / low;
}

Deno.test("ink can be read on every color: a contrast of 4.5 or more", () => {
  for (const dark of [false, true]) {
    for (let share = -1; share <= 1; share += 0.05) {
      const { fill, ink } = tint(share, dark), color = fill.match(/\d+/g)?.map(Number) ?? [];
      assert.ok(contrast(color, ink === "#000" ? [0, 0, 0] : [255, 255, 255]) >= 4.5, `${share} on ${fill}`);
    }
  }
});

Deno.test("a share goes from the ground to the hue, and no further", () => {
  assert.deepEqual(blend(groundOf(false), [0, 100, 200], 0), [255, 255, 255]);
  assert.deepEqual(blend(groundOf(true), [0, 100, 200], -1), [0, 100, 200]);
  assert.deepEqual(blend(groundOf(true), [0, 100, 200], 7), [0, 100, 200]);
  assert.equal(inkOn([255, 255, 255]), "#000");
});

Deno.test("the largest is by its size, and never zero", () => {
  assert.equal(largest([1, -3, 2]), 3);
  assert.ok(largest([0]) > 0);
});
