"""What NIR says of pools, in what it has: whole sum and average pools, dense convolutions, and neurons.

- A sum pool with padding or an open last window (ceil_mode) is a dense convolution with ones, 0 between channels:
  readers drop a sum pool's padding, and NIR has only whole windows.
- A maximum of spikes is 1 where any of them is: a sum pool, and a neuron that fires at 1/2. It never leaks and is
  reset to 0 when it fires; when it does not, its input was 0, so it remembers nothing from step to step.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import Array, AvgPool2d, Conv2d, Edge, MaxPool2d, Neuron, Pool2d, SumPool2d, frozen

ANY = 0.5
"""The threshold of the neuron that tells whether any spike of a window is there."""


def sum_of(node: MaxPool2d, name: str) -> SumPool2d:
    """How many spikes a window holds, as a node called `name`."""
    return SumPool2d(
        name=name, inputs=node.inputs, kernel=node.kernel, stride=node.stride, padding=node.padding,
        ceil_mode=node.ceil_mode,
    )  # fmt: skip


def any_of(node: MaxPool2d, count: str) -> Neuron:
    """The neuron that fires where `count` is not 0."""
    return Neuron(name=node.name, inputs=(Edge(count),), alpha=frozen(1.0), beta=frozen(1.0), v_threshold=frozen(ANY))


def is_plain(node: Pool2d, size: tuple[int, ...]) -> bool:
    """Whether NIR's own pool of this kind is the pool, in every reader that takes the kind."""
    floor = node.closed_windows(size) == node.windows(size)
    if isinstance(node, AvgPool2d):
        return floor and (node.count_include_pad or node.padding == (0, 0))
    return floor and node.padding == (0, 0)


def as_convolution(node: SumPool2d, shape: tuple[int, ...]) -> Conv2d:
    """A sum pool over `shape`, (channels, height, width), as a dense convolution with a square kernel.

    Along an axis, output o reads the places o * stride - P + j; the ones stand at j = P - p and after. P and the
    kernel's side are the smallest for which there are as many outputs as the pool has windows. Raises `DalifError`
    (TARGET_CANNOT_HOLD) where there are none: at a stride of 1 the side is odd or even as the window is.
    """
    if node.stride == (1, 1) and (node.kernel[0] - node.kernel[1]) % 2:
        raise DalifError(
            Code.TARGET_CANNOT_HOLD,
            f"node '{node.name}' ({type(node).__name__}): the height and width of its windows {node.kernel} differ by "
            "an odd number, and nir takes a kernel for a square one; NIR cannot hold this network, ONNX may",
        )
    channels, *size = shape
    windows = node.windows(size)
    axes = list(zip(size, windows, node.kernel, node.stride, node.padding, strict=True))
    side = max(node.kernel)
    while True:
        found = [_padding(side, *axis) for axis in axes]
        if None not in found:
            break
        side += 1
    padding = tuple(int(p) for p in found if p is not None)
    block = np.zeros((side, side))
    (top, left) = (outer - inner for outer, inner in zip(padding, node.padding, strict=True))
    block[top : top + node.kernel[0], left : left + node.kernel[1]] = 1.0
    weight: Array = np.eye(channels)[:, :, None, None] * block
    return Conv2d(
        name=node.name, inputs=node.inputs, weight=frozen(weight), stride=node.stride, padding=(padding[0], padding[1])
    )


def _padding(side: int, n: int, count: int, k: int, s: int, p: int) -> int | None:
    """The smallest P >= p with which a kernel of `side` holds the window and gives `count` outputs, or None."""
    for outer in range(p, side - k + p + 1):
        if (count - 1) * s <= n + 2 * outer - side < count * s:
            return outer
    return None


def zero_map(name: str, source: str, before: tuple[int, ...], shape: tuple[int, ...]) -> Conv2d | None:
    """A convolution with zero weights from a map of `before` to one of `shape`, or None where sizes do not meet."""
    for side in range(1, max(*before[1:], *shape[1:]) + 2):
        fits = []
        for n, out in zip(before[1:], shape[1:], strict=True):
            options = product(range(1, max(n, 2)), range(max(0, (out + side - n + 1) // 2 + 1)))
            fits.append(
                next(((s, p) for s, p in options if n + 2 * p >= side and (n + 2 * p - side) // s + 1 == out), None)
            )
        if None not in fits:
            (s0, p0), (s1, p1) = (fit for fit in fits if fit is not None)
            weight = frozen(np.zeros((shape[0], before[0], side, side)))
            return Conv2d(name=name, inputs=(Edge(source),), weight=weight, stride=(s0, s1), padding=(p0, p1))
    return None
