"""The page in front of the real server, with a tiny model that draws noise."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.web.browser import Browser


@pytest.fixture(scope="module")
def url(tiny_model: Path) -> Iterator[str]:
    """A server on a free port, with a style."""
    import uvicorn

    from ppvilg import ViLGPipeline
    from ppvilg.server.app import create_app

    pipeline = ViLGPipeline.from_pretrained(tiny_model)
    pipeline.config = replace(pipeline.config, styles={"flat": {"zh": "扁平{}", "en": "{} in flat style"}})
    server = uvicorn.Server(uvicorn.Config(create_app(pipeline), port=0, log_level="warning"))
    socket = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.slow
def test_the_page_and_the_server_understand_each_other(browser: Browser, url: str) -> None:
    browser.complaints()
    browser.open(url)
    browser.press("#styles .chip:nth-child(2)")
    browser.type("#seed", "3")
    browser.type("#prompt", "红色方块")
    browser.press("#submit")
    browser.until(lambda: len(browser.all(".tile")) == 4 and browser.all(".tile .action"))
    assert browser.text("#stage-title") == "扁平红色方块"
    browser.press(".tile .action:nth-child(3)")
    browser.until(lambda: browser.all(".said"))
    browser.press(".tile .action:nth-child(2)")
    browser.press("#submit")
    browser.until(lambda: "extended" in browser.text("#stage-meta") and browser.all(".tile .action"))
    browser.type("#prompt", "红" * 50)
    browser.press("#submit")
    browser.until(lambda: "cannot draw this" in browser.text("#notice"))
    assert browser.complaints() == []
