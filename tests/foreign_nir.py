"""NIR files as other tools write them, made of plain dictionaries with h5py, and an oracle that steps through them.

The oracle is written from the equations of NIR, a node's own state held in its own units, with PyTorch's convolutions
and pools; it knows nothing of graphs, sums, gains or folding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

DT = 1e-3
Spec = dict[str, Any]
Edges = Sequence[tuple[str, str]]


def graph(nodes: Mapping[str, Spec], edges: Edges, metadata: Mapping[str, Any] | None = None) -> Spec:
    """A NIRGraph, to be written or nested."""
    return {"type": "NIRGraph", "nodes": dict(nodes), "edges": list(edges), "metadata": dict(metadata or {})}


def write(path: Path, spec: Spec) -> Path:
    """The .nir file of a graph."""
    with h5py.File(path, "w") as file:
        file["version"] = "0.2.0"
        _write(file.create_group("node"), spec)
    return path


def _write(group: h5py.Group, spec: Spec) -> None:
    for key, value in spec.items():
        if key == "nodes":
            nodes = group.create_group("nodes")
            for name, node in value.items():
                _write(nodes.create_group(name), node)
        elif key == "edges":
            group.create_dataset("edges", data=np.array(value, dtype=object).reshape(-1, 2), dtype=h5py.string_dtype())
        elif key == "metadata":
            if value:
                _write(group.create_group("metadata"), value)
        else:
            group[key] = value


def input_(*shape: int) -> Spec:
    return {"type": "Input", "shape": np.array(shape)}


def output(*shape: int) -> Spec:
    return {"type": "Output", "shape": np.array(shape)}


def affine(rng: np.random.Generator, out: int, into: int, scale: float = 1.0) -> Spec:
    weight = rng.normal(0.0, scale / np.sqrt(into), (out, into))
    return {"type": "Affine", "weight": weight, "bias": rng.normal(0.0, 0.1 * scale, out)}


def lif(shape: tuple[int, ...], **fields: Any) -> Spec:
    defaults = {"tau": 5 * DT, "r": 5.0, "v_leak": 0.0, "v_threshold": 1.0}
    return {"type": "LIF", **{key: np.full(shape, value) for key, value in {**defaults, **fields}.items()}}


def cuba_lif(shape: tuple[int, ...], **fields: Any) -> Spec:
    defaults = {"tau_mem": 8 * DT, "tau_syn": 3 * DT, "r": 6.0, "w_in": 2.0, "v_leak": 0.0, "v_threshold": 1.0}
    return {"type": "CubaLIF", **{key: np.full(shape, value) for key, value in {**defaults, **fields}.items()}}


@dataclass
class Oracle:
    """Steps through flat `nodes`, given in an order in which all that a node hears of the same step is before it.

    `edges`: (source, target); those in `late` deliver the step before, at step 0 nothing. `subtract`, `at`: the rules.
    """

    nodes: Mapping[str, Spec]
    edges: Edges
    late: Edges = ()
    dt: float = DT
    subtract: bool = False
    at: bool = False
    state: dict[str, Any] = field(default_factory=dict)

    def run(self, batch: NDArray[Any]) -> tuple[dict[str, NDArray[np.bool_]], NDArray[Any]]:
        """Spikes [N, T, ...] by firing node, and the outputs of all steps [N, T, ...]."""
        self.state = {}
        fired: dict[str, list[Any]] = {}
        outputs = []
        before: dict[str, Any] = {}
        for t in range(batch.shape[1]):
            values: dict[str, Any] = {}
            for name, node in self.nodes.items():
                if node["type"] == "Input":
                    values[name] = batch[:, t].astype(np.float64)
                    continue
                heard = [before.get(s) if (s, name) in self.late else values[s] for s, n in self.edges if n == name]
                total = sum(value for value in heard if value is not None)
                if node["type"] == "Output":
                    values[name] = total
                    continue
                values[name] = STEPS[node["type"]](self, name, node, np.asarray(total))
                if node["type"] in ("LIF", "IF", "CubaLIF", "Threshold"):
                    fired.setdefault(name, []).append(values[name] != 0.0)
            before = values
            outputs.append(next(values[name] for name, node in self.nodes.items() if node["type"] == "Output"))
        return {name: np.stack(steps, axis=1) for name, steps in fired.items()}, np.stack(outputs, axis=1)

    def held(self, name: str, like: Any) -> Any:
        return self.state.get(name, np.zeros_like(like))

    def beyond(self, value: Any, threshold: Any) -> Any:
        return value >= threshold if self.at else value > threshold

    def fire(self, name: str, node: Spec, v: Any) -> Any:
        spikes = self.beyond(v, node["v_threshold"])
        down = v - node["v_threshold"] if self.subtract else np.broadcast_to(node.get("v_reset", 0.0), v.shape)
        self.state[name] = np.where(spikes, down, v)
        return spikes.astype(np.float64)


def _torch(function: Callable[..., torch.Tensor]) -> Callable[[Oracle, str, Spec, Any], Any]:
    return lambda _oracle, _name, node, x: function(node, torch.from_numpy(x)).numpy()


def _conv(node: Spec, x: torch.Tensor) -> torch.Tensor:
    convolve = F.conv1d if node["type"] == "Conv1d" else F.conv2d
    weight, bias = torch.from_numpy(node["weight"]), torch.from_numpy(node["bias"])
    axes = weight.ndim - 2
    dilation = np.broadcast_to(node["dilation"], (axes,))
    if isinstance(node["padding"], str):
        # As PyTorch documents it; torch.nn.functional itself warns of uneven padding.
        total = dilation * (np.array(weight.shape[2:]) - 1) * (node["padding"] == "same")
        ends = [int(n) for t in reversed(total) for n in (t // 2, t - t // 2)]
        x = F.pad(x, ends)
    else:
        x = F.pad(x, [int(n) for n in reversed(np.broadcast_to(node["padding"], (axes,))) for _ in (0, 1)])
    stride = np.broadcast_to(node["stride"], (axes,)).tolist()
    return convolve(x, weight, bias, stride, 0, dilation.tolist(), int(node["groups"]))


def _numbers(value: Any) -> Any:
    return tuple(int(n) for n in np.atleast_1d(value))


def _pool(node: Spec, x: torch.Tensor) -> torch.Tensor:
    form = {"kernel_size": _numbers(node["kernel_size"]), "stride": _numbers(node["stride"])}
    padding = _numbers(node["padding"])
    if node["type"] == "AvgPool2d":
        return F.avg_pool2d(x, padding=padding, **form)
    return F.avg_pool2d(x, padding=padding, divisor_override=1, **form)


def _lif(oracle: Oracle, name: str, node: Spec, x: Any) -> Any:
    v = oracle.held(name, x)
    return oracle.fire(name, node, v + oracle.dt / node["tau"] * ((node["v_leak"] - v) + node["r"] * x))


def _if(oracle: Oracle, name: str, node: Spec, x: Any) -> Any:
    gain = np.where(node["r"] == 1.0, 1.0, oracle.dt * node["r"])
    return oracle.fire(name, node, oracle.held(name, x) + gain * x)


def _current(oracle: Oracle, name: str, node: Spec, x: Any) -> Any:
    i = oracle.held(f"{name} current", x)
    i = i + oracle.dt / node["tau_syn"] * (-i + node["w_in"] * x)
    oracle.state[f"{name} current"] = i
    return i


def _cuba_step(oracle: Oracle, name: str, node: Spec, x: Any) -> Any:
    v, i = oracle.held(name, x), _current(oracle, name, node, x)
    return v + oracle.dt / node["tau_mem"] * ((node["v_leak"] - v) + node["r"] * i)


def _cuba_lif(oracle: Oracle, name: str, node: Spec, x: Any) -> Any:
    return oracle.fire(name, node, _cuba_step(oracle, name, node, x))


def _cuba_li(oracle: Oracle, name: str, node: Spec, x: Any) -> Any:
    oracle.state[name] = _cuba_step(oracle, name, node, x)
    return oracle.state[name]


def _li(oracle: Oracle, name: str, node: Spec, x: Any) -> Any:
    v = oracle.held(name, x)
    oracle.state[name] = v + oracle.dt / node["tau"] * ((node["v_leak"] - v) + node["r"] * x)
    return oracle.state[name]


def _i(oracle: Oracle, name: str, node: Spec, x: Any) -> Any:
    oracle.state[name] = oracle.held(name, x) + oracle.dt * node["r"] * x
    return oracle.state[name]


def _delay(oracle: Oracle, name: str, node: Spec, x: Any) -> Any:
    past = oracle.state.setdefault(name, [])
    past.append(x)
    out = np.zeros_like(x)
    steps = np.broadcast_to(np.rint(node["delay"] / oracle.dt).astype(int), x.shape[1:])
    for index in np.ndindex(*x.shape[1:]):
        if steps[index] < len(past):
            out[(slice(None), *index)] = past[-1 - steps[index]][(slice(None), *index)]
    return out


def _flatten(_oracle: Oracle, _name: str, node: Spec, x: Any) -> Any:
    rank = x.ndim - 1
    start, end = int(node["start_dim"]) % rank, int(node["end_dim"]) % rank
    return x.reshape(*x.shape[: start + 1], -1, *x.shape[end + 2 :])


STEPS: Mapping[str, Callable[[Oracle, str, Spec, Any], Any]] = {
    "Affine": lambda _o, _n, node, x: x @ node["weight"].T + node["bias"],
    "Linear": lambda _o, _n, node, x: x @ node["weight"].T,
    "Scale": lambda _o, _n, node, x: node["scale"] * x,
    "Conv1d": _torch(_conv),
    "Conv2d": _torch(_conv),
    "SumPool2d": _torch(_pool),
    "AvgPool2d": _torch(_pool),
    "Flatten": _flatten,
    "Threshold": lambda oracle, _n, node, x: oracle.beyond(x, node["threshold"]).astype(np.float64),
    "LIF": _lif,
    "IF": _if,
    "CubaLIF": _cuba_lif,
    "CubaLI": _cuba_li,
    "LI": _li,
    "I": _i,
    "Delay": _delay,
}
