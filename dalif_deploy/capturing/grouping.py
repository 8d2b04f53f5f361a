"""Pools and means over groups of a vector's features, such as the votes of several outputs for one class.

They see the vector as a map, [B, n] as [B, C, H, W], [B, C, L] or [B, groups, members], and stay linear in it: a
linear layer with the weights that the operation itself gives to each feature.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dalif_deploy.capturing.call import Call, reshaped
from dalif_deploy.capturing.values import Op, Val

_LARGEST = 2**22
"""Weights of such a layer at most: what is larger is a map that should have stayed one."""


def of_vector(call: Call, x: Op, shape: tuple[int, ...], apply: Callable[[torch.Tensor], torch.Tensor]) -> Val | None:
    """What `apply`, linear and without a constant part, makes of `x`, a vector seen as a map; None if `x` is none.

    `shape`: of the result, without batch. `apply` takes and returns float64 tensors with a batch in front.
    """
    if x.kind != "reshape" or len(x.inputs[0].shape) != 1:
        return None
    vector = x.inputs[0]
    size, outputs = vector.shape[0], int(torch.Size(shape).numel())
    if size * outputs > _LARGEST:
        return None
    units = torch.eye(size, dtype=torch.float64).reshape(size, *x.shape)
    weight = apply(units).reshape(size, outputs).T
    const = call.recorder.table.array_const(weight.numpy())
    return reshaped(call, call.op("linear", [vector], (outputs,), [const, None], [False]).node, shape)
