"""Values of an exact ONNX graph as they lie in memory, and at which moments they are read.

Spikes are float32 where float32 convolutions read them and uint8 where int8 planes do; feature maps have their
channels first or, for planes, last. What is asked for in another form is converted once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.exporters.onnx_builder import (
    BATCH,
    DOUBLE,
    FLOAT,
    INT32,
    STACKED_BATCH,
    UINT8,
    Builder,
    ElementType,
    Signal,
)

Shape = tuple[int, ...]

NAMES = {FLOAT: "float32", DOUBLE: "float64", UINT8: "uint8", INT32: "int32"}


@dataclass(frozen=True)
class Form:
    """An element type, and whether a feature map's channels come last."""

    element: ElementType
    channels_last: bool = False


MAPS = Form(FLOAT)
"""float32, channels first: what ONNX's own operators on feature maps take."""


def lying(shape: Shape, channels_last: bool) -> Shape:
    """The shape of a value of `shape` = (channels, ...) as it lies in memory."""
    return (*shape[1:], shape[0]) if channels_last else shape


def constant_lying(values: NDArray[np.generic], rank: int, channels_last: bool) -> NDArray[np.generic]:
    """`values`, which broadcast against a feature shape of `rank` axes, so that they do as it lies in memory."""
    if not values.ndim or not channels_last:
        return values
    return np.moveaxis(values.reshape((1,) * (rank - values.ndim) + values.shape), 0, -1)


class Moment:
    """When a node is written: at timestep `t`, or (None) for all timesteps in one, or once if `static`."""

    def __init__(self, timesteps: int, *, t: int | None = None, static: bool = False) -> None:
        self.t = t
        self.static = static
        self.batch = BATCH if static or t is not None or timesteps == 1 else STACKED_BATCH

    def prefix(self, name: str) -> str:
        """How the values of node `name` are called that are made now."""
        return name if self.t is None else f"{name}/t{self.t}"

    def read(self, signal: Signal, delay: int = 0) -> str:
        """The value of `signal` now."""
        if self.t is not None:
            return signal.at(self.t - delay)
        return signal.at(0) if self.static else signal.stacked()

    def signal(self, builder: Builder, name: str, shape: Shape, element: ElementType, value: str) -> Signal:
        """A signal that begins with `value`, made now; later timesteps are appended."""
        if self.t is not None:
            return Signal(builder, name, shape, steps=[value], element=element)
        static, stacked = (value, None) if self.static else (None, value)
        return Signal(builder, name, shape, static=static, stacked=stacked, element=element)


class Value:
    """What one node puts out over time, in every form that is asked for.

    `shape`: (channels, ...); `form`: how `signal` lies; `growing`: its timesteps are still being written.
    """

    def __init__(self, builder: Builder, signal: Signal, shape: Shape, form: Form, *, growing: bool = False) -> None:
        self.signal = signal
        self.shape = shape
        self.form = form
        self.growing = growing
        self._builder = builder
        self._signals: dict[Form, Signal] = {form: signal}
        self._converted: dict[tuple[str, Form], str] = {}

    @property
    def static(self) -> bool:
        """Whether the value is the same at every timestep."""
        return self.signal.static is not None

    def read(self, moment: Moment, form: Form, delay: int = 0) -> str:
        """The value now, in `form`."""
        form = self._possible(form)
        if self.growing:
            return self._convert(moment.read(self.signal, delay), form, moment.batch)
        return moment.read(self.in_form(form), delay)

    def in_form(self, form: Form) -> Signal:
        """The whole signal in `form`; not for one that is still growing."""
        form = self._possible(form)
        if form not in self._signals:
            moment = Moment(self._builder.timesteps, static=self.static)
            value = self._convert(moment.read(self.signal), form, moment.batch)
            shape = lying(self.shape, form.channels_last)
            # Named apart from the signal itself, whose timesteps may be cut out as well.
            self._signals[form] = moment.signal(
                self._builder, f"{self.signal.name}/{_label(self.form, form)}", shape, form.element, value
            )
        return self._signals[form]

    def _possible(self, form: Form) -> Form:
        return form if len(self.shape) > 1 else Form(form.element)

    def _convert(self, value: str, form: Form, batch: str) -> str:
        if form == self.form:
            return value
        if (value, form) not in self._converted:
            self._converted[value, form] = self._write(value, form, batch)
        return self._converted[value, form]

    def _write(self, value: str, form: Form, batch: str) -> str:
        cast = Form(form.element, self.form.channels_last)
        moved = Form(self.form.element, form.channels_last)
        if form in (cast, moved):
            return self._write_one(value, self.form, form, f"{value}/{_label(self.form, form)}", batch)
        # Both: moving bytes is cheaper than moving floats.
        between = cast if form.element == UINT8 else moved
        first = self._convert(value, between, batch)
        return self._write_one(first, between, form, f"{value}/{_label(self.form, form)}", batch)

    def _write_one(self, value: str, have: Form, want: Form, output: str, batch: str) -> str:
        node, shape = self._builder.node, lying(self.shape, want.channels_last)
        if have.element != want.element:
            return node("Cast", [value], output, shape=shape, batch=batch, element=want.element, to=want.element)
        rank = 1 + len(self.shape)
        perm = [0, *range(2, rank), 1] if want.channels_last else [0, rank - 1, *range(1, rank - 1)]
        return node("Transpose", [value], output, shape=shape, batch=batch, element=want.element, perm=perm)


def _label(have: Form, want: Form) -> str:
    parts = [NAMES[want.element]] if want.element != have.element else []
    if want.channels_last != have.channels_last:
        parts.append("channels_last" if want.channels_last else "channels_first")
    return "_".join(parts)
