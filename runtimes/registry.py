"""The runtimes by name: the built-in ones, and those that other packages register."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.runtimes.protocol import Runtime

Takes = Literal["training", "folded", "onnx", "nir"]
ENTRY_POINTS = "dalif_deploy.runtimes"


@dataclass(frozen=True)
class RuntimeKind:
    """How to open one runtime.

    `takes`: what `open` is given: the "training" or "folded" SpikingGraph, or the path of an "onnx" or
    "nir" file. `precision`: what it computes in. `update`: its membrane formula, "sum" for beta H + X or
    "decay" for v + k (x - v); `pools`: whether it computes a sum pool as a sum, or as the "mean" times the window's
    size: the bound of its rounding depends on both. `available`: None where it can be
    opened here, else the command that installs what is missing. Other packages register one under the
    entry-point group `dalif_deploy.runtimes`.
    """

    name: str
    takes: Takes
    precision: Literal["float32", "float64"]
    open: Callable[[Any], Runtime]
    available: Callable[[], str | None]
    update: Literal["sum", "decay"] = "sum"
    pools: Literal["sum", "mean"] = "sum"


def _built_in(
    name: str,
    takes: Takes,
    module: str,
    cls: str,
    update: Literal["sum", "decay"] = "sum",
    pools: Literal["sum", "mean"] = "sum",
    **options: Any,
) -> RuntimeKind:
    # Imported when it is opened: torch and the simulators take seconds, and may not be installed.
    path = f"dalif_deploy.runtimes.{module}"

    def open_(source: Any) -> Runtime:
        runtime: Runtime = getattr(import_module(path), cls)(source, **options)
        return runtime

    def available() -> str | None:
        command: str | None = import_module(path).available()
        return command

    return RuntimeKind(name, takes, "float32", open_, available, update, pools)


BUILT_IN: dict[str, RuntimeKind] = {
    kind.name: kind
    for kind in (
        _built_in("torch", "training", "torch", "TorchRuntime", dtype="float32"),
        _built_in("events", "folded", "events", "EventsRuntime", dtype="float32"),
        _built_in("onnxruntime", "onnx", "onnxruntime", "OnnxRuntime"),
        _built_in("norse", "nir", "norse", "NorseRuntime", "decay", "mean"),
        _built_in("spikingjelly", "nir", "spikingjelly", "SpikingJellyRuntime", "decay", "mean"),
        _built_in("snntorch", "nir", "snntorch", "SnnTorchRuntime", "sum", "mean"),
        _built_in("sinabs", "nir", "sinabs", "SinabsRuntime", "sum", "mean"),
    )
}
"""The runtimes of this package, all computing in float32."""


def runtime_kinds() -> dict[str, RuntimeKind]:
    """All runtimes by name; a built-in one is never replaced."""
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    return {**{name: point.load() for name, point in found.items()}, **BUILT_IN}


def runtime_kind(name: str) -> RuntimeKind:
    """The runtime called `name`. Raises `DalifError` (BAD_OPTION)."""
    kinds = runtime_kinds()
    if name not in kinds:
        raise DalifError(Code.BAD_OPTION, f"runtime {name!r}: unknown; there are {', '.join(kinds)}")
    return kinds[name]


def open_runtime(kind: RuntimeKind, source: Any) -> Runtime:
    """Open it on a graph or path. Raises `DalifError` (MISSING_PACKAGE), and what opening raises."""
    if (command := kind.available()) is not None:
        raise DalifError(Code.MISSING_PACKAGE, f"runtime {kind.name}: a package is not installed; run: {command}")
    return kind.open(source)
