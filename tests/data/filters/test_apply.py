"""Filters one after the other: what is kept, what is counted, and in which order nothing matters."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from ppvilg.data.filters import (
    AnyFilter,
    AspectRatio,
    CaptionLength,
    Example,
    Funnel,
    ImageSize,
    Noun,
    Pair,
    SpecialCharacters,
    Step,
    Verdict,
    apply_filters,
    setup_filters,
)
from ppvilg.data.filters.pairs import ReadyFilter
from ppvilg.data.images import decode_image
from ppvilg.data.questions import Question
from tests.data.filters.pairs import pair, picture, run

FILTERS = [CaptionLength(fewer_than=4), SpecialCharacters(), Noun(), ImageSize(at_least=60), AspectRatio(at_most=2.0)]
IMAGES = [picture(), picture(64, 61, 1), picture(50, 70), picture(200, 70), b"no image", picture()[:200]]
CAPTIONS = ["红苹果", "狗", "★狗", "跑", "红苹果在绿色的桌子上", "北京的风景"]


@st.composite
def many_pairs(draw):
    some = draw(st.lists(st.tuples(st.lists(st.sampled_from(CAPTIONS), max_size=3), st.sampled_from(IMAGES)), max_size=14))
    return [
        pair(*captions, key=str(i), image=image, **({"en": ["a dog"]} if i % 3 == 0 else {}))
        for i, (captions, image) in enumerate(some)
    ]


@settings(deadline=None, max_examples=40)
@given(many_pairs(), st.integers(1, 5))
def test_parts_of_any_size_give_the_same(pairs, size):
    ready = setup_filters(FILTERS)
    kept, funnel = apply_filters(ready, pairs, 16)
    parts = [apply_filters(ready, pairs[first : first + size], 16) for first in range(0, len(pairs), size)]
    assert [one.record for part, _ in parts for one in part] == [one.record for one in kept]
    for backwards in (False, True):
        total = Funnel()
        for _, part in reversed(parts) if backwards else parts:
            total = part + total if backwards else total + part
        if parts:
            assert total.to_json() == funnel.to_json()


@settings(deadline=None, max_examples=40)
@given(many_pairs())
def test_order_and_captions_of_what_is_kept(pairs):
    before = {one.record.key: one.record for one in pairs}
    kept, funnel = apply_filters(setup_filters(FILTERS), pairs, 16)
    numbers = [int(one.record.key) for one in kept]
    assert numbers == sorted(numbers)
    for one in kept:
        old = before[one.record.key]
        assert replace(old, captions=one.record.captions) == one.record
        for language, texts in one.record.captions.items():
            assert texts
            rest = iter(old.captions[language])
            assert all(text in rest for text in texts)  # in the same order
        np.testing.assert_array_equal(one.squares[16], decode_image(one.record.place, 16))
    for step, after in zip(funnel.steps, funnel.steps[1:], strict=False):
        assert (step.pairs_out, step.captions_out) == (after.pairs, after.captions)
    assert (funnel.steps[0].pairs, funnel.steps[-1].pairs_out) == (len(pairs), len(kept))
    assert funnel.steps[0].captions == sum(len(list(one.captions())) for one in pairs)
    assert funnel.steps[-1].captions_out == sum(len(list(one.captions())) for one in kept)
    assert [step.name for step in funnel.steps] == [
        "caption_length",
        "special_characters",
        "noun",
        "decode",
        "image_size",
        "aspect_ratio",
    ]


def test_a_pair_loses_captions_and_stays_until_the_last():
    keys, funnel = run([Noun()], [pair("红苹果", "跑", key="a"), pair("跑", "他走了", key="b")])
    assert keys == ["a"]
    step = funnel.steps[0]
    assert step.dropped_captions == {"no noun": 3}
    assert step.dropped_pairs == {"no noun": 1}
    assert {(one.key, one.captions) for one in step.examples["no noun"]} == {("a", ("跑",)), ("b", ("跑", "他走了"))}


def test_english_captions_keep_a_pair_whose_chinese_ones_are_dropped():
    kept, _ = apply_filters(setup_filters([Noun()]), [pair("跑", en=["runs"])], 16)
    assert kept[0].record.captions == {"en": ["runs"]}


def test_questions_keep_a_pair_without_captions():
    record = replace(pair("跑").record, questions=[Question("几只狗", ("一只",))])
    kept, funnel = apply_filters(setup_filters([Noun()]), [Pair(record), Pair(replace(record, captions={}))], 16)
    assert [one.record.captions for one in kept] == [{}, {}]
    assert funnel.steps[0].dropped_captions == {"no noun": 1}
    assert not funnel.steps[0].dropped_pairs


def test_undecodable_images_are_counted_by_few_reasons(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    places = [
        tmp_path / "a.png",
        tmp_path / "missing.png",
        (tmp_path / "a.png", 1, 50),
        (tmp_path / "a.png", 0, 300),
        b"",
        b"x",
    ]
    pairs = [Pair(replace(pair("狗", key=str(i)).record, place=place)) for i, place in enumerate(places)]
    keys, funnel = run([], pairs)
    assert keys == ["0"]
    assert funnel.steps[0].name == "decode"
    expected = {"the file cannot be read": 1, "not an image": 3, "the image is truncated": 1}
    assert funnel.steps[0].dropped_pairs == expected == funnel.steps[0].dropped_captions


def test_size_is_upright_and_images_are_decoded_for_those_who_need_them():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = pair("狗", image=picture(200, 80, kind="JPEG", exif=exif.tobytes()))
    seen = []

    def check(pairs):
        seen.extend((one.size, sorted(one.squares)) for one in pairs)
        return [Verdict()] * len(pairs)

    filters = [
        ReadyFilter("before", check),
        ReadyFilter("looks", check, needs_image=True, side=32),
        ReadyFilter("after", check),
    ]
    apply_filters(filters, [turned], 16)
    assert seen == [(None, []), ((80, 200), [16, 32]), ((80, 200), [16, 32])]


def test_examples_have_thumbnails():
    _, funnel = run([ImageSize(at_least=75)], [pair("狗")])
    example = funnel.steps[1].examples["a side of fewer than 75 pixels"][0]
    shown = np.asarray(Image.open(io.BytesIO(example.thumbnail)))
    assert np.abs(shown.astype(int) - decode_image(picture(), 96)).mean() < 5
    _, funnel = run([Noun()], [pair("跑")])
    assert funnel.steps[0].examples["no noun"][0].thumbnail
    _, funnel = run([], [pair("狗", image=b"")])
    assert funnel.steps[0].examples["not an image"][0].thumbnail is None


COUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(1, 9))
EXAMPLES = st.dictionaries(
    st.sampled_from("abc"), st.lists(st.builds(Example, st.text(max_size=3), st.tuples(st.text(max_size=2))))
)


@st.composite
def funnels(draw):
    part = Funnel()
    for name in ("noun", "decode"):
        counts = {key: draw(COUNTS) for key in ("dropped_pairs", "dropped_captions")}
        step = Step(name, draw(st.integers(0, 99)), draw(st.integers(0, 99)), examples=draw(EXAMPLES))
        for key, values in counts.items():
            getattr(step, key).update(values)
        part.steps.append(step)
    return part


@settings(deadline=None)
@given(funnels(), funnels(), funnels())
def test_funnels_add_up_in_any_order(one, two, three):
    total = (one + two + three).to_json()
    assert (one + (two + three)).to_json() == total
    assert (three + one + two).to_json() == total
    assert (Funnel() + one + Funnel()).to_json() == one.to_json()
    assert total[0]["pairs"] == one.steps[0].pairs + two.steps[0].pairs + three.steps[0].pairs


@settings(deadline=None)
@given(funnels(), st.binary())
def test_funnels_as_json(funnel, thumbnail):
    funnel.steps[0].examples["d"] = [Example("k\udcff", ("狗",), thumbnail)]
    back = Funnel.from_json(json.loads(json.dumps(funnel.to_json())))
    assert back == funnel
    assert back.steps[0].examples["d"][0].thumbnail == thumbnail


def test_examples_are_few_and_not_always_the_first():
    keys, funnel = run([Noun()], [pair("跑", key=f"{i:03}") for i in range(100)])
    shown = [example.key for example in funnel.steps[0].examples["no noun"]]
    assert keys == []
    assert len(set(shown)) == 4
    assert shown != ["000", "001", "002", "003"]


def test_funnels_of_different_steps_do_not_add_up():
    with pytest.raises(ValueError, match="noun and decode"):
        _ = Funnel([Step("noun")]) + Funnel([Step("decode")])


def test_filters_in_a_config():
    adapter = TypeAdapter(list[AnyFilter])
    read = adapter.validate_json('[{"filter": "noun"}, {"filter": "caption_length", "fewer_than": 9, "languages": ["en"]}]')
    assert read == [Noun(), CaptionLength(fewer_than=9, languages=["en"])]
    for wrong in ('{"filter": "nouns"}', '{"filter": "noun", "x": 1}', '{"filter": "caption_length", "fewer_than": 0}', "{}"):
        with pytest.raises(ValidationError):
            adapter.validate_json(f"[{wrong}]")
