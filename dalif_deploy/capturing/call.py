"""One ATen operation as it was called, with what is known of its operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """One operation as it was called. `name` is without the trailing underscore of in-place variants.

    `step`: where the call is one timestep of a larger one, what its tensors are, by id.
    """

    recorder: Recorder
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    step: Mapping[int, Val] = field(default_factory=dict)

    def arg(self, index: int, key: str, default: Any = None) -> Any:
        if index < len(self.args):
            return self.args[index]
        return self.kwargs.get(key, default)

    def axes(self) -> set[int]:
        """The axes of its first operand that a reduction or squeeze names; all where it names none."""
        rank = self.args[0].ndim
        dims = self.arg(1, "dim")
        return {d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))}

    def val(self, index: int) -> Val | None:
        return self.val_of(self.args[index])

    def val_of(self, tensor: object) -> Val | None:
        """What an operand is, or None for a constant."""
        found = self.step.get(id(tensor))
        return self.recorder.val(tensor) if found is None else found

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
        return self.settled(val).node

    def settled(self, val: Val) -> Val:
        """The value without an axis that might have become time: one of one entry is a feature axis."""
        if val.d is None:
            return val
        if len(val.nodes) != 1 or val.d == 0:
            raise self.refuse(
                "works on a tensor in which time has an axis of its own; fold time into the batch, "
                "x.flatten(0, 1), before layers that know no time, or loop over the timesteps",
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
        if self.val_of(tensor) is not None:
            raise self.refuse("a value computed from the input stands where a constant is needed")
        return self.recorder.const(tensor)

    def shape(self) -> tuple[int, ...]:
        """The output's shape without batch, which must have stayed in front."""
        return self.features(self.out)

    def features(self, out: torch.Tensor) -> tuple[int, ...]:
        if out.ndim < 1 or out.shape[0] != self.recorder.batch:
            raise self.refuse(
                f"makes {list(out.shape)} of {list(self.args[0].shape)} for a batch of {self.recorder.batch}, so the "
                "batch does not stay in front" + self.hint(),
                Code.CAPTURE_REFUSED,
            )
        return tuple(out.shape[1:])

    def hint(self) -> str:
        """What the running module would take instead."""
        if self.recorder.site().kind.endswith("Linear"):
            return "; a Linear takes [batch, features]: flatten its input first"
        return "; only time may be folded into it"

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
