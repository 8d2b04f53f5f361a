"""What stands in a .nir file for something that NIR has no node for, read back as what it stands for.

A pool is a dense convolution with ones, and a maximum of spikes such a count and a neuron that fires at any; a sum is
an identity that reads several edges; a map that is added at every timestep is a convolution of a single 1.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TypeVar

import nir
import numpy as np

from dalif_deploy.nodes import Array, Edge, Pair, Pool2d, frozen

_Pool = TypeVar("_Pool", bound=Pool2d)

ANY = 0.5
"""The threshold of the neuron that tells whether any spike of a window is there."""
ZEROS = re.compile(r"\.zeros\d*$")
"""What the exporter calls a node that always gives zeros."""
_COPY = re.compile(r"\.copy\d+$")
"""What it calls a node that repeats another."""
_ONE = ".one"
"""How it calls the node that always gives 1, of which maps are made."""


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


def is_one(name: str, node: nir.NIRNode) -> bool:
    """Whether a node is a map of one place that is always 1."""
    if not isinstance(node, nir.Conv2d) or not name.endswith(_ONE) or np.any(node.weight):
        return False
    shape = [int(n) for n in np.ravel((node.output_type or {}).get("output", ()))]
    return shape == [1, 1, 1] and np.array_equal(node.bias, [1.0])


def map_of(node: nir.NIRNode, shape: tuple[int, ...]) -> Array | None:
    """What a convolution makes of a single 1, (channels, height, width); None for another node."""
    if not isinstance(node, nir.Conv2d) or isinstance(node.padding, str) or np.any(node.bias):
        return None
    if np.any(np.asarray(node.dilation) != 1) or node.weight.shape[1] != 1:
        return None
    # Output y reads the kernel's row padding - stride y: there it lies on the 1.
    axes = zip(np.broadcast_to(node.padding, (2,)), np.broadcast_to(node.stride, (2,)), shape[1:], strict=True)
    rows, columns = (p - s * np.arange(n) for p, s, n in axes)
    kernel = node.weight.shape[2:]
    if any(places.min() < 0 or places.max() >= n for places, n in zip((rows, columns), kernel, strict=True)):
        return None
    return frozen(node.weight[:, 0][:, rows[:, None], columns])


def adds_up(name: str, node: nir.NIRNode, inputs: int, *, exact: bool) -> bool:
    """Whether a node only repeats what comes in: the exporter's way to say a sum, or a source that is added twice.

    In a file of exact sums, where one source is a sum's only one, too: weights could not read it.
    """
    if inputs == 1 and not exact and not _COPY.search(name):
        return False
    match node:
        case nir.Linear() | nir.Affine():
            weight = node.weight
        case nir.Conv2d():
            if (node.weight.shape[2:], node.groups) != ((1, 1), 1) or np.any(np.asarray(node.stride) != 1):
                return False
            if isinstance(node.padding, str) or np.any(node.padding):
                return False
            weight = node.weight[:, :, 0, 0]
        case _:
            return False
    return np.array_equal(weight, np.eye(len(weight))) and not np.any(getattr(node, "bias", 0.0))
