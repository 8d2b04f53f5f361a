"""Elementwise arithmetic: sums of values, and scaling by constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dalif_deploy.capturing.call import Call, Result
from dalif_deploy.capturing.values import Op, Val
from dalif_deploy.errors import Code
from dalif_deploy.nodes import Array


def arithmetic(call: Call) -> Result:
    name = call.name
    if call.kwargs.get("rounding_mode") is not None:
        raise call.unsupported()
    a = call.args[0]
    b = call.args[1] if len(call.args) > 1 else None
    alpha = call.number(call.arg(2, "alpha", 1)) if name in ("add", "sub", "rsub") else 1.0
    va, vb = call.val_of(a), call.val_of(b)
    if any(v is not None and v.d is not None for v in (va, vb)):  # axes of one entry, beside [batch, 1, ...]
        va, vb = (None if v is None else call.settled(v) for v in (va, vb))
    return Val((_elementwise(call, va.node if va else a, vb.node if vb else b, alpha),))


def _elementwise(call: Call, a: Any, b: Any, alpha: float) -> Op:
    """One of add, sub, rsub, mul, div, neg, maximum on nodes, constant tensors and numbers."""
    name = call.name
    if name == "rsub":
        name, a, b = "sub", b, a
        if alpha != 1.0:
            raise call.unsupported()
    if name == "neg":
        return affine(call, a, factor=-1.0)
    if isinstance(a, Op) and isinstance(b, Op):
        if a.shape != b.shape:
            raise call.refuse(f"values of different shapes, {list(a.shape)} and {list(b.shape)}, without batch")
        if name in ("add", "sub"):
            second = affine(call, b, factor=alpha if name == "add" else -alpha)
            return call.op("add", [a, second], a.shape).node
        if name == "maximum":
            return call.op("max_of", [a, b], a.shape).node
        raise call.refuse("a product or quotient of two values computed from the input is not supported")
    if isinstance(a, Op):
        c = constant_features(call, b, a)
        if name in ("add", "sub"):
            return affine(call, a, offset=c * (alpha if name == "add" else -alpha))
        if name == "mul":
            return affine(call, a, factor=c)
        if name == "div":
            if not c.all():
                raise call.refuse("divides by zero")
            return affine(call, a, factor=1.0 / c)
    elif isinstance(b, Op):
        c = constant_features(call, a, b)
        if name in ("add", "sub"):
            return affine(call, b, factor=alpha if name == "add" else -alpha, offset=c)
        if name == "mul":
            return affine(call, b, factor=c)
    raise call.unsupported()


def constant_features(call: Call, value: Any, node: Op) -> Array:
    """A number or an untracked tensor, float64, shaped to broadcast against the node's features."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(call.number(value))
    array = value.detach().to(device="cpu", dtype=torch.float64).numpy()
    if array.ndim == len(node.shape) + 1:
        if not (array == array[:1]).all():
            raise call.refuse("adds or multiplies a constant that differs between samples", Code.CAPTURE_REFUSED)
        array = array[0]
    try:
        fits = np.broadcast_shapes(array.shape, node.shape) == node.shape
    except ValueError:
        fits = False
    if not fits:
        raise call.refuse(f"a constant of shape {list(value.shape)} does not fit {list(node.shape)} features")
    return np.array(array)


def affine(call: Call, node: Op, *, factor: Any = 1.0, offset: Any = 0.0) -> Op:
    """factor * node + offset; nothing where that is the node itself."""
    factor, offset = np.asarray(factor, dtype=np.float64), np.asarray(offset, dtype=np.float64)
    if (factor == 1.0).all() and (offset == 0.0).all():
        return node
    consts = [call.recorder.table.array_const(_smallest(values)) for values in (factor, offset)]
    return call.op("affine", [node], node.shape, consts).node


def _smallest(values: Array) -> Array:
    # A full array of one number is that number: the buffer's size is no property of the network.
    if values.size and (values == values.flat[0]).all():
        return np.asarray(values.flat[0])
    return values
