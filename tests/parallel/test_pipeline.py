"""How a pipeline is cut, and the order in which its stages compute and pass on micro-batches."""

from itertools import combinations, pairwise

import pytest

from ppvilg.config import ViLGExperiment, load_config
from ppvilg.parallel.pipeline import messages, order, stages
from ppvilg.parallel.plan import weights
from ppvilg.parallel.sharding import TIED

SHAPES = {
    "no tables to speak of": ["text.vocabulary_size=8", "vqgan.codebook.size=8"],
    "tables of a few layers": ["text.vocabulary_size=800", "vqgan.codebook.size=100"],
    "tables of half a layer": ["text.vocabulary_size=48", "vqgan.codebook.size=48"],
    "tied": ["text.vocabulary_size=300", "vqgan.codebook.size=100", "transformer.tie_embeddings=true"],
    "a narrow text table": ["text.vocabulary_size=2000", "vqgan.codebook.size=8", "text.embedding_width=2"],
}


def config(layers: int, shape: str) -> ViLGExperiment:
    sizes = [f"transformer.layers={layers}", "transformer.hidden=16", "transformer.heads=2", "data.image_size=16"]
    return load_config("configs/vilg_emoji.yml", [*sizes, "text.max_length=4", *SHAPES[shape]])


def size(of: ViLGExperiment, layers: range) -> int:
    """Parameters of a stage, by the list of all."""
    first, last = layers.start == 0, layers.stop == of.transformer.layers
    everything = weights(of)
    held = [w for w in everything if w.layer in layers]
    held += [w for w in everything if first and w.kind == "embeddings"]
    held += [w for w in everything if last and w.kind == "head"]
    held += [w for w in everything if last and not first and of.transformer.tie_embeddings and w.name in TIED]
    return sum(w.values() for w in held)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layers", [1, 2, 5, 8])
def test_the_largest_stage_is_as_small_as_can_be(layers, shape):
    of = config(layers, shape)
    for count in range(1, layers + 1):
        found = stages(of, count)
        assert len(found) == count
        assert all(found), "each has a layer"
        assert [layer for stage in found for layer in stage] == list(range(layers)), "every layer once, in order"
        cuts = [pairwise((0, *ends, layers)) for ends in combinations(range(1, layers), count - 1)]
        least = min(max(size(of, range(*stage)) for stage in cut) for cut in cuts)
        assert max(size(of, stage) for stage in found) == least


def test_many_stages_of_many_layers():
    of = config(400, "tables of a few layers")
    for count in (1, 100, 399, 400):
        found = stages(of, count)
        assert [layer for stage in found for layer in stage] == list(range(400))
        assert min(map(len, found)) >= 1
    lengths = [len(stage) for stage in stages(config(10, "no tables to speak of"), 4)]
    assert lengths == [2, 3, 3, 2], "those between have no tables"


COUNTS = [(count, batches) for count in range(1, 7) for batches in range(1, 9)]


@pytest.mark.parametrize(("count", "batches"), COUNTS)
def test_order_is_one_forward_one_backward(count, batches):
    for stage in range(count):
        ahead = min(count - 1 - stage, batches)
        steps = [what[0] for what, _ in order(stage, count, batches)]
        assert "".join(steps) == "f" * ahead + "fb" * (batches - ahead) + "b" * ahead
        for direction in ("forward", "backward"):
            assert [i for what, i in order(stage, count, batches) if what == direction] == list(range(batches))


@pytest.mark.parametrize(("count", "batches"), COUNTS)
def test_messages_go_through_when_both_ends_wait_for_each_other(count, batches):
    """Plays all stages: a send and its receive happen together, once both ends are at them."""
    waiting = [list(messages(stage, count, batches)) for stage in range(count)]
    computed = [[] for _ in range(count)]

    def meets(stage: int) -> int | None:
        """The stage that receives what this one sends now, if it is at that."""
        if not waiting[stage] or waiting[stage][0][0] != "send":
            return None
        _, what, i = waiting[stage][0]
        other = stage + (1 if what == "forward" else -1)
        return other if waiting[other][:1] == [("receive", what, i)] else None

    def advance() -> bool:
        for stage in range(count):
            if waiting[stage] and waiting[stage][0][0] == "compute":
                computed[stage].append(waiting[stage].pop(0)[1:])
                return True
            if (other := meets(stage)) is not None:
                waiting[stage].pop(0)
                waiting[other].pop(0)
                return True
        return False

    while advance():
        pass
    assert waiting == [[]] * count, "all were done, none waits for ever"
    for stage, steps in enumerate(computed):
        assert steps == list(order(stage, count, batches))
        kept = most = 0
        for k, (what, i) in enumerate(steps):
            kept += 1 if what == "forward" else -1
            most = max(most, kept)
            assert what == "forward" or ("forward", i) in steps[:k]
        assert kept == 0
        assert most == min(count - stage, batches)


@pytest.mark.parametrize(("count", "batches"), COUNTS)
def test_stages_send_what_the_next_ones_receive(count, batches):
    everything = [list(messages(stage, count, batches)) for stage in range(count)]
    for above, below in pairwise(everything):
        for what, sender, receiver in (("forward", above, below), ("backward", below, above)):
            sent = [i for kind, direction, i in sender if (kind, direction) == ("send", what)]
            received = [i for kind, direction, i in receiver if (kind, direction) == ("receive", what)]
            assert sent == received == list(range(batches))
    for stage, steps in enumerate(everything):
        ready = set()  # what may be computed or sent
        for kind, what, i in steps:
            if kind == "receive":
                ready.add(("compute", what, i))
                continue
            edge = stage == 0 if what == "forward" else stage == count - 1
            assert (kind, what, i) in ready or (kind == "compute" and edge)
            ready.add(("send", what, i))
