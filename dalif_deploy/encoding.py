"""How numbers in a data file become the module's input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.errors import Code, DalifError

EncodingKind = Literal["real", "uint8", "spikes"]
PerChannel = float | tuple[float, ...]


@dataclass(frozen=True)
class Encoding:
    """The input encoding: module input = (code * scale - mean) / std.

    `kind` is "real" (the module's input is stored as it is), "uint8" (data may hold codes 0..255,
    which become the module's input by the formula above) or "spikes" (data holds 0 and 1).
    `scale` is one number; `mean` and `std` are one number or one a channel (the first feature axis).
    Raises `DalifError` (BAD_OPTION) for an unknown kind, a zero or non-finite scale or std, and for
    a scale, mean or std given with a kind that does not use them.
    """

    kind: EncodingKind = "real"
    scale: float = 1.0
    mean: PerChannel = 0.0
    std: PerChannel = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("real", "uint8", "spikes"):
            raise DalifError(Code.BAD_OPTION, f"encoding kind {self.kind!r}: give 'real', 'uint8' or 'spikes'")
        try:
            for name in ("mean", "std"):
                value = getattr(self, name)
                fixed = float(value) if np.ndim(value) == 0 else tuple(float(v) for v in value)
                object.__setattr__(self, name, fixed)
            object.__setattr__(self, "scale", float(self.scale))
        except (TypeError, ValueError) as error:
            raise DalifError(
                Code.BAD_OPTION, f"encoding: scale is a number, mean and std are one or one a channel ({error})"
            ) from error
        numbers = [self.scale, *_as_tuple(self.mean), *_as_tuple(self.std)]
        if not all(math.isfinite(number) for number in numbers):
            raise DalifError(Code.BAD_OPTION, "encoding: scale, mean and std must be finite numbers")
        if self.scale == 0.0 or 0.0 in _as_tuple(self.std):
            raise DalifError(Code.BAD_OPTION, "encoding: scale and std must not be zero")
        if self.kind != "uint8" and (self.scale, self.mean, self.std) != (1.0, 0.0, 1.0):
            raise DalifError(
                Code.BAD_OPTION,
                f"encoding kind {self.kind!r} takes no scale, mean or std: the data already is the module's "
                "input; use kind='uint8' for codes",
            )

    def module_input(self, batch: NDArray[np.generic], *, feature_axis: int) -> NDArray[np.float32]:
        """What the trained module takes, float32, from a batch of data.

        `batch` has shape [N, ...] or [N, T, ...]; `feature_axis` is the axis of the channels.
        A uint8 batch holds codes where kind is "uint8"; any other batch already is the module's
        input and is only converted to float32. Raises `DalifError` (BAD_DATA, NOT_FINITE).
        """
        if batch.dtype == np.uint8 and self.kind == "uint8":
            shape = [1] * batch.ndim

            def spread(value: PerChannel) -> NDArray[np.float64]:
                if isinstance(value, float):
                    return np.asarray(value)
                if batch.shape[feature_axis] != len(value):
                    raise DalifError(
                        Code.WRONG_SHAPE,
                        f"encoding: {len(value)} mean or std values for {batch.shape[feature_axis]} channels",
                    )
                shape[feature_axis] = len(value)
                return np.asarray(value).reshape(shape)

            codes = batch.astype(np.float64)
            return _as_float32((codes * self.scale - spread(self.mean)) / spread(self.std))
        if batch.dtype.kind in "iu" and self.kind == "real":
            raise DalifError(
                Code.BAD_DATA,
                f"data of type {batch.dtype}, but the model was saved with real-valued input; "
                "convert to float32, or save the model with Encoding(kind='uint8')",
            )
        if batch.dtype.kind not in "biuf":
            raise DalifError(Code.BAD_DATA, f"data of type {batch.dtype}: numbers are needed")
        inputs = _as_float32(batch)
        if self.kind == "spikes" and not np.isin(inputs, (0.0, 1.0)).all():
            raise DalifError(Code.BAD_DATA, "data: the model takes spikes, so every value must be 0 or 1")
        if self.kind == "uint8" and batch.dtype.kind in "iu":
            raise DalifError(
                Code.BAD_DATA, f"data of type {batch.dtype}: codes must be stored as uint8, module inputs as float32"
            )
        return inputs

    def input_rounding(self, batch: NDArray[np.generic], *, feature_axis: int) -> NDArray[np.float64]:
        """How far `module_input`, float32, lies from (code * scale - mean) / std at the most; the batch's shape.

        0 where no codes are converted.
        """
        if batch.dtype != np.uint8 or self.kind != "uint8" or self == Encoding("uint8"):
            return np.zeros(batch.shape)
        shape = [1] * batch.ndim
        shape[feature_axis] = -1
        mean, std = (np.asarray(_as_tuple(value)).reshape(shape) for value in (self.mean, self.std))
        scaled = batch.astype(np.float64) * self.scale
        narrow = self.module_input(batch, feature_axis=feature_axis).astype(np.float64)
        # Few roundings of float64 to here, and as many where scale, mean and std are folded into weights.
        own = 2.0**-50 * (np.abs(scaled) + np.abs(mean)) / np.abs(std)
        return np.asarray(np.abs(narrow - (scaled - mean) / std) + own)


@dataclass(frozen=True)
class InputSpec:
    """What one network takes: batches of [N, *shape], or of [N, timesteps, *shape] where `temporal`."""

    shape: tuple[int, ...]
    temporal: bool
    timesteps: int
    encoding: Encoding

    def module_input(self, batch: NDArray[np.generic]) -> NDArray[np.float32]:
        """What the trained module takes, float32, of the batch's shape, from data that may hold codes.

        Raises `DalifError` (WRONG_SHAPE, BAD_DATA, NOT_FINITE).
        """
        expected = (self.timesteps, *self.shape) if self.temporal else self.shape
        if batch.ndim != len(expected) + 1 or batch.shape[1:] != expected or len(batch) < 1:
            sizes = ", ".join(str(n) for n in expected)
            meaning = "N samples of T timesteps" if self.temporal else "static, without a time axis"
            raise DalifError(
                Code.WRONG_SHAPE, f"data of shape {list(batch.shape)}: the model takes [N, {sizes}] ({meaning})"
            )
        return self.encoding.module_input(batch, feature_axis=2 if self.temporal else 1)

    def input_rounding(self, batch: NDArray[np.generic]) -> NDArray[np.float64]:
        """How far `module_input` lies from what the codes in `batch` stand for; float64, of the batch's shape."""
        return self.encoding.input_rounding(batch, feature_axis=2 if self.temporal else 1)


def _as_float32(values: NDArray[np.generic]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # it is told as an error, not as a warning
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise DalifError(Code.NOT_FINITE, "data: NaN or infinite values (or beyond float32)")
    return narrow


def _as_tuple(value: PerChannel) -> tuple[float, ...]:
    return (value,) if isinstance(value, float) else tuple(value)
