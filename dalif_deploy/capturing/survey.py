"""All that stands against a module's capture, not only the first thing: the real capture, with offenders isolated.

The capture itself is run. Where it refuses an operation, the refusal is kept and something neutral of the same shape
takes the operation's place, so that the run goes on; a class of neurons that is not known is kept as a finding and
replaced by a known one, and the capture is run again. What cannot be isolated, such as a value that Python reads, ends
the survey; it is then the last finding.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.neuron import DALIF
from dalif_deploy.nodes import Node, Scale

GOES_ON = frozenset({Code.UNSUPPORTED_LAYER, Code.UNKNOWN_NEURON})
"""Refusals of one operation or class; after any other, what follows cannot be judged."""
MOST_RUNS = 64
_PLACE = re.compile(r"^(?:'(?P<path>[^']+)'|the module itself) \((?P<kind>[^)]+)\): ")
_LINE = re.compile(r" \[(?P<where>[^\[\]:]+:\d+): (?P<source>.*?)\](?=; |$)")
_NOT_USER_CODE = (Path(torch.__file__).parent, Path(__file__).parent.parent)


@dataclass(frozen=True)
class Refusal:
    """One thing that stands against the capture.

    `path`: the module's qualified name, "" for the whole; `kind`: its class; `where`: "file:line" of the user's code,
    `source`: that line, where they can be told. `lines`: code to write, where that is the mend.
    """

    path: str
    kind: str
    code: Code
    reason: str
    where: str | None
    source: str | None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Survey:
    """What was found.

    `graph`: of what can be captured, with stand-ins for what was refused; None where the capture ended early.
    `places`: the nodes in it that stand for a refusal, by name.
    """

    refusals: tuple[Refusal, ...]
    graph: SpikingGraph | None
    places: Mapping[str, Refusal]


def survey(module: torch.nn.Module, capture: Callable[[], SpikingGraph]) -> Survey:
    """What stands against `capture()`, which captures `module`; the module is left as it was found.

    Raises `DalifError` where arguments or data are at fault (exit status 2), as `capture` does.
    """
    found: dict[tuple[str, str], Refusal] = {}
    replaced: dict[str, torch.nn.Module] = {}
    graph: SpikingGraph | None = None
    collecting = _Collecting()

    def note(refusals: Iterable[Refusal]) -> None:
        for refusal in refusals:
            found.setdefault((refusal.path, refusal.where or refusal.reason), refusal)

    try:
        for _ in range(MOST_RUNS):
            graph, collecting = None, _Collecting()
            errors = collecting.errors
            try:
                with collecting:
                    graph = capture()
            except DalifError as error:
                if error.code.exit_status == 2:
                    if not (replaced or errors):
                        raise
                    # The module runs as it is; it is the stand-ins that it cannot run with.
                    note(_refusal(error, module) for error in errors)
                    break
                errors.append(error)
            refusals = [_refusal(error, module) for error in errors]
            unknown = _unknown(module, refusals, replaced)
            for path, refusal in unknown.items():
                found.setdefault((path, ""), refusal)
                replaced[path] = _put(module, path, StandIn(module.get_submodule(path)))
            if not unknown:  # else much of the rest follows from it, and what does not will be back
                note(refusals)
                break
    finally:
        for path, original in replaced.items():
            _put(module, path, original)
    places = {refusal.path: refusal for refusal in found.values() if refusal.path in replaced}
    if graph is not None:
        for node in graph.nodes:
            if (refused := collecting.refusal_of(node)) is not None:
                places[node.name] = _refusal(refused, module)
    return Survey(tuple(found.values()), graph, places)


class StandIn(DALIF):
    """A known neuron in the place of one that is not known, and whatever else the user's code asks of it."""

    def __init__(self, original: torch.nn.Module) -> None:
        super().__init__(alpha_init=0.5, beta_init=0.5)
        tensors = [*original.parameters(), *original.buffers()]
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
        if like is not None:
            self.to(device=like.device, dtype=like.dtype)
        vars(self)["_original"] = original

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_original" not in vars(self):  # still being made
                raise
            return getattr(vars(self)["_original"], name)


class _Collecting(TorchFunctionMode):
    """Keeps the refusals of single operations in `errors`, and lets the run go on with something neutral.

    Numbers of its own mark what stands for a refusal, so that it is found again in the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[DalifError] = []
        self._marks: dict[str, tuple[float, DalifError]] = {}

    def refusal_of(self, node: Node) -> DalifError | None:
        """The refusal that a node stands for, or None."""
        values = node.factor if isinstance(node, Scale) else getattr(node, "weight", None)
        if values is None or not values.size:
            return None
        return next((error for mark, error in self._marks.values() if (values == mark).all()), None)

    def _mark(self, error: DalifError) -> float:
        # One message is one place, whichever timestep, recording or form it was met in.
        mark = 2.0**-6 * (1.0 + (len(self._marks) + 1) * 2.0**-10)
        return self._marks.setdefault(error.message, (mark, error))[0]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except DalifError as error:
            if error.code not in GOES_ON:
                raise
            subject = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)), None)
            with _disable_current_modes():
                copies, keywords = tree_map_only(torch.Tensor, lambda x: x.detach().clone(), (args, dict(kwargs)))
                result = func(*copies, **keywords)
            if subject is None or not isinstance(result, torch.Tensor):
                raise
            try:
                neutral = _neutral(subject, tuple(result.shape), self._mark(error))
            except DalifError:
                raise error from None
            if neutral is None:
                raise
            self.errors.append(error)
            name = getattr(func, "__name__", "")
            return subject.copy_(neutral) if name.endswith("_") and not name.endswith("__") else neutral


def _neutral(x: torch.Tensor, shape: tuple[int, ...], mark: float) -> torch.Tensor | None:
    """Something that a capture takes, from `x` to a tensor of `shape`, by `mark`; None where there is none."""
    if tuple(x.shape) == shape:
        return x * mark
    if not shape or shape[0] != x.shape[0]:
        return None
    if len(shape) == 2:
        flat = x if x.ndim == 2 else torch.flatten(x, 1)
        return torch.nn.functional.linear(flat, torch.full((shape[1], flat.shape[1]), mark, dtype=x.dtype))
    if len(shape) != 4 or x.ndim != 4:
        return None
    grow = [max(0, (out - size + 1) // 2) for out, size in zip(shape[2:], x.shape[2:], strict=True)]
    weight = torch.full((shape[1], x.shape[1], 1, 1), mark, dtype=x.dtype)
    x = torch.nn.functional.conv2d(x, weight, padding=grow)
    window = [size - out + 1 for out, size in zip(shape[2:], x.shape[2:], strict=True)]
    return x if window == [1, 1] else torch.nn.functional.avg_pool2d(x, window, 1)


def _refusal(error: DalifError, module: torch.nn.Module) -> Refusal:
    text = error.message
    where, source = None, None
    if (line := _LINE.search(text)) is not None:
        where, source, text = line["where"], line["source"], text[: line.start()] + text[line.end() :]
    path, kind = "", type(module).__name__
    if (place := _PLACE.match(text)) is not None:
        path, kind, text = place["path"] or "", place["kind"], text[place.end() :]
    lines = tuple(getattr(error, "lines", ()))
    return Refusal(path, kind, error.code, text, where or _where(module, path), source, lines)


def _where(module: torch.nn.Module, path: str) -> str | None:
    """Where the forward of the module at `path` is written, or the outermost one's where that is not the user's."""
    for name in dict.fromkeys((path, "")):
        try:
            forward = type(module.get_submodule(name)).forward
            file = Path(inspect.getsourcefile(forward) or "")
            line = inspect.getsourcelines(forward)[1]
        except (AttributeError, TypeError, OSError):
            continue
        if not any(file.is_relative_to(folder) for folder in _NOT_USER_CODE):
            return f"{file.name}:{line}"
    return None


def _unknown(
    module: torch.nn.Module, refusals: list[Refusal], replaced: Mapping[str, torch.nn.Module]
) -> dict[str, Refusal]:
    """By path, what is said of the neurons that are not known, and of all others of their classes."""
    unknown: dict[str, Refusal] = {}
    for refusal in refusals:
        if refusal.code is not Code.UNKNOWN_NEURON and not refusal.lines:
            continue
        if not refusal.path or refusal.path in replaced:
            continue
        try:
            cls = type(module.get_submodule(refusal.path))
        except AttributeError:
            continue
        for path, child in module.named_modules():
            if type(child) is cls and path not in replaced:
                unknown.setdefault(path, replace(refusal, path=path))
    # What stands inside a neuron is part of it.
    return {path: refusal for path, refusal in unknown.items() if not any(_inside(path, other) for other in unknown)}


def _inside(path: str, outer: str) -> bool:
    return path.startswith(f"{outer}.")


def _put(module: torch.nn.Module, path: str, child: torch.nn.Module) -> torch.nn.Module:
    """Put `child` at `path`; returns what stood there."""
    parent, _, name = path.rpartition(".")
    holder = module.get_submodule(parent)
    before = holder._modules[name]
    assert before is not None
    holder._modules[name] = child
    return before
