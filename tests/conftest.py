"""What tests share. ppvilg is imported first, since it sets paddle's flags."""

import numpy as np
import ppvilg  # noqa: F401
import pytest

import paddle  # isort: skip


@pytest.fixture(autouse=True)
def _seeded():
    paddle.seed(0)
    np.random.seed(0)
