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
from typing import Any, Literal

import torch
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dalif_deploy.capturing.calls import NeuronCalls
from dalif_deploy.capturing.unknown import with_registration
from dalif_deploy.capturing.values import UNWRITTEN, Const, Op, Place, Site, Table, Val
from dalif_deploy.errors import Code, DalifError

_HERE = str(Path(__file__).parent)
_NOT_USER_CODE = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parent.parent))


Interpreter = Callable[..., None]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what happens to tracked tensors while it is active and `watching` the module.

    `neurons`: the leaf modules by name, `memoryless` those of them that forget. `interpret`: what an operation
    means, called with this recorder, the operation, its arguments as they were before it, its result and what it
    wrote in place. `batch`, `timesteps`: of this recording; `whole`: whether one forward is all timesteps.
    `progress`: how many operations the longest forward had. `orders`: how time and batch were seen to lie in
    tensors that layers and neurons took whole.
    Raises `DalifError` out of the module's forward for anything that cannot be captured.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        neurons: Mapping[str, torch.nn.Module],
        interpret: Interpreter,
        *,
        batch: int,
        timesteps: int,
        whole: bool,
        memoryless: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        named = [*module.named_parameters(), *module.named_buffers()]
        self.table = Table(iter(named))
        self.batch, self.timesteps, self.whole = batch, timesteps, whole
        self.progress = self._operations = 0
        self.orders: list[Literal["TB", "BT"]] = []
        names = frozenset(name for name, _ in module.named_modules())
        self.neurons = NeuronCalls(self, neurons, memoryless, names)
        self._neurons = neurons
        self._interpret = interpret
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
            if module is self._root:
                self._operations = 0

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
        self._operations += 1
        self.progress = max(self.progress, self._operations)
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
        if self._inside_neuron is not None:
            return forward(*args, **kwargs)
        # A neuron must not see its own call as an operation; what it does inside is its reader's business.
        self._inside_neuron = name
        try:
            return self.neurons.called(name, forward, args, kwargs)
        finally:
            self._inside_neuron = None

    def saw(self, place: Place) -> None:
        """Time lies there in a tensor that a layer or a neuron takes whole."""
        if place.order not in self.orders:
            self.orders.append(place.order)

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

    def written(self, target: torch.Tensor, val: Val | None) -> bool:
        """Whether `target` is an entry of a buffer, which now holds `val`."""
        if id(target) not in self._selections or val is None or val.d is not None:
            return False
        node = val.node
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
    """The innermost line of the user's code, "file:line: source"; an installed package's where there is no other."""
    frame: FrameType | None = sys._getframe(1)
    installed: str | None = None
    while frame is not None:
        filename = frame.f_code.co_filename
        if filename.startswith(_HERE) and frame.f_code.co_name == "drive":
            break  # past the module: what follows is whoever asked for the capture
        if not filename.startswith(_NOT_USER_CODE) and not filename.startswith("<"):
            source = linecache.getline(filename, frame.f_lineno).strip()
            line = f"{Path(filename).name}:{frame.f_lineno}: {source}" if source else None
            if f"{os.sep}site-packages{os.sep}" not in filename:
                return line
            installed = installed or line
        frame = frame.f_back
    return installed
