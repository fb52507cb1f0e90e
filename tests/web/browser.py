"""A Chromium to look at the page with, and how to find and press things on it."""

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync --force-color-profile=srgb"
)
_PATIENCE = 20  # seconds


def missing() -> str | None:
    """What a machine lacks to run Chromium; None: nothing."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    absent += [name for name in ("selenium",) if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


class Browser:
    """One window, driven by selectors."""

    def __init__(self, driver: "Chrome"):
        self.driver = driver

    def open(self, url: str, language: str = "en") -> None:
        """Show a page anew, as on the first visit, in a language."""
        self.driver.get(url)
        self.run("sessionStorage.clear(); localStorage.setItem('ppvilg.language', arguments[0])", language)
        self.driver.get(url)
        self.until(lambda: self.text("#version"))

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> "WebElement":
        """The first element."""
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> "list[WebElement]":
        """Every element that can be seen."""
        return [found for found in self.driver.find_elements("css selector", selector) if found.is_displayed()]

    def text(self, selector: str) -> str:
        """What the first element says."""
        return self.find(selector).text

    def press(self, selector: str) -> None:
        """Click on the first element once it can be seen."""
        self.until(lambda: self.all(selector))
        element = self.all(selector)[0]
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def type(self, selector: str, text: str) -> None:
        """Replace what a field holds."""
        field = self.find(selector)
        field.clear()
        field.send_keys(text)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for a condition and return its value; elements may vanish while it looks at them."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, _PATIENCE, 0.03, [StaleElementReferenceException]).until(lambda _: condition())

    def pressed(self, *keys: str) -> None:
        """Press keys where the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def complaints(self) -> list[str]:
        """What the console holds since the last call, except that an answer was an error."""
        lines = [line["message"] for line in self.driver.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]
        return [line for line in lines if "Failed to load resource" not in line]

    def requests(self) -> list[str]:
        """The addresses that were asked since the last call."""
        events = [json.loads(line["message"])["message"] for line in self.driver.get_log("performance")]
        asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "chrome:"))]

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the page, in CSS pixels, and its colours."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [colours]})


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a past; it ends with the block."""
    from selenium import webdriver

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in [*_FLAGS.split(), f"--user-data-dir={Path(folder) / 'profile'}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
