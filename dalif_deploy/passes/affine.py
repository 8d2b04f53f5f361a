"""Multiplies a gain into the weights of a layer: the arithmetic that the folding passes share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dalif_deploy.nodes import Array, Conv2d, Linear, Node, Scale, frozen


def per_output(values: Array, node: Node, ndim: int) -> Array | None:
    """`values`, which broadcast against an output of `ndim` axes, as one number for each of `node`'s output
    channels: (channels,) or (). None where they differ within a channel, so that no weight can hold them."""
    aligned = values.reshape((1,) * (ndim - values.ndim) + values.shape)
    if any(n != 1 for n in aligned.shape[1:]):
        return None
    return frozen(aligned.reshape(aligned.shape[0])) if aligned.shape[0] != 1 else frozen(aligned.reshape(()))


def scaled(node: Node, factor: Array, offset: Array, ndim: int) -> Node | None:
    """A `node` whose output is factor * output + offset, or None where `node` cannot hold that.

    `factor` and `offset` broadcast against the output, which has `ndim` axes. Conv2d and Linear hold what is
    constant within a channel; Scale holds anything.
    """
    if isinstance(node, Scale):
        return replace(node, factor=frozen(node.factor * factor), offset=frozen(node.offset * factor + offset))
    if not isinstance(node, Conv2d | Linear):
        return None
    gain, shift = per_output(factor, node, ndim), per_output(offset, node, ndim)
    if gain is None or shift is None:
        return None
    weight = node.weight * gain.reshape(gain.shape + (1,) * (node.weight.ndim - 1 if gain.ndim else 0))
    bias = shift if node.bias is None else node.bias * gain + shift
    if not np.any(bias):
        return replace(node, weight=frozen(weight), bias=None if node.bias is None else frozen(0.0 * node.bias))
    return replace(node, weight=frozen(weight), bias=frozen(np.broadcast_to(bias, (len(weight),))))
