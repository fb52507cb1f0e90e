"""How the layers are divided among pipeline stages."""

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import paddle
import pytest

from ppvilg.model.config import ViLGConfig
from ppvilg.model.vilg import ViLG
from ppvilg.train.pipe import stage_starts

CONFIG = ViLGConfig(
    text_vocab_size=8, max_text_length=4, image_vocab_size=8, rows=2, columns=2, layers=1, hidden=16, heads=2, ffn_multiplier=4
)
SHAPES = {
    "no tables to speak of": {},
    "tables of a few layers": {"text_vocab_size": 800, "image_vocab_size": 100},
    "tables of half a layer": {"text_vocab_size": 48, "image_vocab_size": 48},
    "tied": {"text_vocab_size": 300, "image_vocab_size": 100, "tie_embeddings": True},
    "a narrow text table": {"text_vocab_size": 2000, "text_embedding_width": 2},
}
TABLES = ("embedding.text.weight", "embedding.image.weight")


def sizes(config: ViLGConfig) -> list[int]:
    """Parameters of the embedding, of each block, and of the head with the tables that are tied to it."""
    with paddle.LazyGuard():
        counts = {name: int(np.prod(p.shape)) for name, p in ViLG(config).named_parameters()}
    starts = ["embedding.", *(f"blocks.{i}." for i in range(config.layers)), "head."]
    found = [sum(count for name, count in counts.items() if name.startswith(start)) for start in starts]
    if config.tie_embeddings:
        found[-1] += sum(counts[name] for name in TABLES)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layers", [2, 5, 8])
def test_the_largest_stage_is_as_small_as_can_be(layers, shape):
    config = replace(CONFIG, layers=layers, **SHAPES[shape])
    size = sizes(config)
    for count in range(2, layers + 1):
        starts = stage_starts(config, count)
        assert starts[0] == 0
        assert starts[-1] == layers + 2 + config.tie_embeddings, "the tables come once more before the head"
        blocks = [1, *starts[1:-1], layers + 1]
        assert all(a < b for a, b in pairwise(blocks)), "each has a block"

        def largest(bounds: tuple[int, ...]) -> int:
            return max(sum(size[a:b]) for a, b in pairwise((0, *bounds, layers + 2)))

        least = min(largest(bounds) for bounds in combinations(range(2, layers + 1), count - 1))
        assert largest(tuple(starts[1:-1])) == least


def test_many_stages_of_many_layers():
    config = replace(CONFIG, layers=400, **SHAPES["tables of a few layers"])
    for count in (100, 399, 400):
        starts = stage_starts(config, count)
        assert len(starts) == count + 1
        assert all(a < b for a, b in pairwise(starts))
    starts = stage_starts(replace(CONFIG, layers=10), 4)
    assert starts == [0, 3, 6, 9, 12], "stages of 2, 3, 3, 2 blocks: those between have no tables"
