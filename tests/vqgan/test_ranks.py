"""Two processes that see different images keep one codebook."""

import numpy as np
import paddle
import paddle.distributed as dist
import pytest

from ppvilg.config import CodebookConfig, VQGANConfig
from ppvilg.vqgan.model import VQGAN


def train(learning, folder):
    """One rank: a few steps on its own images, then its codebook to a file."""
    dist.init_parallel_env()
    paddle.seed(0)
    codebook = CodebookConfig(16, 4, learning=learning, revive_after=2)
    model = VQGAN(VQGANConfig(8, [1, 2], 1, [], 8, codebook=codebook), 8)
    parallel = paddle.DataParallel(model)
    optimizer = paddle.optimizer.Adam(1e-2, parameters=[p for p in model.parameters() if not p.stop_gradient])
    paddle.seed(1 + dist.get_rank())
    for _ in range(4):
        images = paddle.rand([2, 3, 8, 8]) * 2 - 1
        reconstruction, quantized = parallel(images)
        ((reconstruction - images).abs().mean() + quantized.loss).backward()
        optimizer.step()
        optimizer.clear_grad()
    np.savez(f"{folder}/{dist.get_rank()}.npz", **{k: v.numpy() for k, v in model.state_dict().items()})


@pytest.mark.slow
@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_ranks_agree(tmp_path, learning):
    dist.spawn(train, (learning, str(tmp_path)), nprocs=2, backend="gloo")
    first, second = np.load(tmp_path / "0.npz"), np.load(tmp_path / "1.npz")
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5, atol=1e-6, err_msg=name)
