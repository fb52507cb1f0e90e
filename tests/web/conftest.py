"""The page in a browser, in front of a fake server."""

from collections.abc import Iterator

import pytest

from tests.web.browser import Browser, chromium, missing
from tests.web.fake import Fake, fake_server


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests."""
    if reason := missing():
        pytest.skip(f"the page is tested in Chromium ({reason})")
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def _server() -> Iterator[Fake]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def fake(_server: Fake) -> Fake:
    """The fake server as new."""
    _server.reset()
    return _server


@pytest.fixture
def page(browser: Browser, fake: Fake) -> Iterator[Browser]:
    """The page, opened in English; afterwards nothing was complained about and no other server was asked."""
    browser.complaints()
    browser.requests()
    browser.resize(1280, 900)
    browser.open(fake.url)
    yield browser
    fake.finish.set()
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith(f"{fake.url}/")] == []
