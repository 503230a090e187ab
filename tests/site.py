"""The built site on a phone and on a desktop: no page is wider than the screen, code has room, pictures have texts.

``make docs`` runs this after it has built the site; ``make test`` does not collect it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lib.browser import browser

SITE = Path(__file__).parent.parent / "build" / "docs"
#: The widths of a small phone, a laptop and a large screen, in CSS pixels.
WIDTHS = (390, 1280, 1920)

#: The faults of a page: elements that are cut off, and pictures whose text is missing or a file's name. The theme cuts
#: off what is too wide, and the page does not scroll: each element must end on the screen, or be in one that scrolls.
FAULTS = """
const faults = [], width = document.documentElement.clientWidth;
const scrolls = (element) => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
function scrollsWith(element) {
  for (; element.tagName !== "ARTICLE"; element = element.parentElement) if (scrolls(element)) return true;
  return false;
}
if (document.documentElement.scrollWidth > width) faults.push("the page scrolls sideways");
for (const element of document.querySelectorAll("article *")) {
  const right = element.getBoundingClientRect().right;
  if (right > width + 1 && !scrollsWith(element)) {
    faults.push(`${element.tagName} to ${Math.round(right)} pixels: ${element.textContent.trim().slice(0, 40)}`);
  }
}
for (const image of document.querySelectorAll("article img")) {
  const name = image.getAttribute("src");
  if (!image.complete || !image.naturalWidth) faults.push(`${name} is not shown`);
  if (!image.alt.trim() || image.alt === name) faults.push(`${name} has no text`);
}
return faults;
"""

#: Code that does not fit: on a wide screen a line that scrolls, on a phone an option that breaks behind its dashes.
#: A report of the traffic generator is as wide as it is.
CRAMPED = """
const faults = [], wide = document.documentElement.clientWidth > 1000;
for (const code of document.querySelectorAll("article pre")) {
  if (!wide || code.scrollWidth <= code.clientWidth + 1 || code.textContent.startsWith("stream   ")) continue;
  const longest = code.textContent.split("\\n").reduce((a, b) => (a.length < b.length ? b : a));
  faults.push(`${longest.length} characters: ${longest.slice(0, 60)}`);
}
for (const word of document.querySelectorAll("article code .pre")) {
  if (word.textContent.startsWith("--") && word.getClientRects().length > 1) faults.push(`${word.textContent} breaks`);
}
return faults;
"""


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_the_screen_and_pictures_have_texts(width: int, tmp_path: Path) -> None:
    faults = {}
    with browser(tmp_path) as window:
        window.size(width, 800)
        for page in sorted(SITE.rglob("*.html")):
            window.open(page.as_uri())
            if found := [*window.run(FAULTS), *window.run(CRAMPED)]:
                faults[str(page.relative_to(SITE))] = found
    assert faults == {}
