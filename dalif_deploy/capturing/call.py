"""One ATen operation as it was called, with what is known of its operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from dalif_deploy.capturing.record import Recorder
from dalif_deploy.capturing.values import UNWRITTEN, Const, Op, Val
from dalif_deploy.errors import Code, DalifError

Result = Val | list[Val | None] | None
"""What becomes of an operation's outputs: a value each, None for what is not tracked."""


@dataclass(frozen=True)
class Call:
    """One operation as it was called. `name` is without the trailing underscore of in-place variants."""

    recorder: Recorder
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def arg(self, index: int, key: str, default: Any = None) -> Any:
        if index < len(self.args):
            return self.args[index]
        return self.kwargs.get(key, default)

    def val(self, index: int) -> Val | None:
        return self.recorder.val(self.args[index])

    def refuse(self, why: str, code: Code = Code.UNSUPPORTED_LAYER) -> DalifError:
        return self.recorder.refuse(code, f"aten.{self.name}: {why}")

    def unsupported(self) -> DalifError:
        return self.refuse(
            "this operation is not supported; supported are convolutions, linear layers, batch normalisation, pools, "
            "additions, scaling by constants, flattening, and spiking neurons"
        )

    def op(
        self,
        kind: str,
        inputs: Sequence[Op],
        shape: Sequence[int],
        consts: Sequence[Const | None] = (),
        attrs: Sequence[Any] = (),
    ) -> Val:
        """A new untimed value."""
        if any(x.kind == UNWRITTEN for x in inputs):
            raise self.refuse("reads a buffer of which some timesteps were never written", Code.CAPTURE_REFUSED)
        site = self.recorder.site()
        return Val((self.recorder.table.op(kind, tuple(shape), site, tuple(inputs), tuple(consts), tuple(attrs)),))

    def node(self, index: int = 0) -> Op:
        """The untimed node of a tracked operand."""
        val = self.val(index)
        if val is None:
            raise self.refuse("a value computed from the input stands where a constant is needed")
        settled = val if val.d is None else self._without_unit_axis(val)
        return settled.node

    def _without_unit_axis(self, val: Val) -> Val:
        if len(val.nodes) != 1 or val.d == 0:
            raise self.refuse(
                "works on a tensor with a time axis; layouts with time in the tensor (layouts TB, BT) are not captured "
                "yet: write forward as one step, or as a loop over time",
                Code.CAPTURE_REFUSED,
            )
        assert val.d is not None
        shape = list(val.node.shape)
        shape.insert(val.d - 1, 1)
        return reshaped(self, val.node, shape)

    def constant(self, index: int, key: str = "") -> Const | None:
        """The constant an operand is, or None where it is absent."""
        tensor = self.arg(index, key)
        if tensor is None:
            return None
        if self.recorder.val(tensor) is not None:
            raise self.refuse("a value computed from the input stands where a constant is needed")
        return self.recorder.const(tensor)

    def shape(self) -> tuple[int, ...]:
        """The output's shape without batch, which must have stayed in front."""
        return self.features(self.out)

    def features(self, out: torch.Tensor) -> tuple[int, ...]:
        batch = self.args[0].shape[0]
        if out.ndim < 1 or out.shape[0] != batch:
            raise self.refuse(
                "the batch axis does not stay in front; modules that fold time into the batch (layouts TB, BT) are not "
                "captured yet: write forward as one step, or as a loop over time",
                Code.CAPTURE_REFUSED,
            )
        return tuple(out.shape[1:])

    def number(self, value: float) -> float:
        """A Python number as the operation takes it: beside float32 tensors it is a float32."""
        like = next(a for a in tree_leaves((self.args, self.kwargs)) if isinstance(a, torch.Tensor))
        return float(np.float32(value)) if like.dtype == torch.float32 else float(value)


Handler = Callable[[Call], Result]


def reshaped(call: Call, node: Op, shape: Sequence[int]) -> Val:
    """`node` in another feature shape; a chain of reshapes is one."""
    source = node.inputs[0] if node.kind == "reshape" else node
    if source.shape == tuple(shape):
        return Val((source,))
    return call.op("reshape", [source], shape, [], [tuple(shape)])


def second(call: Call, first: Val) -> Val:
    """A second output, such as a pool's indices."""
    # Tracked, so that nobody takes it for a constant, and refused where it is used.
    return call.op("unsupported", first.nodes, first.node.shape, [], [call.name])
