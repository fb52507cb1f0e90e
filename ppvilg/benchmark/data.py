"""What a core does in the preparation of data: pairs a second of each step, beside what bounds it."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ppvilg.data.images import decode_squares
from ppvilg.data.prepared import read_manifest
from ppvilg.data.records import read_place
from ppvilg.data.sources import open_source
from ppvilg.pictures import to_model

HEADER = f"{'step':44}{'pairs/s':>10}{'of its bound':>14}"
_BATCH, _RUNS = 64, 5


def data_lines(path: str, split: str, size: int, tokenizer: str, dual_encoder: str | None, samples: int) -> list[str]:
    """A row for each step on some images of a data set, on as many threads as paddle has.

    The bounds are OpenCV's decoding alone, and the products of the tokenizer's encoder at the speed of a large matrix product.
    """
    import cv2
    import paddle

    from ppvilg.data.filters import caption_hash, image_hash
    from ppvilg.dual_encoder import load_scorer
    from ppvilg.ops import from_numpy
    from ppvilg.vqgan.folder import load_vqgan

    source = open_source(path, split)
    chosen = list(range(min(samples, len(source))))
    files = [read_place(source.records[i].place) for i in chosen]
    captions = [text for i in chosen for texts in source.records[i].captions.values() for text in texts]
    rows = [HEADER]

    alone = _per_second(
        lambda: [cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED) for file in files], len(files)
    )
    rows.append(_row("decoding alone (OpenCV)", alone))
    squares = [decode_squares(file, [size])[0][size] for file in files]
    rows.append(
        _row("decode, orient, crop, resize", _per_second(lambda: [decode_squares(f, [size]) for f in files], len(files)), alone)
    )
    rows.append(_row("perceptual hash", _per_second(lambda: list(map(image_hash, squares)), len(squares))))
    rows.append(_row("hash of a caption", _per_second(lambda: list(map(caption_hash, captions)), len(captions))))

    vqgan, batch = load_vqgan(tokenizer), from_numpy(to_model(np.stack(squares[:_BATCH])))
    with paddle.no_grad():
        operations = _operations(vqgan, batch[:1])
        tokens = _per_second(lambda: vqgan.encode(batch).numpy(), len(batch))
    rows.append(_row("image tokens", tokens, _matrix_product() / operations))
    if dual_encoder is not None:
        scorer, images, texts = load_scorer(dual_encoder), np.stack(squares[:_BATCH]), captions[:_BATCH]
        rows.append(
            _row("similarity", _per_second(lambda: (scorer.embed_images(images), scorer.embed_texts(texts)), len(images)))
        )
    return rows


def _row(name: str, speed: float, bound: float | None = None) -> str:
    return f"{name:44}{speed:>10.0f}{'' if bound is None else f'{speed / bound:.0%}':>14}"


def _per_second(work: Callable[[], object], count: int) -> float:
    """The best of some runs."""
    work()
    best = float("inf")
    for _ in range(_RUNS):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return count / best


def _operations(vqgan, image) -> float:
    """Multiplications and additions of the convolutions that encode an image, and of its comparison with the codebook."""
    import paddle

    total, removed = 0, []

    def count(layer, inputs, output) -> None:
        nonlocal total
        total += 2 * output.size * layer.weight.size // layer.weight.shape[0]

    for layer in (*vqgan.encoder.sublayers(), vqgan.quant_conv):
        if isinstance(getattr(layer, "weight", None), paddle.Tensor) and layer.weight.ndim == 4:
            removed.append(layer.register_forward_post_hook(count))
    ids = vqgan.encode(image)
    for hook in removed:
        hook.remove()
    codebook = vqgan.config.codebook
    return total + 2 * ids.size * codebook.size * codebook.dim


def _matrix_product(side: int = 1024) -> float:
    """Operations a second of a large product of float32 matrices, here and now."""
    import paddle

    a = paddle.rand([side, side])
    return _per_second(lambda: paddle.matmul(a, a).numpy(), 1) * 2 * side**3


def engine_lines(config: str, overrides: list[str]) -> Iterator[str]:
    """Seconds of a preparation by the loop with one worker and two, and by Ray with as many, each in a process of its own.

    Raises `ValueError` where their outputs are not equal, file by file."""
    yield f"{'engine':20}{'seconds':>10}{'pairs/s':>10}"
    expected: dict[str, str] = {}
    for name, options in (
        ("loop, 1 worker", ["workers=1"]),
        ("loop, 2 workers", ["workers=2"]),
        ("Ray, 1 worker", ["engine=ray", "ray.workers=1"]),
        ("Ray, 2 workers", ["engine=ray", "ray.workers=2"]),
    ):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "out"
            chosen = [word for option in [*overrides, f"output={output}", *options] for word in ("-o", option)]
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "tools/prepare_data.py", "-c", config, *chosen], capture_output=True, text=True, check=False
            )
            seconds = time.perf_counter() - began
            if done.returncode:
                raise ValueError(done.stderr.strip().splitlines()[-1])
            manifest = read_manifest(output)
        found = {shard.file: shard.sha256 for shard in manifest.shards}
        expected = expected or found
        if found != expected:
            raise ValueError(f"{name} wrote something else than the loop")
        rows = sum(shard.rows for shard in manifest.shards)
        yield f"{name:20}{seconds:>10.1f}{rows / seconds:>10.0f}"
