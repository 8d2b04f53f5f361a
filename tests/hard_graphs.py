"""Networks that are hard to fold: shortcuts, shared producers, normalisations out of place, pools, joined channels.

Each is a training graph and a batch, calibrated so that every neuron layer fires on 2 to 40 % of neuron-steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.encoding import Encoding
from dalif_deploy.nodes import (
    Array,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Edge,
    Flatten,
    MaxPool2d,
    Scale,
    SumPool2d,
    Zeros,
    frozen,
)
from tests.graphs import Build, Case, calibrated

SIZE = 6
ROOT = frozen(np.float32(np.sqrt(0.5)))


class Hard(Build):
    """A stem of spikes [8, 6, 6], a middle that the case adds, and a linear layer that reads it out."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, (2, SIZE, SIZE))
        self.batch = np.random.default_rng(seed + 1000).uniform(0.0, 1.0, (4, 2, SIZE, SIZE)).astype(np.float32)

    def stem(self) -> str:
        return self.norm_neuron("stem", self.conv("stem_conv", "input", (2, 8)), 8)

    def normed(
        self, name: str, source: str, into: int = 8, out: int = 8, *, alpha: object = 1.0, **options: Any
    ) -> str:
        """A convolution and its BatchNorm, a branch of a sum before a neuron of this alpha."""
        mean, spread = (-0.5, 0.6) if np.all(np.asarray(alpha) < 0.0) else (0.15, 0.4)
        return self.norm(f"{name}_bn", self.conv(name, source, (into, out), **options), out, mean=mean, spread=spread)

    def join(self, name: str, *sources: str) -> str:
        return self.add(Concat(name=name, inputs=tuple(Edge(source) for source in sources)))

    def scale(self, name: str, source: str, factor: object, offset: object = 0.0) -> str:
        return self.add(Scale(name=name, inputs=(Edge(source),), factor=frozen(factor), offset=frozen(offset)))

    def pool(
        self, name: str, source: str, kind: Any = AvgPool2d, kernel: int = 2, stride: int = 2, **options: Any
    ) -> str:
        pads = {"padding": (options.pop("padding", 0),) * 2}
        return self.add(
            kind(name=name, inputs=(Edge(source),), kernel=(kernel,) * 2, stride=(stride,) * 2, **pads, **options)
        )

    def done(self, source: str, shape: tuple[int, int, int]) -> Case:
        """Read out, and calibrated."""
        x = self.add(Flatten(name="flatten", inputs=(Edge(source),)))
        graph = self.finish(self.linear("fc", x, (int(np.prod(shape)), 5)))
        return calibrated(graph, self.batch), self.batch


def per_channel(*values: float, channels: int = 8) -> Array:
    """These values over and over, (channels, 1, 1), as float32 holds them."""
    return frozen(np.resize(np.array(values, np.float32), channels).reshape(-1, 1, 1))


def identity(alpha: object = 0.75, beta: object = 0.625, **rules: Any) -> Case:
    build = Hard(1)
    stem = build.stem()
    x = build.norm_neuron("sn1", build.conv("conv1", stem, (8, 8)), 8)
    x = build.neuron(
        "sn2", build.plus("add", build.normed("conv2", x, alpha=alpha), stem), alpha=alpha, beta=beta, **rules
    )
    x = build.norm_neuron("sn3", build.conv("conv3", x, (8, 8)), 8)
    return build.done(build.plus("add2", x, stem), (8, 6, 6))


def downsampling(how: str, alpha: object = 0.75) -> Case:
    build = Hard(2)
    stem = build.stem()
    x = build.norm_neuron("sn1", build.conv("conv1", stem, (8, 16), stride=2), 16)
    branch = build.normed("conv2", x, 16, 16, alpha=alpha)
    if how == "conv and BatchNorm":
        shortcut = build.normed("shortcut", stem, 8, 16, kernel=1, padding=0, stride=2)
    elif how == "conv alone":
        shortcut = build.conv("shortcut", stem, (8, 16), kernel=1, padding=0, stride=2, bias=True)
    else:
        kernel = {"average": 2, "every second": 1}[how]
        zeros = build.add(Zeros(name="zeros", shape=(4, 3, 3)))
        shortcut = build.join("shortcut", zeros, build.pool("halve", stem, kernel=kernel), zeros)
    x = build.neuron("sn2", build.plus("add", branch, shortcut), alpha=alpha)
    return build.done(build.norm_neuron("sn3", build.conv("conv3", x, (16, 8)), 8), (8, 3, 3))


def shared(second_alpha: float) -> Case:
    """One convolution and BatchNorm feed two neurons of different alpha, and a sum."""
    build = Hard(3)
    conv = build.norm("bn", build.conv("conv", build.stem(), (8, 8)), 8, mean=0.2, spread=1.2)
    left = build.neuron("left", conv, alpha=0.5)
    right = build.neuron("right", conv, alpha=second_alpha)
    x = build.neuron("both", build.plus("add", left, right, conv), alpha=0.625)
    return build.done(build.norm_neuron("sn", build.conv("conv2", x, (8, 8)), 8), (8, 6, 6))


def inside(gains: tuple[float, ...], **rules: Any) -> Case:
    """A neuron that compares a normalised potential, per channel, fed by a convolution and by an identity."""
    build = Hard(4)
    stem = build.stem()
    gain = per_channel(*gains)
    # From rest the potential lies between 0 and 1: thresholds of both signs of gain inside its range.
    mean = per_channel(0.1, 0.2)
    bias = frozen(
        np.where(gain > 0.0, 0.45, np.where(gain < 0.0, 0.75, np.resize([0.5, 1.0, 0.7], 8).reshape(8, 1, 1))).astype(
            np.float32
        )
    )
    norm = {"norm_gain": gain, "norm_mean": mean, "norm_bias": bias, **rules}
    x = build.norm("bn1", build.conv("conv1", stem, (8, 8)), 8, mean=0.1, spread=0.5)
    x = build.neuron("sn1", x, **norm)
    x = build.neuron("sn2", build.plus("add", build.normed("conv2", x), stem), alpha=0.625, **norm)
    return build.done(build.norm_neuron("sn3", build.conv("conv3", x, (8, 8)), 8), (8, 6, 6))


def between(kind: str) -> Case:
    """A BatchNorm between the sum and the neuron: of two currents, of a current and spikes, of spikes alone."""
    build = Hard(5)
    stem = build.stem()
    x = build.norm_neuron("sn1", build.conv("conv1", stem, (8, 8)), 8)
    terms = {
        "currents": lambda: (build.normed("conv2", x), build.conv("shortcut", stem, (8, 8), kernel=1, padding=0)),
        "an identity": lambda: (build.normed("conv2", x), stem),
        "spikes": lambda: (x, stem),
    }[kind]()
    x = build.norm_neuron("sn2", build.plus("add", *terms), 8, alpha=-0.75)
    return build.done(build.norm_neuron("sn3", build.conv("conv3", x, (8, 8)), 8), (8, 6, 6))


def scaled(alpha: float) -> Case:
    """(branch + shortcut) / sqrt 2, and each by itself."""
    build = Hard(6)
    stem = build.stem()
    total = build.plus("add", build.normed("conv1", stem, alpha=alpha), stem)
    x = build.neuron("sn1", build.scale("half", total, ROOT, np.sign(alpha) * 0.125), alpha=alpha)
    left, right = build.scale("left", build.normed("conv2", x, alpha=alpha), ROOT), build.scale("right", x, ROOT)
    x = build.neuron("sn2", build.plus("add2", left, right, build.normed("conv4", stem)), alpha=alpha)
    return build.done(build.norm_neuron("sn3", build.conv("conv3", x, (8, 8)), 8), (8, 6, 6))


def no_producer(where: str) -> Case:
    """A BatchNorm on the input, behind a pool or on spikes, before a convolution that pads, or before a neuron."""
    build = Hard(7)
    x = build.norm("input_bn", "input", 2, mean=0.2, spread=0.6) if where == "on the input" else "input"
    x = build.norm_neuron("stem", build.conv("stem_conv", x, (2, 8)), 8)
    if where == "behind a pool":
        x = build.norm("pool_bn", build.pool("pool", x, stride=1, kernel=3, padding=1), 8)
    elif where == "behind a maximum":
        x = build.norm("pool_bn", build.pool("pool", x, MaxPool2d, stride=1, kernel=3, padding=1), 8)
    else:
        x = build.norm("spike_bn", x, 8, mean=-0.4 if where == "before a neuron" else 0.3)
    if where == "before a neuron":
        x = build.neuron("sn0", x, alpha=-0.875)
    x = build.norm_neuron("sn", build.conv("conv", x, (8, 8), padding=2, kernel=5), 8)
    return build.done(x, (8, 6, 6))


def maxima(of: str, **options: Any) -> Case:
    build = Hard(8)
    x = build.norm("bn", build.conv("conv", "input", (2, 8)), 8, mean=-0.1 if of == "real values" else 0.3)
    x = x if of == "real values" else build.neuron("sn", x)
    x = build.pool("pool", x, MaxPool2d, **options)
    x = build.neuron("after", x, alpha=0.75) if of == "real values" else x
    x = build.norm_neuron("sn2", build.conv("conv2", x, (8, 8)), 8)
    n = 2 * options.get("padding", 0) + SIZE - options.get("kernel", 2)
    rows = (-(-n // options.get("stride", 2)) if options.get("ceil_mode") else n // options.get("stride", 2)) + 1
    return build.done(x, (8, rows, rows))


def dense(of: str, alpha: object = 0.75) -> Case:
    """Two layers that grow, their channels joined with all before; then a transition."""
    build = Hard(9)
    have = build.stem()
    channels = 8
    for i in range(2):
        if of == "spikes":
            new = build.norm_neuron(f"sn{i}", build.conv(f"conv{i}", have, (channels, 4)), 4, alpha=alpha)
            have = build.join(f"join{i}", have, new)
            channels += 4
        else:  # currents, before one neuron: different kernels side by side
            small = build.conv(f"small{i}", have, (channels, 4), kernel=1, padding=0)
            large = build.conv(f"large{i}", have, (channels, 4), bias=True, groups=2)
            joined = build.join(
                f"join{i}", small, build.plus(f"add{i}", large, build.conv(f"other{i}", have, (channels, 4)))
            )
            have = build.norm_neuron(f"sn{i}", joined, 8, alpha=alpha)
    if of == "spikes":
        have = build.norm_neuron("pre", have, channels, alpha=alpha)
        have = build.pool("halve", build.conv("transition", have, (channels, 8), kernel=1, padding=0))
        have = build.norm_neuron("sn", have, 8)
        return build.done(have, (8, 3, 3))
    return build.done(build.norm_neuron("sn", build.conv("conv", have, (8, 8)), 8), (8, 6, 6))


def mixed_alpha(*values: float, identity: bool = True) -> Case:
    """alpha per channel of both signs and 0, before a convolution of its own and before an identity."""
    build = Hard(10)
    stem = build.stem()
    alpha = per_channel(*values)
    # Gammas of alpha's own sign, so that the layer fires on every channel whose alpha is not 0.
    x = build.norm("bn1", build.conv("conv1", stem, (8, 8)), 8, mean=0.0)
    sign = np.where(alpha.reshape(-1) < 0.0, -1.0, 1.0)
    norm = build.nodes[-1]
    assert isinstance(norm, BatchNorm)
    build.nodes[-1] = replace(norm, bias=frozen((0.4 * sign).astype(np.float32)))
    x = build.neuron("sn1", x, alpha=alpha, beta=0.5)
    branch = build.normed("conv2", x)
    x = build.neuron("sn2", build.plus("add", branch, stem) if identity else branch, alpha=alpha, beta=0.5)
    return build.done(build.norm_neuron("sn3", build.conv("conv3", x, (8, 8)), 8), (8, 6, 6))


def leaks(beta: object) -> Case:
    build = Hard(11)
    stem = build.stem()
    x = build.norm_neuron("sn1", build.conv("conv1", stem, (8, 8)), 8, beta=beta)
    x = build.neuron("sn2", build.plus("add", build.normed("conv2", x), stem), beta=beta, alpha=0.6)
    return build.done(build.norm_neuron("sn3", build.conv("conv3", x, (8, 8)), 8), (8, 6, 6))


def partial(kind: Any = AvgPool2d, *, factor: float = 1.0, read: str = "conv", **options: Any) -> Case:
    build = Hard(12)
    x = build.pool("pool", build.stem(), kind, **{"kernel": 3, "stride": 2, **options})
    x = build.scale("divided", x, factor) if factor != 1.0 else x
    rows = 3 if options.get("padding") or options.get("ceil_mode") else 2
    rows = 4 if options.get("padding") and options.get("ceil_mode") else rows
    if read == "conv":
        x = build.norm_neuron("sn", build.conv("conv", x, (8, 8)), 8)
        return build.done(x, (8, rows, rows))
    if read == "identity":
        branch = build.normed("branch", "stem", stride=2)
        x = build.neuron("sn", build.plus("add", x, branch), alpha=0.9)
        return build.done(x, (8, rows, rows))
    return build.done(x, (8, rows, rows))


def oblong(width: int) -> Case:
    """A convolution whose kernel is 3 high and this wide."""
    build = Hard(15)
    weight = frozen(np.random.default_rng(16).normal(0.0, 0.3, (8, 8, 3, width)).astype(np.float32))
    conv = Conv2d(name="conv1", inputs=(Edge(build.stem()),), weight=weight, padding=(1, width // 2))
    x = build.norm_neuron("sn1", build.add(conv), 8)
    return build.done(x, (8, 6, 6 + 2 * (width // 2) - width + 1))


def placed() -> Case:
    """A constant that differs from place to place, added to spikes before a neuron, as an embedding of positions."""
    build = Hard(17)
    places = np.random.default_rng(18).normal(0.0, 0.2, (8, SIZE, SIZE)).astype(np.float32)
    stem = build.scale("embedded", build.stem(), 1.0, places)
    x = build.neuron("sn1", build.plus("add", build.normed("conv1", "stem"), stem))
    return build.done(x, (8, 6, 6))


def all_zero() -> Case:
    """A layer with alpha = 0 behind a convolution that nothing else has the shape of; it never fires."""
    build = Hard(13)
    stem = build.stem()
    dead = build.norm_neuron("dead", build.conv("conv1", stem, (8, 6), stride=2), 6, alpha=0.0)
    live = build.norm_neuron("live", build.conv("conv2", stem, (8, 6), stride=2), 6)
    return build.done(build.join("join", dead, live), (12, 3, 3))


def codes() -> Case:
    """uint8 codes into joined channels of currents: all sums have an exact form."""
    build = Hard(14)
    batch: NDArray[np.generic] = np.random.default_rng(15).integers(0, 256, (4, 2, SIZE, SIZE)).astype(np.uint8)
    x = build.join("join", build.conv("a", "input", (2, 4)), build.conv("b", "input", (2, 4), kernel=1, padding=0))
    x = build.norm_neuron("sn1", x, 8)
    x = build.norm_neuron(
        "sn2",
        build.conv(
            "conv2", build.join("join2", x, build.pool("top", x, MaxPool2d, kernel=3, stride=1, padding=1)), (16, 8)
        ),
        8,
    )
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    encoding = Encoding(kind="uint8", scale=1 / 255)
    graph = build.finish(build.linear("fc", x, (8 * 36, 5)), encoding=encoding)
    return calibrated(graph, batch), batch


GRAPHS: dict[str, Callable[[], Case]] = {
    "identity": lambda: identity(np.float32(np.tanh(1.1))),
    "identity, alpha negative": lambda: identity(-0.75),
    "identity, reset and threshold": lambda: identity(0.75, v_threshold=0.8, v_reset=-0.25),
    "downsampling, conv and BatchNorm": lambda: downsampling("conv and BatchNorm"),
    "downsampling, conv alone": lambda: downsampling("conv alone"),
    "downsampling, average and zeros": lambda: downsampling("average"),
    "downsampling, every second and zeros": lambda: downsampling("every second"),
    "downsampling, zeros, alpha negative": lambda: downsampling("average", -0.75),
    "shared producer": lambda: shared(0.375),
    "shared producer, alpha negative": lambda: shared(-0.375),
    "normalised potential, gain above 0": lambda: inside((0.9, 1.3, 0.7)),
    "normalised potential, gain below 0": lambda: inside((-1.0, -0.7)),
    "normalised potential, gain of all signs": lambda: inside((0.9, -0.8, 0.0, 1.2, -1.1)),
    "normalised potential, reset": lambda: inside((0.9, -0.8, 0.0), v_reset=-0.25, fires_at="gt"),
    "BatchNorm between currents and neuron": lambda: between("currents"),
    "BatchNorm between identity and neuron": lambda: between("an identity"),
    "BatchNorm between spikes and neuron": lambda: between("spikes"),
    "branches over sqrt 2": lambda: scaled(0.875),
    "branches over sqrt 2, alpha negative": lambda: scaled(-0.875),
    "BatchNorm on the input": lambda: no_producer("on the input"),
    "BatchNorm behind a pool": lambda: no_producer("behind a pool"),
    "BatchNorm behind a maximum": lambda: no_producer("behind a maximum"),
    "BatchNorm on spikes, before padding": lambda: no_producer("on spikes"),
    "BatchNorm on spikes, before a neuron": lambda: no_producer("before a neuron"),
    "maximum of spikes": lambda: maxima("spikes"),
    "maximum of spikes, padded": lambda: maxima("spikes", kernel=3, padding=1),
    "maximum of spikes, open": lambda: maxima("spikes", kernel=3, ceil_mode=True),
    "maximum of spikes, padded and open": lambda: maxima("spikes", kernel=3, stride=2, padding=1, ceil_mode=True),
    "maximum of real values": lambda: maxima("real values"),
    "maximum of real values, padded and open": lambda: maxima("real values", kernel=3, padding=1, ceil_mode=True),
    "joined spikes": lambda: dense("spikes"),
    "joined spikes, alpha negative": lambda: dense("spikes", -0.75),
    "joined currents": lambda: dense("currents"),
    "joined currents, alpha per channel": lambda: dense("currents", per_channel(0.5, 0.75, 1.25)),
    "alpha per channel": lambda: mixed_alpha(0.5, 0.9, 1.3),
    "alpha per channel, of all signs": lambda: mixed_alpha(0.8, -0.9, 0.0, 1.1),
    "alpha per channel, of all signs, own weights": lambda: mixed_alpha(0.8, -0.9, 0.0, 1.1, identity=False),
    "alpha 0": all_zero,
    "beta 1": lambda: leaks(1.0),
    "beta 0": lambda: leaks(0.0),
    "beta negative": lambda: leaks(-0.25),
    "beta per channel": lambda: leaks(per_channel(0.25, 0.5, 0.9)),
    "beta per channel, 1 and 0 and negative": lambda: leaks(per_channel(1.0, 0.0, -0.25, 0.7)),
    "average, padded": lambda: partial(padding=1),
    "average, padding not counted": lambda: partial(padding=1, count_include_pad=False),
    "average, open": lambda: partial(ceil_mode=True),
    "average, open, padding not counted": lambda: partial(ceil_mode=True, padding=1, count_include_pad=False),
    "average, open, before a neuron": lambda: partial(ceil_mode=True, read="identity"),
    "average, open, before the classifier": lambda: partial(ceil_mode=True, read="flat"),
    "average over another divisor": lambda: partial(SumPool2d, factor=0.2, padding=1),
    "average over another divisor, open": lambda: partial(SumPool2d, factor=0.25, ceil_mode=True, read="identity"),
    "kernel of 3 by 1": lambda: oblong(1),
    "kernel of 3 by 2": lambda: oblong(2),
    "offset from place to place": placed,
    "codes": codes,
}

SILENT = {"alpha 0": {"dead"}}
"""Layers that are silent on purpose, by graph."""
