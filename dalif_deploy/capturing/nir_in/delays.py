"""Delay: what was there some seconds before, element by element; nothing before that."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.capturing.nir_in.rules import Place
from dalif_deploy.nodes import Add, Edge, Node, Scale, frozen

_NEAR = 1e-6
"""How far a delay, written in seconds, may lie from a whole number of steps: as a share of a step and of itself."""


def steps_of(place: Place) -> NDArray[np.int64]:
    """The delay in steps, of the shape that `Place.parameter` finds. Raises `DalifError` (BAD_GRAPH, AMBIGUOUS)."""
    delay = place.parameter("delay")
    if np.any(delay < 0.0):
        raise place.refuse(f"delay = {delay.min():g} s lies in the future")
    if not delay.any():
        return np.zeros(delay.shape, dtype=np.int64)
    steps = delay / place.dt()
    whole = np.round(steps)
    apart = np.abs(steps - whole) > _NEAR * np.maximum(1.0, whole)
    if np.any(apart):
        raise place.refuse(
            f"delay = {float(delay[apart].flat[0]):g} s is no whole number of timesteps of {place.dt():g} s; give "
            "another --dt",
        )
    return whole.astype(np.int64)


def shortest(place: Place) -> int:
    """The smallest delay in steps, whatever shape it is read with."""
    bare = Place(place.raw, place.source, place.array("delay").shape or (1,), place.rules)
    return int(steps_of(bare).min())


def delay(place: Place) -> list[Node]:
    """One edge for every delay that occurs, and a mask of the elements that have it."""
    steps = steps_of(place)
    distinct = np.unique(steps).tolist()
    if len(distinct) == 1:
        return [Add(name=place.name, inputs=(Edge(place.source.source, place.source.delay + distinct[0]),))]
    parts: list[Node] = [
        Scale(
            name=f"{place.name}.after{count}", inputs=(Edge(place.source.source, place.source.delay + count),),
            factor=frozen(steps == count), offset=frozen(0.0),
        )
        for count in distinct
    ]  # fmt: skip
    return [*parts, Add(name=place.name, inputs=tuple(Edge(part.name) for part in parts))]
