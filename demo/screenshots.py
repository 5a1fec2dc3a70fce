"""Make the demo's pictures for README and docs, in a real headless Chromium.

    python demo/screenshots.py --url http://127.0.0.1:7860 --out docs/images
    python demo/screenshots.py --url http://127.0.0.1:7860 --out /tmp/looks --every-look

The demo must be running there. --every-look takes each tab wide and narrow, light and dark.
Needs Playwright (pip install 'vlmoe[test]') and Chromium at /usr/bin/chromium or $CHROMIUM.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from vlmoe.errors import run_command
from vlmoe.flags import Parser

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
WIDTHS = {"wide": 1280, "narrow": 390}
PATIENCE = 120_000  # milliseconds; machines may be busy with other things


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--every-look", action="store_true")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        looks = [("wide", "light")]
        if args.every_look:
            looks = [(width, scheme) for width in WIDTHS for scheme in ("light", "dark")]
        for width, scheme in looks:
            suffix = f"-{width}-{scheme}" if args.every_look else ""
            with opened(browser, args.url, WIDTHS[width], scheme) as page:
                for name in tour(page):
                    save(page, args.out / f"demo-{name}{suffix}.png")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser that asks nobody but the page's own server for anything."""
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, width: int = 1280, scheme: str = "light") -> Iterator[Page]:
    """The demo in a fresh window, ready to be used."""
    context = browser.new_context(
        viewport={"width": width, "height": 860},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.goto(url)
    expect(page.locator("#status")).to_contain_text("Ready")
    yield page
    context.close()


def tour(page: Page) -> Iterator[str]:
    """Ask, choose and look at the experts; yields the name of each tab when it is to be seen."""
    page.get_by_role("button", name="Three shapes").click()
    question = page.locator("#question textarea")
    expect(question).to_have_value("How many shapes are there?")
    expect(page.locator("#picture img")).to_be_visible()
    for text in ("How many shapes are there?", "What colour is the cross?"):
        question.fill(text)
        page.locator("#send").click()
        expect(page.locator("#chat")).to_contain_text(text)
        expect(question).to_have_value("")
        expect(page.locator("#ask-note")).not_to_contain_text("Answering")
    page.wait_for_timeout(500)
    yield "ask"
    page.get_by_role("tab", name="Choose").click()
    page.locator("#mc-send").click()
    expect(page.locator("#bars td")).not_to_have_count(0)
    page.wait_for_timeout(500)
    yield "choose"
    page.get_by_role("tab", name="Experts").click()
    expect(page.locator("#maps img").first).to_be_visible()
    expect(page.locator("#patches img")).to_be_visible()
    expect(page.locator("#tokens .tokens")).to_be_visible()
    page.wait_for_timeout(500)
    yield "experts"


def save(page: Page, file: Path) -> None:
    """The whole page as a PNG with a palette, which is small."""
    page.screenshot(path=file, full_page=True)
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    run_command(main)
