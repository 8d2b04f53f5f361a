"""What a .nir file leaves open, and one node on its way into a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dalif_deploy.capturing.nir_in.hdf5 import RawNode
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import Array, Edge, Pair, ThresholdRule, frozen


@dataclass
class Rules:
    """How to read what the format is silent about.

    `dt`: the length of a timestep in seconds, None where nobody said. `reset`, `fires_at`: of all neurons. `said`: what
    was taken or tolerated, by what is said, with the nodes that it holds of.
    """

    dt: float | None
    reset: Literal["hard", "subtract"]
    fires_at: ThresholdRule
    said: dict[str, list[str]] = field(default_factory=dict)

    def say(self, what: str, node: str) -> None:
        """Note `what` of `node`; nodes of which the same is said share a line."""
        self.said.setdefault(what, []).append(node)

    def notes(self) -> tuple[str, ...]:
        """One line for everything that was said."""
        return tuple(
            f"{what}: {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            for what, names in self.said.items()
        )


@dataclass(frozen=True)
class Place:
    """A node on its way into the graph: its fields, the one edge that it reads, and the shape that it reads."""

    raw: RawNode
    source: Edge
    shape: tuple[int, ...]
    rules: Rules

    @property
    def name(self) -> str:
        """The node's name, which the last of the nodes made of it has."""
        return self.raw.name

    def refuse(self, why: str, code: Code = Code.BAD_GRAPH) -> DalifError:
        """An error that names the node."""
        return self.raw.refuse(why, code)

    def dt(self) -> float:
        """The length of a timestep. Raises `DalifError` (AMBIGUOUS) where it is not known."""
        if self.rules.dt is None:
            raise self.refuse(
                "has constants in seconds, and the file does not say how long a timestep is; give --dt SECONDS, such "
                "as 1e-4", Code.AMBIGUOUS,
            )  # fmt: skip
        return self.rules.dt

    def array(self, key: str, default: float | None = None) -> Array:
        """A field as float64. Raises `DalifError`: BAD_GRAPH, NOT_FINITE."""
        if key not in self.raw.fields:
            if default is None:
                raise self.refuse(f"has no {key}")
            return frozen(default)
        try:
            values = frozen(self.raw.fields[key])
        except (TypeError, ValueError) as error:
            raise self.refuse(f"{key} holds no numbers") from error
        if not np.isfinite(values).all():
            raise self.refuse(f"{key} has NaN or infinite values", Code.NOT_FINITE)
        return values

    def parameter(self, key: str, default: float | None = None) -> Array:
        """A field with one value for each element of the input's shape, in as few numbers as say the same: () for one
        value, (C, 1, 1) for one a channel, else all of them."""
        values = self.array(key, default)
        shape = self.shape
        if values.size == 1:
            return frozen(values.reshape(()))
        if values.ndim > len(shape) and values.shape[-len(shape) :] == shape and values.size == np.prod(shape):
            values = frozen(values.reshape(shape))
        fits = values.ndim == len(shape) and all(n in (1, m) for n, m in zip(values.shape, shape, strict=True))
        if not fits:
            raise self.refuse(f"{key} of shape {list(values.shape)} does not fit its input {list(shape)}")
        if np.all(values == values.flat[0]):
            return frozen(values.flat[0])
        first = values.reshape(len(values), -1)[:, :1]
        if len(shape) > 1 and np.all(values.reshape(len(values), -1) == first):
            return frozen(first.reshape(-1, *(1,) * (len(shape) - 1)))
        return values

    def positive(self, key: str) -> Array:
        """A parameter above 0."""
        values = self.parameter(key)
        if np.any(values <= 0.0):
            raise self.refuse(f"{key} = {values.min():g}: a time constant is above 0")
        return values

    def whole(self, key: str, count: int, default: int | None = None) -> tuple[int, ...]:
        """A field of `count` whole numbers; one number stands for all."""
        value: Any = self.raw.fields.get(key, default)
        try:
            numbers = np.broadcast_to(np.asarray(value, dtype=np.float64), (count,))
        except (TypeError, ValueError) as error:
            raise self.refuse(f"{key} = {_shown(value)}, where {count} whole numbers should be") from error
        if not np.all(np.isfinite(numbers)) or np.any(numbers != np.round(numbers)):
            raise self.refuse(f"{key} = {_shown(value)}, where whole numbers should be")
        return tuple(int(number) for number in numbers)

    def pair(self, key: str, default: int | None = None) -> Pair:
        """Two whole numbers."""
        first, second = self.whole(key, 2, default)
        return first, second


def _shown(value: Any) -> str:
    return " ".join(str(value).split())[:60]
