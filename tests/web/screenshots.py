"""Pictures of the page of a running server: python -m tests.web.screenshots --url http://127.0.0.1:8000 --out docs/images."""

import argparse
from pathlib import Path

from tests.web.browser import Browser, chromium

_WIDE, _NARROW = (1280, 860), (390, 844)


def main() -> None:
    """Write page_empty.png, page_growing.png, page_done.png and page_narrow.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--prompt", default="red apple")
    parser.add_argument("--language", choices=["en", "zh"], default="en")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        browser.resize(*_WIDE, arguments.dark)
        browser.open(arguments.url, arguments.language)
        _save(browser, arguments.out / "page_empty.png")
        _draw(browser, arguments.prompt)
        browser.until(lambda: browser.run("return document.getElementById('progress').value >= 0.5"))
        _save(browser, arguments.out / "page_growing.png")
        browser.until(lambda: browser.all(".action"))
        _save(browser, arguments.out / "page_done.png")
        browser.resize(*_NARROW, arguments.dark)
        browser.run("document.getElementById('stage').scrollIntoView()")
        _save(browser, arguments.out / "page_narrow.png")


def _draw(browser: Browser, prompt: str) -> None:
    browser.type("#prompt", prompt)
    browser.type("#seed", "7")
    browser.press("#styles .chip:nth-child(2)")
    browser.press("#submit")
    browser.run("scrollTo(0, 0)")


def _save(browser: Browser, path: Path) -> None:
    # What is half moved would be different each time.
    browser.run("for (const moving of document.getAnimations()) if (moving instanceof CSSTransition) moving.finish()")
    browser.driver.save_screenshot(str(path))
    print(path)


if __name__ == "__main__":
    main()
