"""Which pairs are evaluated, and which baselines stand beside them."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from ppvilg.config import EvalDataConfig, EvalExperiment
from ppvilg.evaluation.pairs import choose_pairs, nearest_by_caption, others_of_the_styles

NAMES = ("红苹果", "青苹果", "黄香蕉", "小汽车", "大汽车", "向日葵")


class Characters:
    """Begin, a token for each character, end."""

    def encode(self, text: str) -> list[int]:
        return [0, *map(ord, text), 1]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Six names in two styles, two Chinese captions and an English one of each; one of three names is for validation."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = []
    for i, name in enumerate(NAMES):
        for style in ("flat", "round"):
            file = f"{i}{style}.png"
            cv2.imwrite(str(folder / file), np.full((8, 8, 3), 20 * i, np.uint8))
            captions = {"en": f"thing {i}", "zh": [f"{name}{style}", f"一张{name}{style}"]}
            lines.append(json.dumps({"file": file, "captions": captions, "style": style}, ensure_ascii=False))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    data = EvalDataConfig(path=str(folder), languages={"zh": 1.0, "en": 0.5}, validation_fraction=0.4, seed=1)
    return EvalExperiment(model="runs/none", data=data)


def test_canonical_captions_stand_once_with_all_references(config):
    chosen = choose_pairs(config, "validation", Characters(), 20)
    assert len(chosen.pairs) == len(chosen.source) > 1
    for pair in chosen.pairs:
        record = chosen.source.records[pair.index]
        assert pair.key == record.key
        assert pair.references == record.captions["zh"]
        assert pair.caption == record.captions["zh"][0]
        assert pair.style == record.metadata["style"]


def test_any_caption_of_the_heaviest_language(config):
    source = choose_pairs(config, "validation", Characters(), 20).source
    chosen = choose_pairs(replace(config, captions="any"), "validation", Characters(), 20)
    assert sorted(pair.caption for pair in chosen.pairs) == sorted(c for r in source.records for c in r.captions["zh"])
    some = choose_pairs(replace(config, captions="any", samples=3), "validation", Characters(), 20).pairs
    assert len(some) == 3
    assert all(pair in chosen.pairs for pair in some)
    again = choose_pairs(replace(config, captions="any", samples=3, seed=1), "validation", Characters(), 20).pairs
    assert some != again


def test_captions_too_long_for_the_model_are_counted_and_left_out(config):
    both = choose_pairs(replace(config, captions="any"), "validation", Characters(), 20)
    short = choose_pairs(replace(config, captions="any"), "validation", Characters(), 10)
    assert short.overlong == len(both.pairs) - len(short.pairs) > 0
    assert all(len(pair.caption) <= 8 for pair in short.pairs)
    with pytest.raises(ValueError, match="no caption of the split validation is short enough"):
        choose_pairs(config, "validation", Characters(), 3)


def test_keep_of_the_evaluation_replaces_that_of_the_data(config):
    kept = replace(config, data=replace(config.data, keep={"style": ["flat"]}))
    assert {pair.style for pair in choose_pairs(kept, "all", Characters(), 20).pairs} == {"flat"}
    assert {pair.style for pair in choose_pairs(replace(kept, keep={}), "all", Characters(), 20).pairs} == {"flat", "round"}


def test_other_images_have_the_styles_and_none_stands_twice(config):
    pairs = choose_pairs(config, "validation", Characters(), 20).pairs
    source, chosen = others_of_the_styles(config, pairs)
    assert [source.records[i].metadata["style"] for i in chosen] == [pair.style for pair in pairs]
    assert {source.records[i].key for i in chosen}.isdisjoint(pair.key for pair in pairs)
    for style in ("flat", "round"):
        there = [i for i, record in enumerate(source.records) if record.metadata["style"] == style]
        used = [chosen.count(i) for i in there]
        assert max(used) - min(used) <= 1, "none again before all had their turn"
    assert others_of_the_styles(replace(config, training_split=None), pairs) is None


def test_nearest_caption_is_the_one_with_most_in_common(config):
    """Against counting shared sequences of characters by hand."""
    pairs = choose_pairs(config, "all", Characters(), 20).pairs
    source, chosen = nearest_by_caption(replace(config, training_split="all"), pairs)
    assert [source.records[i].key for i in chosen] == [pair.key for pair in pairs], "each is nearest to itself"
    flat_only = replace(config, data=replace(config.data, keep={"style": ["flat"]}), training_split="all")
    source, chosen = nearest_by_caption(flat_only, [pair for pair in pairs if pair.style == "round"])
    names = [source.records[i].captions["zh"][0] for i in chosen]
    assert names == [f"{name}flat" for name in NAMES], "of the other style, the same thing"
