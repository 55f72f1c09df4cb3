// What is drawn in a panel follows the kernel.

/** @import { Model } from "../traits.js" */

/**
 * Has what is drawn in an element follow the kernel until the element is gone, because another panel is open.
 *
 * @type {(root: Element, model: Model, events: Record<string, () => void>) => void}
 */
export function followKernel(root, model, events) {
  let wasOnPage = root.isConnected;
  const listeners = Object.entries(events).map(([event, follow]) => {
    const listener = () => {
      if (!root.isConnected && wasOnPage) return listeners.forEach(([name, each]) => model.off?.(name, each));
      wasOnPage = root.isConnected;
      follow();
    };
    return /** @type {const} */ ([event, listener]);
  });
  for (const [event, listener] of listeners) model.on(event, listener);
}
