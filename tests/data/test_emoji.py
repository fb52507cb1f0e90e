"""What tools/build_emoji.py shipped: splits that don't leak, captions that the vocabulary spells."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from ppvilg.data.emoji import splits
from ppvilg.data.emoji.build import find_families
from ppvilg.data.emoji.captions import write_captions
from ppvilg.data.emoji.concepts import LANGUAGES, Emoji, normal_id
from ppvilg.data.emoji.icon_names import IconNames, slug
from ppvilg.data.emoji.splits import SPLITS
from ppvilg.data.emoji.styles import STYLES
from ppvilg.data.images import decode_image
from ppvilg.data.shards import read_manifest
from ppvilg.data.sources import open_source

FOLDER = Path(__file__).parents[2] / "data" / "emoji"


@pytest.fixture(scope="module")
def by_split():
    return {split: open_source(FOLDER, split) for split in SPLITS}


@pytest.fixture(scope="module")
def records(by_split):
    return [record for source in by_split.values() for record in source.records]


def test_manifest_counts(by_split):
    manifest = read_manifest(FOLDER)
    for split, source in by_split.items():
        assert len(source) == sum(entry["samples"] for entry in manifest["shards"] if entry["split"] == split)
        for style, count in Counter(record.metadata["style"] for record in source.records).items():
            assert manifest["counts"][style][split] == count
    assert set(manifest["packages"]) >= {str(style.package) for style in STYLES}
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 38e6


def test_unseen_concepts_are_unseen(by_split):
    trained = {record.metadata["concept"] for record in by_split["train"].records}
    for split in ("unseen_concept", "validation"):
        held_out = {r.metadata["concept"] for r in by_split[split].records if r.metadata["novelty"] == "concept"}
        assert len(held_out) > 25
        assert trained.isdisjoint(held_out)


def test_unseen_styles_are_unseen(by_split):
    trained = defaultdict(set)
    for record in by_split["train"].records:
        trained[record.metadata["concept"]].add(record.metadata["style"])
    for split in ("unseen_style", "validation"):
        held_out = [r.metadata for r in by_split[split].records if r.metadata["novelty"] == "style"]
        assert len(held_out) > 300
        for metadata in held_out:
            others = trained[metadata["concept"]]
            assert metadata["style"] not in others
            assert len(others) >= 3


def test_parts_of_compositions_are_seen(by_split):
    trained = [record.metadata for record in by_split["train"].records]
    tones = {(m["concept"], m["tone"]) for m in trained}
    professions = {m["tone"] for m in trained if m["subgroup"] == "person-role"}
    assert professions == {None, 1, 2, 3, 4, 5}
    points = {m["codepoints"] for m in trained}
    assert points >= splits._COLOURED - splits._HIDDEN
    for record in by_split["composition"].records:
        metadata = record.metadata
        assert metadata["novelty"] == "composition"
        assert metadata["codepoints"] not in points
        if metadata["tone"] is None:
            assert metadata["codepoints"] in splits._HIDDEN
        else:
            assert sum((metadata["concept"], tone) in tones for tone in range(1, 6)) == 4


def test_no_image_is_in_train_and_held_out_with_its_concept(by_split):
    trained = {(record.metadata["style"], record.place) for record in by_split["train"].records}
    for record in by_split["unseen_concept"].records:
        assert (record.metadata["style"], record.place) not in trained, record.key


def test_records_are_complete(records):
    styles = {style.id: style for style in STYLES}
    assert len({record.key for record in records}) == len(records)
    for record in records:
        metadata = record.metadata
        style = styles[metadata["style"]]
        assert metadata["source"] == str(style.package)
        assert metadata["licence"] == style.package.licence
        assert set(record.captions) == set(metadata["name"]) == set(LANGUAGES)
        assert metadata["tone"] in (None, 1, 2, 3, 4, 5)
        for language, captions in record.captions.items():
            assert 4 <= len(captions) <= 6
            assert style.words[language] in captions[0]
            assert metadata["name"][language] in captions[0]


def test_images_decode(records):
    for record in records[::40]:
        assert decode_image(record.place, 64).shape == (64, 64, 3)


def test_licences_are_beside_the_data():
    text = (FOLDER / "LICENSES.md").read_text("utf-8")
    for style in STYLES:
        assert str(style.package) in text
        assert style.package.attribution in text
        assert (FOLDER / "licenses" / f"{style.package.licence}.txt").exists()


def test_vocabulary_spells_every_caption(records):
    from paddlenlp.transformers import ErnieTokenizer

    tokenizer = ErnieTokenizer(str(FOLDER / "vocab.txt"))
    ids = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id]
    assert ids == [0, 1, 2, 3]
    lines = (FOLDER / "vocab.txt").read_text("utf-8").splitlines()
    assert len(lines) == len(set(lines)) <= 6000
    captions = {line for record in records for lines in record.captions.values() for line in lines}
    # All captions are made of these pieces, which are far fewer than the captions.
    pieces = sorted({piece for caption in captions for piece in re.findall(r"[^\s，,（）]+", caption)})
    canonical = sorted({record.captions[language][0] for record in records[::10] for language in LANGUAGES})
    for text in pieces + canonical:
        tokens = tokenizer.tokenize(text)
        assert "[UNK]" not in tokens, text
        rebuilt = "".join(token.removeprefix("##") if token != "##" else token for token in tokens)
        assert rebuilt == plain(text)


def plain(text):
    import unicodedata

    text = unicodedata.normalize("NFD", text.lower())
    return "".join(c for c in text if not unicodedata.combining(c) and not c.isspace())


def emoji(codepoints, label, concept=None, tone=None, **more):
    names = dict.fromkeys(LANGUAGES, label)
    return Emoji(codepoints, concept or codepoints, tone, label, names, {k: [] for k in LANGUAGES}, "g", "s", **more)


def test_families_share_an_image():
    entries = {c: emoji(c, c) for c in ("1", "2", "3", "4")}
    images = {"a": {"1": b"x", "2": b"y", "3": b"z"}, "b": {"2": b"x", "3": b"x", "4": b"w"}}
    assert find_families(entries, images) == {"1": "1", "2": "2", "3": "2", "4": "4"}
    assert find_families(entries, {"a": {"4": b"x", "2": b"x"}, "b": {"1": b"x", "4": b"x"}})["2"] == "1"


def test_icon_names():
    entries = [
        emoji("1F1E8-1F1EE", "flag: Côte d’Ivoire"),
        emoji("1F44B", "waving hand"),
        emoji("1F44B-1F3FD", "waving hand: medium skin tone", "1F44B", 3),
        emoji("1F44B-1F3FE", "waving hand: medium-dark skin tone", "1F44B", 4),
        emoji("1F3AF", "bullseye"),
    ]
    names = IconNames(entries, {"1F3AF": "DIRECT HIT", "1F4A9": "PILE OF POO"})
    assert slug("Côte d’Ivoire & Türkiye") == "cote-divoire-and-turkiye"
    assert names.find("emojione", ["flag-for-cote-divoire"]) == "1F1E8-1F1EE"
    assert names.find("noto-v1", ["waving-hand-medium-dark-skin-tone"]) == "1F44B-1F3FE"
    assert names.find("noto-v1", ["waving-hand-tone3"]) == "1F44B-1F3FD"
    assert names.find("noto-v1", ["something", "bullseye"]) == "1F3AF"
    assert names.find("noto-v1", ["direct-hit"]) == "1F3AF"
    assert names.find("noto-v1", ["pistol"]) is None
    assert names.find("fxemoji", ["wavinghand"]) == "1F44B"
    assert names.find("emojione", ["pile-of-poo"]) is None
    assert normal_id("1f3f3-fe0f-200d-1f308") == "1F3F3-200D-1F308"


def test_captions_use_tags_and_are_stable():
    entry = emoji("1F34E", "red apple")
    entry.tags["en"] += ["fruit", "apple", "a very long tag that is a sentence"]
    captions = write_captions(entry, STYLES[0])
    assert captions == write_captions(entry, STYLES[0])
    assert captions["en"][0] == "red apple in Noto style"
    assert "red apple in Noto style, fruit" in captions["en"]
    assert len(captions["zh"]) == 4
    assert not any("sentence" in caption for caption in captions["en"])


def test_font_labels_captions(records):
    from PIL import ImageFont

    import ppvilg

    path = Path(ppvilg.__file__).parent / "assets" / "NotoSansCJKsc-subset.otf"
    font = ImageFont.truetype(path, 16)
    missing = bytes(font.getmask("\U0001f9ff"))
    characters = {c for record in records for c in record.captions["zh"][0] + record.captions["zh-hant"][0]} - {" "}
    assert not [c for c in characters if bytes(font.getmask(c)) == missing]
