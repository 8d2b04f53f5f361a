"""What goes into a file: the folded graph as it is, or snapped so that all of its sums are exact."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from dalif_deploy.equivalence import Arithmetic, Grids
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.registry import Format
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import frozen
from dalif_deploy.passes import exact_form, snap
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.protocol import Runtime

Precision = Literal["float32", "exact", "exact64"]


@dataclass(frozen=True, eq=False)
class Content:
    """What a file of some precision holds.

    `graph`: the graph that is written. `judged`: the same before its weights were snapped, whose replay judges
    the file. `grids`: what they were snapped to, or None. `notes`: one line for each layer's form. `extra`: what
    the exporter is given besides. `two_slices`: as in `content_of`.
    """

    precision: Precision
    graph: SpikingGraph
    judged: SpikingGraph
    grids: Grids | None = None
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    two_slices: bool = False

    def object(self, format_: Format, **options: Any) -> Any:
        """The format's own object. Raises what the exporter raises."""
        return format_.export(self.graph, **self.extra, **options)

    def arithmetic(self, otherwise: Arithmetic) -> Arithmetic:
        """How a runtime computes this content, where it computes float32 content as `otherwise` says."""
        if self.grids is None:
            return otherwise
        return Arithmetic("float64" if self.precision == "exact64" else "float32", "sum", self.grids)

    def definition(self) -> Runtime | None:
        """NumPy's evaluation of the exact sums, with which every runtime must agree bit for bit."""
        if self.precision == "float32":
            return None
        dtype: Literal["float32", "float64"] = "float64" if self.precision == "exact64" else "float32"
        return EventsRuntime(self.graph, dtype=dtype, arithmetic=self.precision)


def content_of(folded: SpikingGraph, precision: str, *, two_slices: bool = False) -> Content:
    """The content of a file of `precision` "float32", "exact" or "exact64", from a folded graph.

    `two_slices`: that of a format which writes every exact sum as two float32 slices (`Format.two_slices`).
    Raises `DalifError`: BAD_OPTION for another precision; TARGET_CANNOT_HOLD for what has no exact form.
    """
    if precision == "float32":
        return Content("float32", folded, folded)
    if precision not in ("exact", "exact64"):
        raise DalifError(Code.BAD_OPTION, f"--precision {precision}: give {', '.join(get_args(Precision))}")
    exact: Literal["exact", "exact64"] = "exact" if precision == "exact" else "exact64"
    judged = exact_form(folded)
    snapped, lattices = snap(judged, exact, two_slices=two_slices)
    spacing = {name: frozen(np.exp2(-lattice.exponents.astype(np.float64))) for name, lattice in lattices.items()}
    notes = tuple(f"{name}: {lattice.form}" for name, lattice in lattices.items())
    extra = {"precision": exact, "lattices": lattices}
    return Content(exact, snapped, judged, Grids(spacing), notes, extra, two_slices)
