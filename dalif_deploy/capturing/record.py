"""One concrete run of a module, watched at the level of ATen, with the neurons as leaves.

Everything that depends on the input becomes an `Op`; what does not is a constant. Nothing is assumed about
module classes: functional operations, overridden forwards and in-place additions all arrive here the same.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dalif_deploy.capturing.state import Fingerprint, fingerprint, same_state
from dalif_deploy.capturing.unknown import with_registration
from dalif_deploy.capturing.values import UNWRITTEN, Const, Op, Site, Table, Val
from dalif_deploy.errors import Code, DalifError

_HERE = str(Path(__file__).parent)
_NOT_USER_CODE = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parent.parent))


Interpreter = Callable[..., None]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what happens to tracked tensors while it is active and `watching` the module.

    `neurons`: the leaf modules by layer name. `interpret`: what an operation means, called with this recorder,
    the operation, its arguments as they were before it, its result and what it wrote in place. `calls` counts
    the calls of each neuron, `heard` their nodes per call.
    Raises `DalifError` out of the module's forward for anything that cannot be captured.
    """

    def __init__(self, module: torch.nn.Module, neurons: Mapping[str, torch.nn.Module], interpret: Interpreter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        named = [*module.named_parameters(), *module.named_buffers()]
        self.table = Table(iter(named))
        self.heard: dict[str, list[Op]] = {name: [] for name in neurons}
        self._neurons = neurons
        self._interpret = interpret
        self._states: dict[str, Fingerprint] = {}
        self._names = {id(child): name for name, child in module.named_modules()}
        self._root = module
        self._running: list[torch.nn.Module] = []
        self._values: dict[int, tuple[torch.Tensor, Val, int]] = {}
        self._written: list[int] = []
        self._inside_neuron: str | None = None
        self.buffers = Buffers(self)

    # -- tracking ------------------------------------------------------------------------------------------

    def track(self, tensor: torch.Tensor, val: Val) -> None:
        """From now on `tensor` is `val`."""
        # The reference keeps the id from being taken by another tensor. The version is final only after the
        # dispatch has returned, so it is read again at the next one.
        self._values[id(tensor)] = (tensor, val, tensor._version)
        self._written.append(id(tensor))

    def val(self, tensor: object) -> Val | None:
        """What a tensor is, or None for a constant."""
        entry = self._values.get(id(tensor))
        if entry is None:
            return None
        if entry[0]._version != entry[2]:
            raise self.refuse(
                Code.CAPTURE_REFUSED,
                "a tensor is read after it was written in place through a view or inside a neuron; write out of place",
            )
        return entry[1]

    def tracked(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` depends on the input."""
        return id(tensor) in self._values

    def _settle(self) -> None:
        for key in self._written:
            tensor, val, _ = self._values[key]
            self._values[key] = (tensor, val, tensor._version)
        self._written.clear()

    # -- where we are --------------------------------------------------------------------------------------

    def site(self) -> Site:
        """The innermost running module and the user's line of code."""
        module = self._running[-1] if self._running else self._root
        path = self._names.get(id(module), "")
        return Site(path, type(module).__name__, next(module.children(), None) is None, _user_line())

    def refuse(self, code: Code, why: str) -> DalifError:
        """An error that names the place first."""
        site = self.site()
        return DalifError(code, f"{site}: {why}" + (f" [{site.line}]" if site.line else ""))

    # -- the run -------------------------------------------------------------------------------------------

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Neurons are leaves and the running module is known inside; all is undone afterwards."""

        def entered(module: torch.nn.Module, _: Any) -> None:
            self._running.append(module)

        def left(module: torch.nn.Module, _: Any, __: Any) -> None:
            if self._running:
                self._running.pop()

        handles = [
            torch_module.register_module_forward_pre_hook(entered),
            torch_module.register_module_forward_hook(left, always_call=True),
        ]
        try:
            with intercepted(self._neurons, self._neuron_called), self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._settle()
        if torch.is_inference_mode_enabled():
            raise self.refuse(Code.CAPTURE_REFUSED, "uses inference_mode, which hides what is written; use no_grad")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise self.refuse(
                Code.CAPTURE_REFUSED,
                f"draws random numbers in forward ({func.overloadpacket}), so no file could fire the same spikes; "
                "call eval(), or encode the input outside the module",
            )
        if self._inside_neuron is not None:
            return func(*args, **kwargs)
        tracked = any(id(leaf) in self._values for leaf in tree_leaves((args, kwargs)))
        if not tracked:
            out = func(*args, **kwargs)
            self.buffers.selected(func, args, out)
            return out
        target = None
        before = args
        if func._schema.is_mutable and str(func.overloadpacket).endswith("_"):
            target = args[0]
            if id(target) not in self._values:  # a constant that is about to be overwritten
                before = (target.clone(), *args[1:])
        out = func(*args, **kwargs)
        try:
            self._interpret(self, func, before, kwargs, out, target)
        except DalifError as error:
            operation = str(func.overloadpacket).removeprefix("aten.")
            running = tuple(module for module in self._running if module is not self._root)
            told = with_registration(error, running, self.tracked, operation)
            if told is error:
                raise
            raise told from None
        self.buffers.selected(func, args, out)
        return out

    def _neuron_called(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._settle()
        module = self._neurons[name]
        call = len(self.heard[name])
        where = f"'{name}' ({type(module).__name__})"
        vals = [val for val in map(self.val, tree_leaves((args, kwargs))) if val is not None]
        if not vals:
            raise DalifError(Code.CAPTURE_REFUSED, f"{where}: its input does not depend on the network's input")
        if len(vals) > 1:
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"{where}: takes {len(vals)} tensors computed from the input; explicit state, spk, mem = lif(x, mem), "
                "is not captured yet: keep the state inside the module (a wrapper whose forward takes the input only)",
            )
        val = vals[0]
        if val.d is not None:
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"{where}: receives all timesteps in one tensor; layouts with a time axis (TB, BT) are not captured "
                "yet: write forward as one step, or as a loop over time that calls the neuron once a step",
            )
        if call and not same_state(self._states[name], fingerprint(module)):
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"{where}: its state is reset or changed between its calls {call} and {call + 1}; reset it only before "
                "the first timestep",
            )
        # A neuron must not see its own call as an operation; what it does inside is its reader's business.
        self._inside_neuron = name
        try:
            out = forward(*args, **kwargs)
        finally:
            self._inside_neuron = None
        self._states[name] = fingerprint(module)
        if not isinstance(out, torch.Tensor):
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"{where}: returns a {type(out).__name__}; explicit state (spk, mem = lif(x, mem)) is not captured "
                "yet: keep the state inside the module and return the spikes only",
            )
        node = val.node
        if tuple(out.shape[1:]) != node.shape:
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"{where}: takes {list(node.shape)} and returns {list(out.shape[1:])} (without batch); a neuron layer "
                "keeps the shape of its input",
            )
        site = Site(name, type(module).__name__, True, _user_line())
        fired = self.table.op("neuron", node.shape, site, (node,), (), (name, call))
        self.heard[name].append(fired)
        if any(out is leaf for leaf in tree_leaves((args, kwargs))):
            raise DalifError(Code.CAPTURE_REFUSED, f"{where}: writes its spikes into its input; return a new tensor")
        self.track(out, Val((fired,)))
        return out

    def const(self, tensor: torch.Tensor) -> Const:
        """The constant an untracked tensor holds."""
        return self.table.const(tensor)


class Buffers:
    """Tensors made before the loop, of which every timestep writes one entry: `buffer[t] = value`."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._selections: dict[int, tuple[torch.Tensor, torch.Tensor, int, int]] = {}
        self._entries: dict[int, tuple[torch.Tensor, int, dict[int, Op]]] = {}

    def selected(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        """`out` may be `args[0][..., index, ...]`; remember whose entry it is."""
        if func is not torch.ops.aten.select.int:
            return
        base, dim, index = args
        if self._recorder.tracked(base) and id(base) not in self._entries:
            return
        dim, index = dim % base.ndim, index % base.shape[dim % base.ndim]
        self._selections[id(out)] = (out, base, dim, index)

    def written(self, target: torch.Tensor, node: Op) -> bool:
        """Whether `target` is an entry of a buffer, which now holds `node`."""
        if id(target) not in self._selections:
            return False
        _, base, dim, index = self._selections[id(target)]
        if dim > 1 or tuple(target.shape[1:]) != node.shape:
            return False
        _, at, entries = self._entries.setdefault(id(base), (base, dim, {}))
        if at != dim:
            return False
        entries[index] = node
        site = self._recorder.site()
        gap = self._recorder.table.op(UNWRITTEN, node.shape, site)
        nodes = tuple(entries.get(i, gap) for i in range(base.shape[dim]))
        self._recorder.track(base, Val(nodes, dim))
        return True


@contextmanager
def intercepted(
    neurons: Mapping[str, torch.nn.Module],
    called: Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any],
) -> Iterator[None]:
    """Every call of a neuron goes to `called(name, forward, args, kwargs)` instead of its forward."""

    def divert(name: str, module: torch.nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def diverted(*args: Any, **kwargs: Any) -> Any:
            return called(name, forward, args, kwargs)

        return diverted

    own = {name: vars(module).get("forward") for name, module in neurons.items()}
    try:
        for name, module in neurons.items():
            vars(module)["forward"] = divert(name, module)
        yield
    finally:
        for name, module in neurons.items():
            if own[name] is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own[name]


def _user_line() -> str | None:
    """The innermost line of the user's forward, "file:line: source"."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if filename.startswith(_HERE) and frame.f_code.co_name == "drive":
            return None  # past the module: what follows is whoever asked for the capture
        if not filename.startswith(_NOT_USER_CODE) and not filename.startswith("<"):
            source = linecache.getline(filename, frame.f_lineno).strip()
            return f"{Path(filename).name}:{frame.f_lineno}: {source}" if source else None
        frame = frame.f_back
    return None
