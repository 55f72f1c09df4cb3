"""The picture of the panel Answers, for README and the page on attribution: of the adapter that `make demo` leaves.

    make demo
    tlora explain demo --data notebooks/data/smart_home --rows 0 --output answers.html
    python docs/gallery/answers.py answers.html

writes ``docs/answers.png``; it needs Chromium, which `make browser` installs.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parents[1] / "answers.png"
WIDTH, HEIGHT, DENSITY = 1100, 1400, 1.3
"""Of the window in pixels, and how many pixels of the picture each of them has."""
LISTED = 5
"""Rows that are in the picture."""
MARGIN = 8


def main() -> None:
    """Open the first row of a page, and take the picture of it and of the rows below."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=DENSITY, color_scheme="light"
        )
        page.goto(Path(sys.argv[1]).resolve().as_uri())
        rows, first = page.locator("#answers .answers-row"), page.locator("#answers .finding")
        rows.first.click()
        page.mouse.move(0, 0)
        top, last = first.bounding_box(), rows.nth(LISTED - 1).bounding_box()
        height = last["y"] + last["height"] - top["y"] + MARGIN
        clip = {"x": 0, "y": top["y"] - MARGIN, "width": WIDTH, "height": height}
        page.screenshot(path=PICTURE, clip=clip)
        browser.close()


if __name__ == "__main__":
    main()
