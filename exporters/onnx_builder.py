"""An ONNX graph in the making: nodes, initialisers rounded once, and values over time.

Names are made so that a viewer reads the file like the network. A node's output is `<node>/output`, of one
timestep `<node>/t3/output`; parameters are `<node>.<field>`. Node names hold no "/", so none can collide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import Array, Node

INPUT = "input"
LOGITS = "logits"
BATCH = "batch"
STACKED_BATCH = "timesteps*batch"

ElementType = int
"""An element type of ONNX's."""
FLOAT: ElementType = onnx.TensorProto.FLOAT
DOUBLE: ElementType = onnx.TensorProto.DOUBLE
UINT8: ElementType = onnx.TensorProto.UINT8
INT32: ElementType = onnx.TensorProto.INT32


class Builder:
    """Collects the nodes, initialisers and declared shapes of one ONNX graph, each name once."""

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps
        self.nodes: list[Any] = []
        self.initialisers: dict[str, Any] = {}
        self.shapes: dict[str, Any] = {}
        self._batch_size: str | None = None

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        *,
        name: str | None = None,
        shape: Sequence[int] | None = None,
        batch: str = BATCH,
        element: ElementType = FLOAT,
        **attributes: Any,
    ) -> str:
        """Add a node with one output and return the output's name.

        `shape`, where given, is declared as the output's: [`batch`, *shape] of type `element`.
        """
        self.nodes.append(helper.make_node(op, inputs, [output], name=name or output, **attributes))
        if shape is not None:
            self.declare(output, shape, batch, element)
        return output

    def split(self, value: str, outputs: Sequence[str], *, name: str, axis: int) -> list[str]:
        """Add a node that cuts `value` into equal parts along `axis`; returns `outputs`."""
        self.nodes.append(helper.make_node("Split", [value], outputs, name=name, axis=axis, num_outputs=len(outputs)))
        return list(outputs)

    def declare(self, value: str, shape: Sequence[int], batch: str = BATCH, element: ElementType = FLOAT) -> None:
        """Declare the value [`batch`, *shape]; the outputs of the graph declare themselves."""
        if value != LOGITS:
            self.shapes[value] = helper.make_tensor_value_info(value, element, [batch, *shape])

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """The initialiser `name`, shared wherever it is asked for. Raises `DalifError` (FAULT) where the same name
        was given other values before."""
        tensor = numpy_helper.from_array(values, name)
        if self.initialisers.setdefault(name, tensor) != tensor:
            raise DalifError(Code.FAULT, f"initialiser '{name}': two different arrays have this name")
        return name

    def integers(self, *values: int) -> str:
        """A vector of int64, shared wherever the same numbers are needed."""
        return self.constant("integers/" + ",".join(map(str, values)), np.array(values, dtype=np.int64))

    def parameter(self, owner: Node, field: str, values: Array, element: ElementType = FLOAT) -> str:
        """The initialiser `<owner>.<field>`, shared over the timesteps: `values` rounded once, to float32 or
        to `element`.

        Raises `DalifError` (TARGET_CANNOT_HOLD) where a value lies beyond float32's range.
        """
        name = f"{owner.name}.{field}"
        if name not in self.initialisers:
            with np.errstate(over="ignore"):
                rounded = values.astype(helper.tensor_dtype_to_np_dtype(element))
            if not np.isfinite(rounded).all():
                worst = float(np.abs(values).max())
                raise DalifError(
                    Code.TARGET_CANNOT_HOLD,
                    f"node '{owner.name}' ({type(owner).__name__}): {field} reaches {worst:.3g}, beyond float32's "
                    f"largest {np.finfo(np.float32).max:.3g}; rescale the layer",
                )
            self.initialisers[name] = numpy_helper.from_array(rounded, name)
        return name

    def batch_size(self) -> str:
        """The size of the batch, int64 [1], as a value of the graph."""
        if self._batch_size is None:
            self._batch_size = self.node("Shape", [INPUT], f"{INPUT}/batch", start=0, end=1)
        return self._batch_size


class Signal:
    """What one node puts out over time, in the forms that exist so far; the others are made on demand.

    `static`: one value [batch, *shape], the same at every timestep. `stacked`: all timesteps in one value
    [T * batch, *shape], time-major. `steps`: one value [batch, *shape] a timestep, in order; the list may
    still be growing. Exactly one is given. With T = 1 all three are the same value.
    """

    def __init__(
        self,
        builder: Builder,
        name: str,
        shape: tuple[int, ...],
        *,
        static: str | None = None,
        stacked: str | None = None,
        steps: list[str] | None = None,
        element: ElementType = FLOAT,
    ) -> None:
        self.name = name
        self.shape = shape
        self.static = static
        self.element = element
        self._builder = builder
        self._stacked = stacked
        self._steps = steps
        self._zeros: str | None = None

    def append(self, value: str) -> None:
        """Add the value of the next timestep to a signal that was made with `steps`."""
        assert self._steps is not None
        self._steps.append(value)

    def at(self, t: int) -> str:
        """The value of timestep `t`: zeros before step 0."""
        if t < 0:
            return self.zeros()
        if self.static is not None:
            return self.static
        if self._steps is None:
            assert self._stacked is not None
            self._steps = self._split(self._stacked)
        return self._steps[t]

    def stacked(self) -> str:
        """All timesteps in one value, time-major."""
        if self._stacked is None:
            timesteps = self._builder.timesteps
            parts = [self.at(t) for t in range(timesteps)]
            if timesteps == 1:
                self._stacked = parts[0]
            else:
                output = f"{self.name}/{'output' if self.static is None else 'repeated'}"
                self._stacked = self._builder.node(
                    "Concat", parts, output, name=f"{self.name}/stack", shape=self.shape, batch=STACKED_BATCH,
                    element=self.element, axis=0,
                )  # fmt: skip
        return self._stacked

    def zeros(self) -> str:
        """Zeros of this signal's shape, for what a delayed edge delivers before step 0."""
        if self._zeros is None:
            builder = self._builder
            size = builder.node(
                "Concat", [builder.batch_size(), builder.integers(*self.shape)], f"{self.name}/zeros/shape", axis=0
            )
            value = {} if self.element == FLOAT else {"value": helper.make_tensor("", self.element, [1], [0])}
            self._zeros = builder.node(
                "ConstantOfShape", [size], f"{self.name}/zeros", shape=self.shape, element=self.element, **value
            )
        return self._zeros

    def _split(self, stacked: str) -> list[str]:
        timesteps = self._builder.timesteps
        if timesteps == 1:
            return [stacked]
        outputs = [f"{self.name}/t{t}/output" for t in range(timesteps)]
        for output in outputs:
            self._builder.declare(output, self.shape, element=self.element)
        return self._builder.split(stacked, outputs, name=f"{self.name}/split", axis=0)
