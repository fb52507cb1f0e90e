import base64
from pathlib import Path

import pytest

from tests.web.browser import Browser
from tests.web.fake import MODEL, Failure, Fake, square

ENTER, ESCAPE = "\ue007", "\ue00c"
PICTURES = ".tile img"


def draw(page: Browser, prompt: str = "red apple") -> None:
    """Draw and wait until it is done."""
    page.type("#prompt", prompt)
    page.pressed(ENTER)
    finished(page)


def finished(page: Browser) -> None:
    page.until(lambda: page.all("#submit") and page.all(".tile .action"))


def sources(page: Browser) -> list[str]:
    return page.run("return [...document.querySelectorAll('.tile img')].map((image) => image.src.split(',')[1])")


def clipped(page: Browser) -> str:
    return page.run("return document.querySelector('.tile img').style.clipPath")


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    path = tmp_path / "apple.png"
    path.write_bytes(base64.b64decode(square(5)))
    return path


def test_pictures_grow_and_are_done(page: Browser, fake: Fake) -> None:
    fake.finish.clear()
    page.type("#prompt", "red apple")
    page.pressed(ENTER)
    page.until(lambda: len(page.all(PICTURES)) == 4)
    assert sources(page) == [square(1234 + i, 0.5) for i in range(4)]
    # 36 tokens: four rows, and half of the fifth.
    assert clipped(page) == "polygon(0% 0%, 100% 0%, 100% 50%, 50% 50%, 50% 62.5%, 0% 62.5%)"
    assert page.text("#stage-meta") == "36 of 64 tokens"
    assert not page.all(".tile .action")
    fake.finish.set()
    finished(page)
    assert sources(page) == [square(1234 + i) for i in range(4)]
    assert clipped(page) == "none"
    ((path, body, key),) = fake.asked
    assert (path, key) == ("/v1/images", None)
    assert body == {
        "prompt": "red apple",
        "style": None,
        "n": 4,
        "seed": None,
        "temperature": 1,
        "top_k": 0,
        "guidance": 2,
        "response_format": "b64_json",
        "stream": True,
    }
    assert page.find(".tile .action").get_attribute("download") == "red-apple-1234.png"
    assert "fits 75 %" in page.text(".tile")


def test_the_place_in_the_queue_and_pictures_that_are_done_early(page: Browser, fake: Fake) -> None:
    fake.place, fake.early = 2, [1]
    fake.finish.clear()
    page.type("#prompt", "red apple")
    page.pressed(ENTER)
    page.until(lambda: page.text("#stage-meta") == "Waiting, 2 before this one")
    fake.begin.set()
    page.until(lambda: len(page.all(PICTURES)) == 4 and sources(page)[1] == square(1235))
    assert [sources(page)[i] for i in (0, 2, 3)] == [square(1234 + i, 0.5) for i in (0, 2, 3)]
    styles = page.run("return [...document.querySelectorAll('.tile img')].map((image) => image.style.clipPath)")
    assert styles[1] == "none"
    assert styles[0].startswith("polygon")
    fake.finish.set()
    finished(page)


def test_an_adapter_is_chosen(page: Browser, fake: Fake) -> None:
    assert not page.find("#adapter-field").is_displayed()
    fake.model = MODEL | {"adapters": ["ink", "pixel"]}
    page.open(fake.url)
    page.until(lambda: page.run("return document.querySelectorAll('#adapter option').length") == 3)
    page.run("document.querySelector('#advanced').open = true; document.querySelector('#adapter').value = 'pixel'")
    assert page.find("#adapter-field").is_displayed()
    draw(page)
    assert fake.asked[-1][1]["lora"] == "pixel"


def test_the_used_seed_can_be_used_again(page: Browser, fake: Fake) -> None:
    draw(page)
    assert page.text("#stage-meta") == "Seed 1234"
    page.press(".tile:nth-child(3) .seed")
    page.press("#submit")
    page.until(lambda: len(fake.asked) == 2)
    assert fake.asked[1][1]["seed"] == 1236


def test_every_choice_is_sent(page: Browser, fake: Fake) -> None:
    page.press("#examples .chip:nth-child(2)")
    assert [chip.text for chip in page.all("#styles .chip")] == ["None", "Noto style", "3D style"]
    page.press("#styles .chip:nth-child(3)")
    for _ in range(9):
        page.press("#more")
    assert page.find("#count").get_property("value") == "6"
    page.press("#fewer")
    page.type("#seed", "7")
    page.press("#advanced summary")
    page.type("#top-k", "100")
    assert [option.text for option in page.all("#candidates option")][-1] == "32 candidates"
    page.find("#candidates option[value='16']").click()
    page.press("#submit")
    finished(page)
    body = fake.asked[0][1]
    chosen = {"prompt": "sunflower", "style": "fluent-3d", "n": 5, "seed": 7, "top_k": 100, "candidates": 16}
    assert {name: body[name] for name in chosen} == chosen


def test_a_model_without_styles_guidance_and_dual_encoder_offers_none(page: Browser, fake: Fake) -> None:
    fake.model = {**MODEL, "styles": {}, "guidance": False, "dual_encoder": False}
    page.open(fake.url)
    page.press("#advanced summary")
    assert not page.all("#styles, #guidance, #candidates")
    draw(page)
    assert not {"guidance", "candidates"} & set(fake.asked[0][1])


@pytest.mark.parametrize("by_key", [False, True])
def test_cancelling_closes_the_connection(page: Browser, fake: Fake, by_key: bool) -> None:
    fake.finish.clear()
    page.type("#prompt", "red apple")
    page.press("#submit")
    page.until(lambda: page.all(PICTURES))
    page.pressed(ESCAPE) if by_key else page.press("#cancel")
    page.until(lambda: page.all("#submit"))
    assert page.text("#stage-meta") == "Cancelled after 36 of 64 tokens"
    page.until(fake.gone.is_set)
    assert not page.all("#notice, #history")


def test_a_phone_shows_cancel_beside_the_pictures(page: Browser, fake: Fake) -> None:
    page.resize(360, 740)
    fake.finish.clear()
    page.type("#prompt", "red apple")
    page.press("#submit")
    page.until(lambda: page.all("#cancel-here"))
    page.until(lambda: page.all(PICTURES))
    bottom = page.run("return document.getElementById('cancel-here').getBoundingClientRect().bottom")
    assert 0 < bottom < 740
    page.press("#cancel-here")
    page.until(lambda: page.all("#submit"))
    page.until(fake.gone.is_set)


def test_enter_that_ends_chinese_input_draws_nothing(page: Browser, fake: Fake) -> None:
    page.type("#prompt", "hong")
    press = (
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))"
    )
    page.run(press)
    assert not fake.asked
    page.pressed(ENTER)
    page.until(lambda: fake.asked)


def test_an_empty_prompt_is_not_sent(page: Browser, fake: Fake) -> None:
    page.press("#submit")
    page.until(lambda: "Write what the picture should show" in page.text("#notice"))
    assert not fake.asked


def test_an_uploaded_picture_gets_captions(page: Browser, fake: Fake, upload: Path) -> None:
    page.press("#tab-describe")
    page.find("#describe-file").send_keys(str(upload))
    page.until(lambda: len(page.all("#captions li")) == 1)
    assert "caption 0 of 1" in page.text("#captions")
    assert "fits 88 %" in page.text("#captions")
    assert fake.asked[0][:2] == ("/v1/captions", {"image": square(5), "n": 1, "beams": 4})
    page.press("#captions-more")
    page.until(lambda: len(page.all("#captions li")) == 5)
    assert fake.asked[1][1] == {"image": square(5), "n": 4, "temperature": 1}
    page.press("#captions .link")
    assert page.find("#prompt").get_property("value") == "caption 0 of 1"


def test_a_question_gets_an_answer(page: Browser, fake: Fake, upload: Path) -> None:
    page.press("#tab-describe")
    assert not page.find("#question").is_displayed(), "before there is a picture"
    page.find("#describe-file").send_keys(str(upload))
    page.until(lambda: len(page.all("#captions li")) == 1)
    page.type("#question", "what is this?")
    page.press("#question-ask")
    page.until(lambda: len(page.all("#captions li")) == 2)
    assert page.text("#captions li:nth-child(2)") == "what is this? answer to what is this?"
    assert fake.asked[1][:2] == ("/v1/answers", {"image": square(5), "question": "what is this?", "n": 1, "beams": 4})


def test_a_model_that_answers_nothing_is_not_asked(page: Browser, fake: Fake, upload: Path) -> None:
    fake.model = {**fake.model, "max_question": 0}
    page.open(fake.url)
    page.press("#tab-describe")
    page.find("#describe-file").send_keys(str(upload))
    page.until(lambda: page.all("#captions li"))
    assert not page.find("#question").is_displayed()


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_a_pasted_or_dropped_picture_gets_captions(page: Browser, fake: Fake, way: str) -> None:
    page.run(
        """
        const bytes = Uint8Array.from(atob(arguments[1]), (character) => character.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "a.png", {type: "image/png"}));
        const options = {bubbles: true, cancelable: true, clipboardData: transfer, dataTransfer: transfer};
        const event = arguments[0] === "paste" ? new ClipboardEvent("paste", options) : new DragEvent("drop", options);
        document.body.dispatchEvent(event);
        """,
        way,
        square(5),
    )
    page.until(lambda: page.all("#captions li"))
    assert fake.asked[0][1]["image"] == square(5)


def test_what_is_no_picture_is_not_sent(page: Browser, fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("words")
    page.press("#tab-describe")
    page.find("#describe-file").send_keys(str(path))
    page.until(lambda: "cannot be read as a picture" in page.text("#notice"))
    assert not fake.asked


def test_a_large_picture_is_scaled_down_first(page: Browser, fake: Fake, tmp_path: Path) -> None:
    import cv2
    import numpy as np

    path = tmp_path / "large.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), np.uint8))
    page.press("#tab-describe")
    page.find("#describe-file").send_keys(str(path))
    page.until(lambda: page.all("#captions li"))
    sent = cv2.imdecode(np.frombuffer(base64.b64decode(fake.asked[0][1]["image"]), np.uint8), cv2.IMREAD_COLOR)
    assert sent.shape == (1024, 1365, 3)


def test_a_result_gets_a_caption_beneath_it(page: Browser, fake: Fake) -> None:
    draw(page)
    page.press(".tile:nth-child(2) .action:nth-child(3)")
    page.until(lambda: "caption 0 of 1" in page.text(".tile:nth-child(2)"))
    assert fake.asked[1][1]["image"] == square(1235)
    page.driver.refresh()
    page.press(".past")
    assert page.text(".tile:nth-child(2) .notes") == "caption 0 of 1\nfits 75 %\n#1235"


def test_a_result_is_extended(page: Browser, fake: Fake) -> None:
    draw(page)
    page.press(".tile:nth-child(2) .action:nth-child(2)")
    assert page.text("#keep-label") == "Keep 4 of 8 rows"
    page.press("#submit")
    page.until(lambda: len(fake.asked) == 2)
    finished(page)
    body = fake.asked[1][1]
    assert (body["image"], body["keep_rows"]) == (square(1235), 4)
    page.press("#start-remove")
    draw(page)
    assert not {"image", "keep_rows"} & set(fake.asked[2][1])


def test_an_uploaded_picture_is_extended(page: Browser, fake: Fake, upload: Path) -> None:
    page.find("#start-file").send_keys(str(upload))
    page.until(lambda: page.all("#keep-rows"))
    assert [page.find("#keep-rows").get_attribute(name) for name in ("min", "max")] == ["1", "7"]
    page.find("#keep-rows").send_keys("\ue014")  # arrow to the right
    assert page.text("#keep-label") == "Keep 5 of 8 rows"
    draw(page)
    body = fake.asked[0][1]
    assert (body["image"], body["keep_rows"]) == (square(5), 5)


def test_a_busy_server_says_when_to_try_again(page: Browser, fake: Fake) -> None:
    fake.failures.append(Failure(503, "overloaded", "30 sequences wait already", {"Retry-After": "2"}))
    page.type("#prompt", "red apple")
    page.press("#submit")
    page.until(lambda: page.all("#notice"))
    notice = page.text("#notice")
    assert "The server is busy" in notice
    assert "30 sequences wait already" in notice
    assert "in 2 seconds" in notice
    assert not page.find("#retry").is_enabled()
    page.until(lambda: page.find("#retry").is_enabled())
    page.press("#retry")
    finished(page)
    assert not page.all("#notice")
    assert fake.asked[0][1] == fake.asked[1][1]


@pytest.mark.parametrize(
    ("status", "words"), [(422, "cannot draw this"), (429, "Too many requests"), (504, "too long"), (500, "a problem")]
)
def test_errors_are_said_with_the_servers_words(page: Browser, fake: Fake, status: int, words: str) -> None:
    message = "the prompt has <b>too</b> many tokens"
    fake.failures.append(Failure(status, "code", message))
    page.type("#prompt", "red apple")
    page.press("#submit")
    page.until(lambda: page.all("#notice"))
    assert words in page.text("#notice")
    assert message in page.text("#notice")
    page.press("#language")
    assert words not in page.text("#notice")
    assert message in page.text("#notice")


def test_a_server_out_of_reach(page: Browser, fake: Fake) -> None:
    conditions = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
    try:
        page.type("#prompt", "red apple")
        page.press("#submit")
        page.until(lambda: "cannot be reached" in page.text("#notice"))
    finally:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**conditions, "offline": False})
    page.press("#retry")
    finished(page)


def test_a_connection_that_ends_early(page: Browser, fake: Fake) -> None:
    fake.breaks = True
    page.type("#prompt", "red apple")
    page.press("#submit")
    page.until(lambda: "ended before" in page.text("#notice"))
    assert page.text("#stage-meta") == "Not finished"


def test_a_drawing_that_the_server_gives_up(page: Browser, fake: Fake) -> None:
    fake.gives_up = {"code": "deadline", "message": "not finished within 120 seconds"}
    page.type("#prompt", "red apple")
    page.press("#submit")
    page.until(lambda: "took too long\nnot finished within 120 seconds" in page.text("#notice"))
    fake.gives_up = None
    page.press("#retry")
    finished(page)


def test_an_impossible_choice_is_shown_and_not_sent(page: Browser, fake: Fake) -> None:
    page.press("#advanced summary")
    page.type("#top-k", "-1")
    page.press("#advanced summary")
    page.type("#prompt", "red apple")
    page.press("#submit")
    page.until(lambda: page.all("#top-k"))
    assert page.run("return document.activeElement.id") == "top-k"
    assert not fake.asked


def test_an_api_key_is_asked_for_and_sent(page: Browser, fake: Fake) -> None:
    fake.failures += [Failure(401, "unauthorized", "an API key is needed")] * 2
    page.type("#prompt", "red apple")
    page.press("#submit")
    page.until(lambda: page.all("#key"))
    page.press("#key-cancel")
    page.until(lambda: "an API key is needed" in page.text("#notice"))
    page.press("#retry")
    page.until(lambda: page.all("#key"))
    page.type("#key", "secret")
    page.pressed(ENTER)
    finished(page)
    assert [key for _, _, key in fake.asked] == [None, None, "Bearer secret"]
    page.driver.refresh()
    draw(page)
    assert fake.asked[-1][2] == "Bearer secret"
    assert not page.run("return Object.values(localStorage).includes('secret')")


def test_the_language_can_be_changed_and_is_remembered(page: Browser, fake: Fake) -> None:
    draw(page)
    page.press("#language")
    for _ in range(2):
        page.until(lambda: page.text("#submit") == "画图")
        assert page.find("html").get_attribute("lang") == "zh-CN"
        page.until(lambda: [chip.text for chip in page.all("#styles .chip")] == ["不限", "Noto风格", "立体风格"])
        page.driver.refresh()


@pytest.mark.parametrize(("accepted", "shown"), [("zh-TW,zh", "zh-CN"), ("de-DE,de", "en")])
def test_the_first_language_is_the_browsers(page: Browser, fake: Fake, accepted: str, shown: str) -> None:
    agent = page.run("return navigator.userAgent")
    page.driver.execute_cdp_cmd("Network.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": accepted})
    page.run("localStorage.clear()")
    page.driver.refresh()
    page.until(lambda: page.find("html").get_attribute("lang") == shown)
    page.driver.execute_cdp_cmd("Network.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": "en-US,en"})


def test_every_word_is_there_in_both_languages(page: Browser) -> None:
    page.driver.set_script_timeout(5)
    asked = "const done = arguments[0]; import('/static/strings.js').then((m) => done(m.keys))"
    english, chinese = page.driver.execute_async_script(asked)
    assert sorted(english) == sorted(chinese)
    used = page.run(
        """return [...document.querySelectorAll("*")].flatMap((found) =>
        Object.entries(found.dataset).filter(([name]) => name.startsWith("i18n")).map(([, key]) => key))"""
    )
    assert set(used) <= set(english)


def test_history_brings_a_drawing_back(page: Browser, fake: Fake) -> None:
    page.press("#styles .chip:nth-child(2)")
    draw(page, "red apple")
    page.press("#styles .chip:nth-child(1)")
    page.type("#seed", "50")
    draw(page, "blue heart")
    page.until(lambda: len(page.all(".past")) == 2)
    page.driver.refresh()
    page.until(lambda: "Noto style\n#1234" in page.text("#history"))
    page.press("li:nth-child(2) .past")
    assert sources(page) == [square(1234 + i) for i in range(4)]
    assert page.text("#stage-title") == "red apple in noto style"
    assert [page.find(field).get_property("value") for field in ("#prompt", "#seed")] == ["red apple", "1234"]
    assert page.find("#styles input[value='noto']").is_selected()
    page.press("#history-clear")
    assert not page.all("#history")
    page.driver.refresh()
    page.until(lambda: page.text("#version"))
    assert not page.all("#history")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_phone_needs_no_sideways_scrolling(page: Browser, fake: Fake, upload: Path, language: str) -> None:
    page.resize(360, 740)
    page.open(fake.url, language)
    page.press("#advanced summary")
    page.find("#start-file").send_keys(str(upload))
    draw(page, "a very long prompt " * 5)
    page.press(".tile .action:nth-child(3)")
    page.until(lambda: page.all(".said"))
    assert fits_width(page)
    page.find("#describe-file").send_keys(str(upload))
    page.until(lambda: page.all("#captions li"))
    assert fits_width(page)
    fake.failures.append(Failure(503, "overloaded", "x" * 200, {"Retry-After": "60"}))
    page.press("#captions-more")
    page.until(lambda: page.all("#notice"))
    assert fits_width(page)


def fits_width(page: Browser) -> bool:
    """No scrolling, and everything to be touched is 44 pixels high."""
    small = page.run(
        """return [...document.querySelectorAll("button, .action, select, summary, input:not([type=range], [type=file])")]
        .filter((found) => found.offsetParent && found.getBoundingClientRect().height < 42)
        .map((found) => found.outerHTML)"""
    )
    assert small == []
    return page.run("return document.documentElement.scrollWidth <= 360")
