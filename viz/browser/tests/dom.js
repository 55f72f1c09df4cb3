// A document for tests, without a browser: what the code asks of one beyond it is a stand-in.

import { parseHTML } from "linkedom";

/** @import { Content, Message } from "../traits.js" */
/** @typedef {(content: Content) => void} Listener */

const { document, Element, Event, MutationObserver } = parseHTML("<!doctype html><html><body></body></html>");
/** @type {(() => void)[]} */
const observers = [];

class ResizeObserver {
  /** @param {() => void} listener */
  constructor(listener) {
    observers.push(listener);
  }
  observe() {}
  disconnect() {}
}

Object.assign(globalThis, {
  addEventListener: () => {},
  document,
  Element,
  MutationObserver,
  ResizeObserver,
  cancelAnimationFrame: () => {},
  getComputedStyle: () => ({ color: "rgb(0, 0, 0)" }),
});

/**
 * Adds a property to all elements of a kind.
 *
 * @type {(tag: string, name: string, property: PropertyDescriptor & ThisType<HTMLSelectElement>) => void}
 */
function define(tag, name, property) {
  Object.defineProperty(Object.getPrototypeOf(document.createElement(tag)), name, { configurable: true, ...property });
}
define("div", "clientWidth", { value: 800 });
define("input", "validity", { value: { valid: true } });
define("details", "open", {
  get() {
    return this.hasAttribute("open");
  },
  /** @param {unknown} value */
  set(value) {
    this.toggleAttribute("open", Boolean(value));
  },
});
define("select", "value", {
  get() {
    return this.querySelector("[selected]")?.getAttribute("value");
  },
  /** @param {unknown} value */
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

/**
 * Sends an event, such as a key, to an element.
 *
 * @type {(element: EventTarget, type: string, properties?: object) => Event}
 */
export function send(element, type, properties = {}) {
  const event = Object.assign(new Event(type, { bubbles: true, cancelable: true }), properties);
  element.dispatchEvent(event);
  return event;
}

/**
 * A model that holds values and notes what is sent to the kernel. Tests give those of its traits that they need.
 *
 * @param {Record<string, any>} values
 */
export function modelOf(values) {
  /** @type {Record<string, Listener[]>} */
  const listeners = {};
  /** @type {any[]} */
  const sent = [];
  /** @type {(name: string, content?: Content) => void} */
  const tell = (name, content = {}) => (listeners[name] ?? []).forEach((listener) => listener(content));
  return {
    sent,
    tell,
    /** @type {(name: string) => any} */
    get: (name) => values[name],
    /** @type {(name: string, value: any) => void} */
    set(name, value) {
      values[name] = value;
      tell(`change:${name}`);
    },
    save_changes() {},
    /** @type {(name: string, listener: Listener) => void} */
    on: (name, listener) => {
      (listeners[name] ??= []).push(listener);
    },
    /** @type {(name: string, listener: Listener) => void} */
    off: (name, listener) => {
      listeners[name] = (listeners[name] ?? []).filter((other) => other !== listener);
    },
    /** @type {(message: Message) => void} */
    send: (message) => void sent.push(message),
  };
}
