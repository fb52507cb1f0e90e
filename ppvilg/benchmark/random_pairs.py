"""Random pairs to compute with; speed does not depend on what is in them."""

import numpy as np

from ppvilg.config import ViLGExperiment


def random_pairs(config: ViLGExperiment, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` pairs: texts of the longest length int64 [B, m], their mask bool [B, m], image tokens int64 [B, n]."""
    random = np.random.default_rng(0)
    text = random.integers(5, config.text.vocabulary_size, [count, config.text.max_length])
    return text, np.ones(text.shape, dtype=bool), random.integers(0, config.vqgan.codebook.size, [count, config.image_tokens])
