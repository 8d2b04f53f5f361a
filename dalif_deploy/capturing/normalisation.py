"""A BatchNorm that is part of a neuron module: of its input, of its potential, or of what it compares.

"input"        V = beta H + alpha BN(X)
"potential"    V = BN(beta H + alpha X), which is compared and carried on
"comparison"   V = beta H + alpha X is carried on; BN(V) is compared with the threshold
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import Array, BatchNorm, Edge, Neuron, Node, Scale, frozen

NormOf = Literal["input", "potential", "comparison"]


@dataclass(frozen=True, eq=False)
class Normalisation:
    """The statistics and parameters of a BatchNorm in evaluation, float64 (channels,) each."""

    weight: Array
    bias: Array
    mean: Array
    variance: Array
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> Self:
        """Of a torch BatchNorm. Raises `DalifError` (BAD_OPTION, CAPTURE_REFUSED)."""
        if not isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            raise DalifError(
                Code.BAD_OPTION,
                f"NeuronParameters: norm={type(module).__name__}; give the neuron's torch.nn.BatchNorm module",
            )
        if module.running_mean is None or module.running_var is None:
            raise DalifError(
                Code.CAPTURE_REFUSED,
                "NeuronParameters: norm has no running statistics, so it normalises by the batch, which mixes samples; "
                "use track_running_stats=True",
            )

        def array(values: Any, otherwise: float) -> Array:
            if values is None:
                return frozen([otherwise] * module.num_features)
            return frozen(values.detach().to(device="cpu", dtype=torch.float64).numpy())

        return cls(
            array(module.weight, 1.0), array(module.bias, 0.0), array(module.running_mean, 0.0),
            array(module.running_var, 1.0), float(module.eps),
        )  # fmt: skip

    def node(self, name: str, source: Edge) -> BatchNorm:
        """It as a node of a graph."""
        return BatchNorm(
            name=name, inputs=(source,), weight=self.weight, bias=self.bias, mean=self.mean, variance=self.variance,
            epsilon=self.epsilon,
        )  # fmt: skip


def with_normalisation(
    neuron: Neuron, norm: Normalisation, norm_of: NormOf, shape: tuple[int, ...], fresh: str
) -> tuple[Node | None, Neuron]:
    """`neuron` with a BatchNorm in it, and the node, called `fresh`, that comes to stand before it.

    Raises `DalifError` (WRONG_SHAPE) where it does not fit a layer of `shape`.
    """
    (source,) = neuron.inputs
    node = norm.node(fresh, source)
    if norm.mean.shape != shape[:1]:
        raise DalifError(
            Code.WRONG_SHAPE,
            f"neuron layer '{neuron.name}': its norm has {norm.mean.size} channels, and the layer's shape is {shape}",
        )
    spread = (-1,) + (1,) * (len(shape) - 1)
    gain, mean, bias, offset = (
        frozen(values.reshape(spread)) for values in (node.gain(), norm.mean, norm.bias, node.offset())
    )
    if norm_of == "comparison":
        return None, replace(neuron, norm_gain=gain, norm_mean=mean, norm_bias=bias)
    behind = replace(neuron, inputs=(Edge(fresh),))
    if norm_of == "input":
        return node, behind
    if neuron.reset_timing != "now":
        raise DalifError(
            Code.UNSUPPORTED_LAYER,
            f"neuron layer '{neuron.name}': a norm of its potential beside a reset that comes late is not supported",
        )
    # V = (gain beta) H + (gain alpha X + offset); the raw parameters say nothing of these. What the leak pulls to is
    # a constant, and part of the offset.
    rest = frozen(offset + gain * (1.0 - neuron.beta) * neuron.leak_target)
    scale = Scale(name=fresh, inputs=(source,), factor=frozen(gain * neuron.alpha), offset=rest)
    changed = replace(behind, alpha=frozen(1.0), beta=frozen(gain * neuron.beta), leak_target=frozen(0.0))
    return scale, replace(changed, raw_alpha=None, raw_beta=None, activation=None)


def received(current: Array, before: Node | None) -> Array:
    """What a neuron's own node receives, [B, T, *shape], where its module was given `current`."""
    if before is None:
        return current
    assert isinstance(before, BatchNorm | Scale)
    if isinstance(before, Scale):
        return frozen(before.factor * current + before.offset)
    spread = (-1,) + (1,) * (current.ndim - 3)
    gain, mean, bias = (values.reshape(spread) for values in (before.gain(), before.mean, before.bias))
    return frozen(gain * (current - mean) + bias)
