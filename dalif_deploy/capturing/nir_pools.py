"""Reads back the pools that a .nir file holds as dense convolutions, and the maximum of spikes, which it holds as a
count and a neuron that fires at any."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import nir
import numpy as np

from dalif_deploy.nodes import Array, Edge, Pair, Pool2d

_Pool = TypeVar("_Pool", bound=Pool2d)

ANY = 0.5
"""The threshold of the neuron that tells whether any spike of a window is there."""


def pool_of(
    kind: type[_Pool], name: str, source: Edge, count: nir.NIRNode, before: tuple[int, ...], shape: tuple[int, ...]
) -> _Pool | None:
    """The pool of the windows that `count` sums up, a SumPool2d or a dense convolution with ones; None if it is none.

    `before`, `shape`: (channels, height, width) of what it reads and of what it gives.
    """
    if isinstance(count, nir.SumPool2d):
        pool = kind(
            name=name, inputs=(source,), kernel=_pair(count.kernel_size), stride=_pair(count.stride),
            padding=_pair(count.padding),
        )  # fmt: skip
    elif isinstance(count, nir.Conv2d) and (window := _window(np.asarray(count.weight, dtype=np.float64))) is not None:
        (top, left), kernel = window
        padding = _pair(count.padding)
        pool = kind(
            name=name, inputs=(source,), kernel=kernel, stride=_pair(count.stride),
            padding=(padding[0] - top, padding[1] - left), ceil_mode=True,
        )  # fmt: skip
        halves = zip(pool.padding, kernel, strict=True)
        if np.any(count.bias) or min(pool.padding) < 0 or any(2 * p > k for p, k in halves):
            return None
    else:
        return None
    for option in (pool, replace(pool, ceil_mode=False)):
        if option.windows(before[1:]) == tuple(shape[1:]):
            return option
    return None


def _window(weight: Array) -> tuple[Pair, Pair] | None:
    """Where the ones of a kernel begin, and how large their rectangle is; channels must be kept apart."""
    if weight.ndim != 4 or weight.shape[0] != weight.shape[1]:
        return None
    block = weight[0, 0]
    rows, columns = np.flatnonzero(block.any(axis=1)), np.flatnonzero(block.any(axis=0))
    if not rows.size or not np.array_equal(weight, np.eye(len(weight))[:, :, None, None] * block):
        return None
    expected = np.zeros_like(block)
    expected[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 1.0
    if not np.array_equal(block, expected):
        return None
    return (int(rows[0]), int(columns[0])), (int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1)


def _pair(values: object) -> Pair:
    first, second = np.broadcast_to(np.asarray(values, dtype=np.int64), (2,)).tolist()
    return first, second
