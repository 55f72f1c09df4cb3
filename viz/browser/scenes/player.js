// Runs a training in the page: a step per frame, or as many as the clock asks for.

import { button, group } from "../controls.js";

const PER_SECOND = 60; // steps

/**
 * Buttons that run a training, go one step, and start again.
 *
 * @param {Element} parent
 * @param {{advance: (steps: number) => boolean, restart: () => void}} training `advance` says if steps are left.
 * @returns {{stop: () => void}}
 */
export function player(parent, { advance, restart }) {
  const row = group(parent, "Training");
  let started = 0, done = 0, request = 0;
  // No sentences: shown below the buttons, they would cover the curves that one wants to see.
  const run = button(row, "Run", "", () => (request ? stop() : start()), { class: "primary" });
  button(row, "Step", "", () => {
    stop();
    advance(1);
  });
  button(row, "Start again", "", () => {
    stop();
    restart();
  });
  function start() {
    run.textContent = "Pause";
    [started, done] = [performance.now(), 0];
    request = requestAnimationFrame(frame);
  }
  function frame() {
    const due = Math.max(1, Math.round(((performance.now() - started) * PER_SECOND) / 1000) - done);
    done += due;
    if (advance(due)) request = requestAnimationFrame(frame);
    else stop();
  }
  function stop() {
    cancelAnimationFrame(request);
    request = 0;
    run.textContent = "Run";
  }
  return { stop };
}
