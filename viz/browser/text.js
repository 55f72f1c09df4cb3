export const MINUS = "\u2212";
export const percent = (x) => (x >= 0.0995 || x === 0 ? (100 * x).toFixed(0) : (100 * x).toPrecision(2)) + "\u00a0%";
export const signed = (x) => (x > 0 ? "+" : x < 0 ? MINUS : "") + Math.abs(x);
export function sizeText(bytes) { // three digits and a unit
  for (const unit of ["bytes", "kB", "MB"]) {
    if (bytes < 999.5) return `${+bytes.toPrecision(3)} ${unit}`;
    bytes /= 1000;
  }
  return `${+bytes.toPrecision(3)} GB`;
}

export const number = (x) => (Math.abs(x) >= 10 ? x.toFixed(0) : String(+x.toPrecision(2)));
const SIGNS = { "\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d" };
export const visible = (token) => token.replace(/[\n\t\r]/g, (c) => SIGNS[c]);
export const isSpecial = (token) => /^\s*(<[^\s<>]+>|\[[A-Z]+\])\s*$/.test(token);
export const quoted = (token) => `\u201c${visible(token)}\u201d`;
export const signedNumber = (v, digits = 2) => (v > 0 ? "+" : v < 0 ? MINUS : "") + Math.abs(v).toFixed(digits);
export const nats = (v) => signedNumber(v, Math.abs(v) >= 9.95 ? 1 : 2);
export const size = (v) => nats(v).replace("+", "");
export function probability(logarithm) {
  const p = Math.exp(logarithm);
  return p > 0.9995 ? "100\u00a0%" : p < 1e-5 ? "< .001\u00a0%" : percent(p);
}
