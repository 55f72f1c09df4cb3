import { make } from "./elements.js";
import { describe } from "./explain.js";

// The curves of one or several trainings: training losses thin, held-out losses with dots.
export function drawBar(parent, { words, done, total }) { // of one item, no share is known until it is done
  make("progress", { ...(total > 1 && { max: total, value: done }), "aria-label": words }, parent);
  parent.append(words + (total > 1 ? `: ${done} of ${total}` : ""));
}

// A line of Python with a button that copies it.
export function copyable(parent) {
  const line = make("code", { tabindex: 0 }, parent),
    button = describe(make("button", { type: "button" }, parent, "Copy"), "Copy the line of Python");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(line.textContent);
    button.textContent = "Copied";
    setTimeout(() => {
      button.textContent = "Copy";
    }, 1200);
  });
  return line;
}
