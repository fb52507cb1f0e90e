"""Filters on images, similarity, and the hashes that find duplicates."""

import io
from dataclasses import replace

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ppvilg.data.filters import AspectRatio, ImageSize, Similarity, apply_filters, caption_hash, image_hash, setup_filters
from ppvilg.data.images import decode_image
from ppvilg.dual_encoder import load_scorer
from tests.data.filters.pairs import pair, picture, run

SHAPES = [(64, 64), (63, 64), (64, 63), (128, 64), (64, 129), (192, 64), (193, 64), (64, 193)]


def test_small_images_are_dropped():
    keys, funnel = run([ImageSize(at_least=64)], [pair("狗", key=f"{w}x{h}", image=picture(w, h)) for w, h in SHAPES])
    assert keys == [f"{w}x{h}" for w, h in SHAPES if w >= 64 and h >= 64]
    assert funnel.steps[1].dropped_pairs == {"a side of fewer than 64 pixels": 2}


@pytest.mark.parametrize("at_most", [1.0, 2.0, 3.0])
def test_long_images_are_dropped(at_most):
    keys, _ = run([AspectRatio(at_most=at_most)], [pair("狗", key=f"{w}x{h}", image=picture(w, h)) for w, h in SHAPES])
    assert keys == [f"{w}x{h}" for w, h in SHAPES if w / h <= at_most and h / w <= at_most]


@pytest.fixture(scope="module")
def scored(tiny_dual_encoder):
    """Pairs with several captions, and the score of each caption with its image, one by one."""
    texts = [["红方块", "绿方块"], ["蓝方块"], ["大红", "红", "绿"], ["蓝"]]
    pairs = [pair(*some, key=str(i), image=picture(40 + i, 30, i), en=["red"]) for i, some in enumerate(texts)]
    scorer = load_scorer(tiny_dual_encoder)

    def score(image: bytes, text: str) -> float:
        one, other = scorer.embed_images(decode_image(image, 16)[None])[0], scorer.embed_texts([text])[0]
        return float((1 + one @ other / np.linalg.norm(one) / np.linalg.norm(other)) / 2)

    return pairs, [[score(one.record.place, text) for text in some] for one, some in zip(pairs, texts, strict=True)]


@pytest.mark.parametrize("quantile", [0.0, 0.4, 0.7, 1.0])
def test_similarity_is_the_dual_encoders(scored, tiny_dual_encoder, quantile):
    pairs, scores = scored
    flat = sorted(score for some in scores for score in some)
    assert flat[-1] - flat[0] > 1e-3
    place = quantile * (len(flat) - 1)
    limit = (flat[int(place)] + flat[min(int(place) + 1, len(flat) - 1)]) / 2 + (1e-4 if quantile == 1 else 0)
    limit -= 1e-4 if quantile == 0 and flat[0] == flat[1] else 0
    options = Similarity(model=str(tiny_dual_encoder), above=limit)
    kept, funnel = apply_filters(setup_filters([options]), pairs, 24)
    for one, some in zip(pairs, scores, strict=True):
        good = [text for (_, text), score in zip(one.captions(), some, strict=False) if score > limit]
        after = next(other for other in kept if other.record.key == one.record.key)
        assert after.record.captions == ({"zh": good} if good else {}) | {"en": ["red"]}
        assert {side: square.shape for side, square in after.squares.items()} == {16: (16, 16, 3), 24: (24, 24, 3)}
    assert funnel.steps[1].dropped_captions.total() == sum(score <= limit for score in flat)
    assert [step.name for step in funnel.steps] == ["decode", "similarity"]


def test_similarity_does_not_depend_on_the_other_pairs(scored, tiny_dual_encoder):
    pairs, scores = scored
    flat = sorted(score for some in scores for score in some)
    ready = setup_filters([Similarity(model=str(tiny_dual_encoder), above=(flat[3] + flat[4]) / 2)])
    together, _ = apply_filters(ready, pairs, 16)
    alone = [one for some in pairs for one in apply_filters(ready, [some], 16)[0]]
    assert [one.record for one in alone] == [one.record for one in together]


def test_similarity_without_captions_to_look_at(tiny_dual_encoder):
    record = pair(en=["red"]).record
    kept, _ = apply_filters(
        setup_filters([Similarity(model=str(tiny_dual_encoder), above=1.0)]), [replace(pair(), record=record)], 16
    )
    assert [one.record for one in kept] == [record]


def test_similarity_without_a_model(tmp_path):
    paddle.seed(0)
    with pytest.raises(ValueError, match="missing"):
        Similarity(model=str(tmp_path / "missing")).setup()


def noisy(seed: int, **changes) -> np.ndarray:
    """An image [64, 64, 3], perhaps of another size, quality or brightness first."""
    image = Image.open(io.BytesIO(picture(200, 200, seed)))
    if "size" in changes:
        image = image.resize((changes["size"],) * 2)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=changes.get("quality", 95))
    pixels = decode_image(stream.getvalue(), 64).astype(float)
    return (pixels * changes.get("light", 1)).round().astype(np.uint8)


def test_image_hash_finds_copies():
    hashes = [image_hash(noisy(seed)) for seed in range(20)]
    assert len(set(hashes)) == 20
    assert all(-(2**63) <= one < 2**63 for one in hashes)
    for changes in ({"size": 128}, {"quality": 60}, {"light": 0.9}):
        bits = [((image_hash(noisy(seed, **changes)) ^ hashes[seed]) % 2**64).bit_count() for seed in range(20)]
        assert np.mean(np.equal(bits, 0)) >= 0.5, changes
        assert max(bits) <= 4, changes  # 32 for two images that have nothing in common


def test_image_hash_is_the_sign_of_low_frequencies():
    """pHash: the 8x8 lowest frequencies of the discrete cosine transform of a grey 32x32 image, against their median."""
    image = noisy(3)
    grey = np.asarray(Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.LANCZOS), float)
    wave = np.cos(np.pi / 32 * np.outer(np.arange(8), np.arange(32) + 0.5))
    low = wave @ grey @ wave.T
    bits = "".join("1" if value > np.median(low) else "0" for value in low.flatten())
    assert image_hash(image) % 2**64 == int(bits, 2)


def test_caption_hash_ignores_writing():
    same = ["红苹果，iPhone 13!", "红苹果 ＩＰＨＯＮＥ１３", "红苹果,iphone13"]
    assert len({caption_hash(text) for text in same}) == 1
    other = ["红苹果，iPhone 14", "苹果红，iPhone13", "红苹果", "", "★"]
    assert len({caption_hash(text) for text in [*other, same[0]]}) == 6


@given(st.text())
def test_caption_hash_fits_int64(text):
    assert -(2**63) <= caption_hash(text) < 2**63
