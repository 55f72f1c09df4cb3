addEventListener("DOMContentLoaded", () => {
  // What scrolls by itself is reached by Tab, so that the arrow keys can move it.
  for (const part of document.querySelectorAll("pre, .table-wrapper, .cell_output .output, math[display=block]")) {
    part.tabIndex = 0;
  }
  // Widgets are light or dark as the page is, also where that is not what the system says.
  for (const widget of document.querySelectorAll("iframe.widget")) {
    const follow = () => {
      const root = widget.contentDocument?.documentElement;
      const theme = document.body.dataset.theme;
      if (root) root.style.colorScheme = theme === "auto" ? "" : theme;
    };
    widget.addEventListener("load", follow);
    new MutationObserver(follow).observe(document.body, { attributeFilter: ["data-theme"] });
    follow();
  }
});
