// A document for tests, without a browser: what the code asks of one beyond it is a stand-in.

import { parseHTML } from "linkedom";

const { document, Event, MutationObserver } = parseHTML("<!doctype html><html><body></body></html>");
const observers = [];

class ResizeObserver {
  constructor(listener) {
    observers.push(listener);
  }
  observe() {}
  disconnect() {}
}

Object.assign(globalThis, {
  addEventListener: () => {},
  document,
  MutationObserver,
  ResizeObserver,
  cancelAnimationFrame: () => {},
  getComputedStyle: () => ({ color: "rgb(0, 0, 0)" }),
});

/** Adds a property to all elements of a kind. */
function define(tag, name, property) {
  Object.defineProperty(Object.getPrototypeOf(document.createElement(tag)), name, { configurable: true, ...property });
}
define("div", "clientWidth", { value: 800 });
define("input", "validity", { value: { valid: true } });
define("select", "value", {
  get() {
    return this.querySelector("[selected]")?.getAttribute("value");
  },
  set(value) {
    for (const option of this.children) {
      option.toggleAttribute("selected", option.getAttribute("value") === String(value));
    }
  },
});

/**
 * An empty element on the page.
 *
 * @returns {any}
 */
export function place() {
  const element = document.createElement("div");
  document.body.replaceChildren(element);
  return element;
}

/** Has what was drawn be laid out, in a width of 800 pixels. */
export function resize() {
  for (const listener of observers.splice(0)) listener();
}

/** Sends an event, such as a key, to an element. */
export function send(element, type, properties = {}) {
  const event = Object.assign(new Event(type, { bubbles: true, cancelable: true }), properties);
  element.dispatchEvent(event);
  return event;
}

/** A model that holds values and notes what is sent to the kernel. */
export function modelOf(values) {
  const listeners = {}, sent = [];
  const tell = (name, ...args) => (listeners[name] ?? []).forEach((listener) => listener(...args));
  return {
    sent,
    tell,
    get: (name) => values[name],
    set(name, value) {
      values[name] = value;
      tell(`change:${name}`);
    },
    save_changes() {},
    on: (name, listener) => {
      (listeners[name] ??= []).push(listener);
    },
    off: (name, listener) => {
      listeners[name] = (listeners[name] ?? []).filter((other) => other !== listener);
    },
    send: (message) => sent.push(message),
  };
}
