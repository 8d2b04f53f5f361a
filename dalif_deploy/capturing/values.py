"""What a recorded run is made of: constants, hash-consed nodes, and tracked tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from dalif_deploy.nodes import Array, frozen

UNWRITTEN = "unwritten"
"""The kind of an operation that stands for a timestep of a buffer which nothing has written yet."""


@dataclass(frozen=True)
class Site:
    """Where in the user's model an operation happened.

    `path`: the qualified name of the innermost running module ("" for the root); `kind`: its class;
    `leaf`: whether it has no submodules; `line`: the user's code, "file:line: source", where known.
    """

    path: str
    kind: str
    leaf: bool
    line: str | None = None

    def __str__(self) -> str:
        return f"'{self.path}' ({self.kind})" if self.path else f"the module itself ({self.kind})"


@dataclass(frozen=True, eq=False)
class Const:
    """A tensor that does not depend on the input. `key` identifies it: a parameter by place, else by content.

    `name`: the qualified name of the parameter or buffer, or None.
    """

    key: str
    tensor: torch.Tensor
    name: str | None = None

    def array(self) -> Array:
        """The values, float64; exact for what torch holds in float32."""
        return frozen(self.tensor.detach().to(device="cpu", dtype=torch.float64).numpy())


@dataclass(frozen=True, eq=False)
class Op:
    """One operation on feature maps: `kind` with `inputs`, `consts` and `attrs`; `shape` without batch.

    Kinds: input (attrs: the timestep or None), neuron (attrs: layer, timestep), state (attrs: layer, which,
    timestep: a potential that left its neuron), conv, linear, batch_norm, affine (consts: factor, offset), add,
    pad (attrs: left, right, top, bottom; in front of a conv only), reshape, avg_pool, max_pool, sum_pool, concat,
    zeros, mean_of, sum_of, max_of, and "unsupported" for a second output that nobody should read.
    """

    kind: str
    shape: tuple[int, ...]
    site: Site
    inputs: tuple[Op, ...] = ()
    consts: tuple[Const | None, ...] = ()
    attrs: tuple[Any, ...] = ()
    key: tuple[Any, ...] = field(default=(), repr=False)


Fold = Literal["", "TB", "BT"]
"""How time lies in dimension 0 beside the batch: not at all, step by step (T * B) or sample by sample (B * T)."""


@dataclass(frozen=True)
class Place:
    """Where a tensor holds its timesteps: in dimension `d` of their own, or folded into the batch (`d` = 0)."""

    d: int
    fold: Fold = ""

    def step(self, tensor: torch.Tensor, t: int, timesteps: int) -> torch.Tensor:
        """Timestep `t` of the tensor, [B, ...] (a view)."""
        if self.fold == "TB":
            batch = tensor.shape[0] // timesteps
            return tensor[t * batch : (t + 1) * batch]
        return tensor[t::timesteps] if self.fold == "BT" else tensor.select(self.d, t)

    def whole(self, steps: torch.Tensor) -> torch.Tensor:
        """The tensor that holds `steps`, [T, B, ...], in this place."""
        if self.fold == "TB":
            return steps.flatten(0, 1)
        return steps.transpose(0, 1).flatten(0, 1) if self.fold == "BT" else steps.movedim(0, self.d)

    @property
    def order(self) -> Literal["TB", "BT"]:
        """Whether time or the batch comes first."""
        return self.fold or ("TB" if self.d == 0 else "BT")


@dataclass(frozen=True)
class Val:
    """A tracked tensor. Untimed: one node, `d` is None, the tensor is [batch, *node.shape].

    Timed: `nodes` are its timesteps, and they lie where `Place(d, fold)` says; without its time the tensor is
    [batch, *node.shape]. One node with a `d` is an axis of one entry that may become a time axis.
    """

    nodes: tuple[Op, ...]
    d: int | None = None
    fold: Fold = ""

    @property
    def place(self) -> Place | None:
        """Where the timesteps lie, None for an untimed value."""
        return None if self.d is None else Place(self.d, self.fold)

    @property
    def axis(self) -> int | None:
        """The dimension that is time and nothing else, or None."""
        return None if self.fold else self.d

    @property
    def node(self) -> Op:
        """The node of an untimed value."""
        (node,) = self.nodes
        return node


class Table:
    """Hash-consed nodes and constants of one recording, by what they compute."""

    def __init__(self, parameters: Iterator[tuple[str, torch.Tensor]]) -> None:
        self._nodes: dict[tuple[Any, ...], Op] = {}
        self._storages: dict[int, tuple[str, torch.Tensor, int]] = {}
        self._seen: dict[int, tuple[torch.Tensor, int, Const]] = {}
        for name, tensor in parameters:
            if tensor.numel():
                self._storages[tensor.untyped_storage().data_ptr()] = (name, tensor, tensor._version)

    def __len__(self) -> int:
        return len(self._nodes)

    def op(
        self,
        kind: str,
        shape: tuple[int, ...],
        site: Site,
        inputs: tuple[Op, ...] = (),
        consts: tuple[Const | None, ...] = (),
        attrs: tuple[Any, ...] = (),
    ) -> Op:
        """The node that computes this; an earlier one if there is one."""
        key = (kind, tuple(id(x) for x in inputs), tuple(c and c.key for c in consts), attrs)
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = Op(kind, shape, site, inputs, consts, attrs, key)
        return node

    def const(self, tensor: torch.Tensor) -> Const:
        """The constant that an untracked tensor holds."""
        known = self._seen.get(id(tensor))
        if known is not None and known[1] == tensor._version:
            return known[2]
        const = self._identify(tensor)
        self._seen[id(tensor)] = (tensor, tensor._version, const)
        return const

    def _identify(self, tensor: torch.Tensor) -> Const:
        # Large weights are not hashed: a view of a parameter that nobody wrote is known by its place.
        owner = self._storages.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
        if owner is not None and owner[1]._version == owner[2] and tensor.dtype == owner[1].dtype:
            place = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
            whole = tensor.shape == owner[1].shape and tensor.stride() == owner[1].stride()
            return Const(f"{owner[0]} {place}", tensor.detach(), owner[0] if whole else None)
        return self.array_const(tensor.detach().to(device="cpu", dtype=torch.float64).numpy())

    def array_const(self, values: Any) -> Const:
        """A constant of these numbers, float64."""
        array = np.array(values, dtype=np.float64, order="C")
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        return Const(f"{array.shape} {digest}", torch.from_numpy(array))
