"""What an exported file holds beside what the model exports to now: how differences are told, and the metadata.

The formats compare their own objects (`Format.compare`) and describe what they find in these terms.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dalif_deploy import __version__

Part = Literal["file", "opset", "input", "output", "value", "node", "edge", "tensor", "metadata"]
Arrays = Mapping[str, NDArray[np.generic]]

TOOL = f"dalif_deploy {__version__}"
"""What the metadata entry "tool" says of a file that this version wrote."""
ORIGIN = frozenset({"tool", "source_sha256"})
"""Metadata entries that say where a file comes from; they decide nothing."""
READ_IF_THERE = frozenset({"precision", "certificate", "channels_last", "dialect", "dt"})
"""Metadata entries that only some files have, and that are acted on wherever they are."""
LONGEST_SHOWN = 60


@dataclass(frozen=True)
class ContentDifference:
    """One thing in a file that is not what an export of the model has. `part`: what kind of thing; `name`: which;
    `problem`: one phrase, what it is and what it should be.

    `structural`: it belongs to a file that as a whole is built otherwise than the export (nodes are missing or not
    expected, or another version wrote it), and may mean the same."""

    part: Part
    name: str
    problem: str
    structural: bool = False

    def as_json(self) -> dict[str, Any]:
        """Plain types only."""
        return dict(vars(self))

    def __str__(self) -> str:
        return f"{self.part} '{self.name}' {self.problem}" if self.name else f"{self.part}: {self.problem}"


@dataclass(frozen=True, eq=False)
class Compared:
    """A file's object beside the one that it should be.

    `expected`, `found`: the parameters, by the export's names, paired by what they are used for, to be compared value
    by value. `differences`: everything else that is not the same, in the export's order.
    """

    expected: Arrays
    found: Arrays
    differences: tuple[ContentDifference, ...] = field(default=())


def written_by_another(metadata: Mapping[str, str]) -> str | None:
    """What wrote the file, if it says that it was not this version."""
    tool = metadata.get("tool", TOOL)
    return None if tool == TOOL else tool


def compare_metadata(expected: Mapping[str, str], found: Mapping[str, str]) -> Iterator[ContentDifference]:
    """The entries of `found` that are not those of `expected`, JSON by what it says. Where a file comes from is not
    compared, nor are entries that nobody reads. The log of a file that another version wrote is structural: its
    words may have changed."""
    for key in sorted(expected.keys() - ORIGIN):
        structural = key == "fold_log" and written_by_another(found) is not None
        if key not in found:
            yield ContentDifference(
                "metadata", key, f"is missing, should be {shown(_parsed(expected[key]))}", structural
            )
        else:
            for place, problem in _unequal(_parsed(expected[key]), _parsed(found[key])):
                yield ContentDifference("metadata", f"{key}{place}", problem, structural)
    for key in sorted((found.keys() & READ_IF_THERE) - expected.keys()):
        yield ContentDifference("metadata", key, f"is {shown(_parsed(found[key]))}, should not be there")


def shown(value: Any) -> str:
    """A value in one short phrase."""
    text = " ".join((value if isinstance(value, str) else json.dumps(value, default=str)).split())
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _unequal(expected: Any, found: Any) -> Iterator[tuple[str, str]]:
    """Where two values of JSON differ, and how."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in dict.fromkeys([*expected, *found]):
            if key not in found:
                yield f".{key}", f"is missing, should be {shown(expected[key])}"
            elif key not in expected:
                yield f".{key}", f"is {shown(found[key])}, should not be there"
            else:
                for place, problem in _unequal(expected[key], found[key]):
                    yield f".{key}{place}", problem
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for number, (want, have) in enumerate(zip(expected, found, strict=True)):
            name = want.get("name", number) if isinstance(want, dict) else number
            for place, problem in _unequal(want, have):
                yield f"[{name}]{place}", problem
    elif expected != found or isinstance(expected, bool) is not isinstance(found, bool):
        yield "", f"is {shown(found)}, should be {shown(expected)}"
