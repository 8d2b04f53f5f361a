"""Calls of neurons: which layer and timestep a call is, and how its state went from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_flatten_with_path, tree_leaves

from dalif_deploy.capturing.probe import check_axes
from dalif_deploy.capturing.state import Fingerprint, fingerprint, same_state
from dalif_deploy.capturing.values import Op, Place, Site, Table, Val
from dalif_deploy.errors import Code, DalifError


class Watcher(Protocol):
    """The recording that neurons are called in."""

    table: Table
    batch: int
    timesteps: int
    whole: bool

    def val(self, tensor: object) -> Val | None:
        """What a tensor is, or None for a constant."""

    def track(self, tensor: torch.Tensor, val: Val) -> None:
        """From now on `tensor` is `val`."""

    def saw(self, place: Place) -> None:
        """Time lies there in a tensor that is taken whole."""

    def site(self) -> Site:
        """Where in the user's model we are."""


@dataclass(frozen=True)
class NeuronCall:
    """One call of a neuron module, as every run repeats it.

    `layer`: the neuron layer it belongs to; `t`: its timestep, or None where it is all of them, which then lie
    where `place` says. `current`, `spikes`: which leaf of the arguments is the input, which of the result the spikes.
    """

    layer: str
    t: int | None
    place: Place | None
    current: int
    spikes: int


_ONE_INPUT = (
    "one is its input, and the others must be the states that this layer returned at the timestep before, as they are"
)


class WrongForm(DalifError):
    """A layer was not called once for every timestep: the module is not driven as it is written."""


class NeuronCalls:
    """Sorts the calls of neuron modules into layers of T timesteps each.

    A module that holds its state itself is one layer. State that is passed (spk, mem = lif(x, mem)) tells layers
    apart: each chain of states is one. So does a call with all timesteps that leaves nothing behind.
    `heard`: by layer, its nodes; `schedule`: by module, its calls in order; `modules`: by layer, the module.
    """

    def __init__(
        self,
        recorder: Watcher,
        neurons: Mapping[str, torch.nn.Module],
        memoryless: frozenset[str],
        names: frozenset[str],
    ) -> None:
        self.heard: dict[str, list[Op]] = {}
        self.schedule: dict[str, list[NeuronCall]] = {name: [] for name in neurons}
        self.modules: dict[str, str] = {}
        self._recorder, self._neurons, self._memoryless, self._names = recorder, neurons, memoryless, names
        self._held: dict[str, Fingerprint] = {}
        self._keeps: dict[str, str] = {}
        self._paths: dict[str, Any] = {}
        self._handed: dict[str, set[int]] = {}

    def where(self, layer: str) -> str:
        """The layer and its class, for messages."""
        module = self._neurons[self.modules.get(layer, layer)]
        return f"'{layer}' ({type(module).__name__})"

    def called(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the neuron's forward, which nobody watches, and record what it stands for."""
        recorder, module = self._recorder, self._neurons[name]
        leaves = tree_leaves((args, kwargs))
        current, states = self._operands(name, (args, kwargs))
        val = recorder.val(leaves[current])
        assert val is not None
        if val.d is not None and len(val.nodes) == 1 and recorder.timesteps > 1:
            shape = list(val.node.shape)
            if val.d != 1:
                raise self._refuse(name, "receives a tensor with an axis in front of the batch")
            shape.insert(0, 1)
            val = Val((recorder.table.op("reshape", tuple(shape), recorder.site(), val.nodes, (), (tuple(shape),)),))
        if val.d is not None and not recorder.whole:
            error = self._refuse(name, "receives several timesteps in one call of a forward that is one timestep")
            raise WrongForm(error.code, error.message)
        if not self.schedule[name]:
            memory = name not in self._memoryless
            check_axes(
                self.where(name), module, forward, (args, kwargs), current, val, memory=memory, line=_line(recorder)
            )
        before = fingerprint(module)
        out = forward(*args, **kwargs)
        after = fingerprint(module)
        results = tree_leaves(out)
        spikes = self._spikes(name, leaves[current], results)
        explicit = len(results) > 1
        layer = self._layer(name, val, states, leaves, current, explicit, before, after)
        self._held[name] = after
        self._check_out(layer, leaves, results[spikes], leaves[current])
        if val.place is not None:
            recorder.saw(val.place)
        fired = []
        for t, node in enumerate(val.nodes, start=len(self.heard[layer])):
            site = Site(name, type(module).__name__, True, _line(recorder))
            fired.append(recorder.table.op("neuron", node.shape, site, (node,), (), (layer, t)))
        first = len(self.heard[layer])
        self.heard[layer] += fired
        timed = val.d is not None
        self.schedule[name].append(NeuronCall(layer, None if timed else first, val.place, current, spikes))
        self._track_states(layer, fired[-1], results, after, leaves[current])
        recorder.track(results[spikes], Val(tuple(fired), val.d, val.fold))
        handed = [recorder.val(out) for out in results]
        self._handed[layer] = {id(node) for out in handed if out is not None for node in out.nodes[-1:]}
        return out

    def check(self, timesteps: int) -> None:
        """Raises `DalifError` (CAPTURE_REFUSED) where a layer was not called for every timestep."""
        for layer, nodes in self.heard.items():
            if len(nodes) == timesteps:
                continue
            name = self.modules[layer]
            others = [other for other, module in self.modules.items() if module == name]
            line = f" [{nodes[0].site.line}]" if nodes[0].site.line else ""
            if len(others) > 1 and all(len(self.heard[other]) == 1 for other in others):
                raise DalifError(
                    Code.CAPTURE_REFUSED,
                    f"{self.where(name)}: starts from a fresh state in each of its {len(others)} calls; pass the state "
                    f"that one timestep returns to the next{line}",
                )
            raise WrongForm(
                Code.CAPTURE_REFUSED,
                f"{self.where(layer)}: called {len(nodes)} times for timesteps={timesteps}; a neuron is called once "
                "per timestep, and one that is used at several places shares its state between them: give each its own"
                + line,
            )

    def _operands(self, name: str, arguments: Any) -> tuple[int, list[Op]]:
        """Which leaf of the arguments is the input, and what the others are that depend on the network's input."""
        paths = tree_flatten_with_path(arguments)[0]
        vals = [(i, path, val) for i, (path, leaf) in enumerate(paths) if (val := self._recorder.val(leaf)) is not None]
        inputs = [i for i, path, _ in vals if path == self._paths.get(name)]
        if not inputs:  # the first call has no states yet
            inputs = [i for i, _, _ in vals]
        if not inputs:
            raise self._refuse(name, "its input does not depend on the network's input")
        if len(inputs) > 1:
            raise self._refuse(name, f"takes {len(inputs)} tensors computed from the input; {_ONE_INPUT}")
        self._paths.setdefault(name, paths[inputs[0]][0])
        others = [val for i, _, val in vals if i != inputs[0]]
        if any(val.d is not None for val in others):
            raise self._refuse(name, f"takes {len(vals)} tensors computed from the input; {_ONE_INPUT}")
        return inputs[0], [val.node for val in others]

    def _spikes(self, name: str, x: torch.Tensor, results: list[Any]) -> int:
        """Which of the results are the spikes: the first, or where that holds other values than 0 and 1 the only
        one that does not."""
        known = self.schedule[name]
        if known:
            return known[0].spikes
        tensors = [i for i, out in enumerate(results) if isinstance(out, torch.Tensor)]
        if not tensors:
            raise self._refuse(name, "returns no tensor; a neuron layer returns spikes")
        binary = [
            i for i in tensors if results[i].shape == x.shape and bool(((results[i] == 0) | (results[i] == 1)).all())
        ]
        return binary[0] if tensors[0] not in binary and len(binary) == 1 else tensors[0]

    def _layer(
        self, name: str, val: Val, states: list[Op], leaves: list[Any], current: int, explicit: bool,
        before: Fingerprint, after: Fingerprint,
    ) -> str:  # fmt: skip
        """The layer that this call belongs to."""
        if states:
            for layer, module in self.modules.items():
                if module == name and all(id(state) in self._handed[layer] for state in states):
                    return layer
            raise self._refuse(name, f"takes {len(states) + 1} tensors computed from the input; {_ONE_INPUT}")
        given = self._fresh_states(name, leaves, current)
        keeps = not same_state(before, after)
        known = self._keeps.get(name)
        if known is None or (explicit and (given or not keeps)):
            return self._new(name, keeps=keeps)
        if val.d is not None:
            if keeps:
                raise self._refuse(
                    name, "is called again with all timesteps while it holds the state of its call before; give each "
                    "place a neuron of its own"
                )  # fmt: skip
            return self._new(name, keeps=False)
        if not same_state(self._held[name], before):
            calls = len(self.schedule[name])
            raise self._refuse(
                name,
                f"its state is reset or changed between its calls {calls} and {calls + 1}; reset it only before "
                "the first timestep",
            )
        return known

    def _fresh_states(self, name: str, leaves: list[Any], current: int) -> bool:
        """Whether a state is passed that starts the layer anew; it must be zero."""
        like = leaves[current]
        states = [
            leaf
            for i, leaf in enumerate(leaves)
            if i != current
            and isinstance(leaf, torch.Tensor)
            and not isinstance(leaf, torch.nn.Parameter)
            and (leaf.shape == like.shape or not leaf.numel() or leaf.ndim == 0)
        ]
        if any(bool((state != 0).any()) for state in states if state.shape == like.shape):
            raise self._refuse(name, "starts from a state that is not zero")
        return bool(states)

    def _new(self, name: str, *, keeps: bool) -> str:
        layer, number = name, 2
        while layer in self.heard or (layer != name and layer in self._names):
            layer, number = f"{name}_{number}", number + 1
        self.heard[layer] = []
        self.modules[layer] = name
        self._keeps.setdefault(name, layer)
        return layer

    def _check_out(self, layer: str, leaves: list[Any], out: torch.Tensor, x: torch.Tensor) -> None:
        if out.shape != x.shape:
            raise self._refuse(
                layer,
                f"takes {list(x.shape[1:])} and returns {list(out.shape[1:])} (without batch); a neuron layer "
                "keeps the shape of its input",
            )
        if any(out is leaf for leaf in leaves):
            raise self._refuse(layer, "writes its spikes into its input; return a new tensor")

    def _track_states(self, layer: str, last: Op, results: list[Any], held: Fingerprint, x: torch.Tensor) -> None:
        """Whoever reads a potential shall be told so; a state handed back is recognised by it."""
        keyed = [(key, value) for key, value, _ in held if isinstance(value, torch.Tensor) and value.shape == x.shape]
        keyed += [(f"result {i}", out) for i, out in enumerate(results) if isinstance(out, torch.Tensor)]
        t = last.attrs[1]
        for key, tensor in keyed:
            if tensor is not x and tensor.ndim and tensor.shape[0] == self._recorder.batch:
                attrs = (layer, key, t)
                state = self._recorder.table.op("state", tuple(tensor.shape[1:]), last.site, (last,), (), attrs)
                self._recorder.track(tensor, Val((state,)))

    def _refuse(self, layer: str, why: str) -> DalifError:
        line = _line(self._recorder)
        return DalifError(Code.CAPTURE_REFUSED, f"{self.where(layer)}: {why}" + (f" [{line}]" if line else ""))


def _line(recorder: Watcher) -> str | None:
    return recorder.site().line
