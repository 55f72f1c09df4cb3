// Numbers and tokens as text.

export const MINUS = "\u2212";
/** @type {Record<string, string>} */
const SIGNS = { "\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d" };

/** @type {(x: number) => string} */
export const percent = (x) => (x >= 0.0995 || x === 0 ? (100 * x).toFixed(0) : (100 * x).toPrecision(2)) + "\u00a0%";
/** @type {(x: number) => string} */
export const sign = (x) => (x > 0 ? "+" : x < 0 ? MINUS : "");
/** @type {(x: number) => string} */
export const signed = (x) => sign(x) + Math.abs(x);
/** @type {(x: number, digits?: number) => string} */
export const signedNumber = (x, digits = 2) => sign(x) + Math.abs(x).toFixed(digits);
/** @type {(x: number) => string} */
export const number = (x) => (Math.abs(x) >= 10 ? x.toFixed(0) : String(+x.toPrecision(2)));
/** @type {(x: number) => string} */
export const lossText = (x) => x < 0.001 ? "below 0.001" : x < 100 ? x.toPrecision(3) : x.toFixed(0);
/** @type {(x: number) => string} */
export const whole = (x) => Math.abs(x).toLocaleString("en-US");
/** @type {(x: number) => string} */
export const signedWhole = (x) => (x < 0 ? MINUS : "+") + whole(x);
/** @type {(x: number) => string} */
export const nats = (x) => signedNumber(x, Math.abs(x) >= 9.95 ? 1 : 2);
/** @type {(x: number) => string} */
export const unsignedNats = (x) => nats(x).replace("+", "");
/** @type {(words: string) => string} */
export const capitalized = (words) => words[0].toUpperCase() + words.slice(1);

/**
 * A size in bytes as three digits and a unit.
 *
 * @type {(bytes: number) => string}
 */
export function sizeText(bytes) {
  for (const unit of ["bytes", "kB", "MB"]) {
    if (bytes < 999.5) return `${+bytes.toPrecision(3)} ${unit}`;
    bytes /= 1000;
  }
  return `${+bytes.toPrecision(3)} GB`;
}

/**
 * A probability from its logarithm.
 *
 * @type {(logarithm: number) => string}
 */
export function probability(logarithm) {
  const p = Math.exp(logarithm);
  return p > 0.9995 ? "100\u00a0%" : p < 1e-5 ? "< .001\u00a0%" : percent(p);
}

/** @type {(token: string) => string} */
export const visible = (token) => token.replace(/[\n\t\r]/g, (c) => SIGNS[c]);
/** @type {(token: string) => string} */
export const quoted = (token) => `\u201c${visible(token)}\u201d`;
/** @type {(token: string) => boolean} */
export const isSpecial = (token) => /^\s*(<[^\s<>]+>|\[[A-Z]+\])\s*$/.test(token);
