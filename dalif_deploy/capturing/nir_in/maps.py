"""What moves or adds up values without weights: SumPool2d, AvgPool2d, Flatten, and where edges meet."""

from __future__ import annotations

import math

from dalif_deploy.capturing.nir_in.rules import Place
from dalif_deploy.nodes import Add, AvgPool2d, Flatten, Node, Reshape, SumPool2d


def pool(place: Place) -> list[Node]:
    """Windows of kernel_size; an average counts the padding's places, as PyTorch's does unless told otherwise."""
    kind = SumPool2d if place.raw.kind == "SumPool2d" else AvgPool2d
    if len(place.shape) != 3:
        raise place.refuse(f"reads {list(place.shape)}, (channels, height, width) is needed")
    return [
        kind(
            name=place.name, inputs=(place.source,), kernel=place.pair("kernel_size"), stride=place.pair("stride"),
            padding=place.pair("padding", 0),
        )
    ]  # fmt: skip


def flatten(place: Place) -> list[Node]:
    """Axes start_dim to end_dim into one; batch and time are not counted."""
    rank = len(place.shape)
    first, last = place.whole("start_dim", 1, 0)[0], place.whole("end_dim", 1, -1)[0]
    start, end = first % rank if -rank <= first < rank else rank, last % rank if -rank <= last < rank else -1
    if start > end:
        raise place.refuse(f"start_dim {first} and end_dim {last} are no axes of its input {list(place.shape)}")
    if (start, end) == (0, rank - 1):
        return [Flatten(name=place.name, inputs=(place.source,))]
    shape = (*place.shape[:start], math.prod(place.shape[start : end + 1]), *place.shape[end + 1 :])
    return [Reshape(name=place.name, inputs=(place.source,), shape=shape)]


def junction(place: Place) -> list[Node]:
    """The input itself."""
    return [Add(name=place.name, inputs=(place.source,))]
