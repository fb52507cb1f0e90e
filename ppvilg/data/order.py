"""A shuffle without a table: where each position of a permutation goes is computed from the position alone.

A Feistel network of hashed rounds permutes the numbers of 2b bits; a number beyond the length goes through it again until it
comes out below ("cycle walking", Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains). Any position of any epoch
costs the same few operations and no memory, in every process alike.
"""

import numpy as np

_ROUNDS = 6
_MULTIPLIERS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)  # of splitmix64's last steps


class Permutation:
    """A bijection of 0 ... length - 1 that looks random and is a function of the length and the seeds."""

    def __init__(self, length: int, *seeds: int):
        self._length = length
        self._half = np.uint64(max(1, -(-(max(length, 2) - 1).bit_length() // 2)))  # bits of either half
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = np.random.default_rng(seeds).integers(0, 2**64, _ROUNDS, np.uint64)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Where positions int [k], each in [0, length), go: int64 [k]."""
        x = self._network(np.asarray(positions).astype(np.uint64))
        while (beyond := x >= self._length).any():
            x[beyond] = self._network(x[beyond])
        return x.astype(np.int64)

    def _network(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self._half, x & self._mask
        for key in self._keys:
            left, right = right, left ^ (_hash(right ^ key) & self._mask)
        return left << self._half | right


def _hash(x: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer of uint64 [k]."""
    x = (x ^ x >> np.uint64(30)) * _MULTIPLIERS[0]
    x = (x ^ x >> np.uint64(27)) * _MULTIPLIERS[1]
    return x ^ x >> np.uint64(31)
