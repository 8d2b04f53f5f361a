"""What inspecting a model or a file finds, as data: its layers, what they cost, and how often they fired."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.cost import Cost, EventDriven, NeuroBenchCounts, NodeOperations, SyopsCounts
from dalif_deploy.encoding import InputSpec
from dalif_deploy.nodes import Array, ResetRule, ThresholdRule

Kind = Literal["model", "nir", "onnx"]
LEAKS: Mapping[str, str] = {
    "decays": "tau = -1 / ln beta, the timesteps to 1/e of a potential without input",
    "never decays": "beta = 1: a potential without input stays",
    "forgets": "beta = 0: nothing is kept from one timestep to the next",
    "alternates": "beta < 0: a potential without input changes its sign at every timestep",
    "grows": "|beta| > 1: a potential without input grows",
    "mixed": "beta is of several of these kinds within the layer",
}
"""What a leak does, in a word, and what the word means; only "decays" has a time constant."""


def leak_of(beta: Array) -> str:
    """One of `LEAKS` for a layer's beta."""
    words = {_leak(float(value)) for value in beta.flat}
    return words.pop() if len(words) == 1 else "mixed"


def _leak(beta: float) -> str:
    if abs(beta) > 1.0:
        return "grows"
    if beta < 0.0:
        return "alternates"
    return {0.0: "forgets", 1.0: "never decays"}.get(beta, "decays")


def time_constant(beta: Array) -> Array | None:
    """tau = -1 / ln beta in timesteps, in the shape of beta; None unless all of it lies between 0 and 1."""
    if leak_of(beta) != "decays":
        return None
    # -1 / ln(1 - ulp) is finite, and the smallest number's is above 0.
    return np.asarray(-1.0 / np.log(beta))


@dataclass(frozen=True, eq=False)
class InspectedLayer:
    """One neuron layer, and the weights before it.

    `shape`: without batch and time. `alpha`, `beta`: as trained. `v_threshold`, `v_reset`: as they stand in the
    graph or file; times `potential_scale` they are in the trained model's units. The parameters broadcast against
    the shape. `feeds`: the nodes whose first neuron layer downstream is this one. `parameters`, `macs`, `acs`: of
    those nodes and the layer itself, None where they are not known; `acs` is a mean over the samples. `rates`: the
    share of neurons that fired at every timestep, [T], or None.
    """

    name: str
    shape: tuple[int, ...]
    alpha: Array
    beta: Array
    v_threshold: Array
    v_reset: Array
    reset: ResetRule
    fires_at: ThresholdRule
    potential_scale: Array
    feeds: tuple[str, ...] | None = None
    parameters: int | None = None
    macs: int | None = None
    acs: int | None = None
    rates: NDArray[np.float64] | None = None

    @property
    def neurons(self) -> int:
        """How many neurons the layer has."""
        return math.prod(self.shape)

    @property
    def rate(self) -> float | None:
        """The share of neuron-steps that fired."""
        return None if self.rates is None else float(self.rates.mean())

    def as_json(self) -> dict[str, Any]:
        """Plain types only."""
        tau = time_constant(self.beta)
        return {
            "name": self.name,
            "shape": list(self.shape),
            "neurons": self.neurons,
            "feeds": None if self.feeds is None else list(self.feeds),
            "parameters": self.parameters,
            "alpha": self.alpha.tolist(),
            "beta": self.beta.tolist(),
            "tau": None if tau is None else tau.tolist(),
            "leak": leak_of(self.beta),
            "v_threshold": self.v_threshold.tolist(),
            "v_reset": self.v_reset.tolist(),
            "reset": self.reset,
            "fires_at": self.fires_at,
            "potential_scale": self.potential_scale.tolist(),
            "rate": self.rate,
            "rates": None if self.rates is None else self.rates.tolist(),
            "macs": self.macs,
            "acs": self.acs,
        }


@dataclass(frozen=True, eq=False)
class Inspection:
    """What was found.

    `source`: the file's name, or what else it is. `kind`: of what was inspected. `readout`: how time is reduced.
    `origin`, `samples`: of the data that the rates and ACs are from, None where there are none. `nodes`: every
    node's operations. `after_layers`: names of the nodes behind the last neuron layer. `cost`: of the graph as it
    is; `folded`, `event_driven`: of the folded graph; `syops`, `neurobench`: those packages' definitions. What is
    None cannot be known from what was given. `file`: what an exported file says of itself. `notes`: one line each.
    """

    source: str
    kind: Kind
    sha256: str | None
    input: InputSpec
    readout: str
    class_names: tuple[str, ...]
    layers: tuple[InspectedLayer, ...]
    params: int | None
    nodes: tuple[NodeOperations, ...] = ()
    after_layers: tuple[str, ...] = ()
    origin: str | None = None
    samples: int | None = None
    cost: Cost | None = None
    folded: Cost | None = None
    event_driven: EventDriven | None = None
    syops: SyopsCounts | None = None
    neurobench: NeuroBenchCounts | None = None
    file: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def vacuous(self) -> tuple[str, ...]:
        """Layers that fired on none or on all of their neuron-steps."""
        return tuple(layer.name for layer in self.layers if layer.rate in (0.0, 1.0))

    def as_json(self) -> dict[str, Any]:
        """Plain types only; docs/cost.md explains every key."""
        folded: dict[str, Any] | None = None
        if self.folded is not None and self.event_driven is not None:
            folded = {**self.folded.as_json(), "event_driven": asdict(self.event_driven)}
        return {
            "source": self.source,
            "kind": self.kind,
            "sha256": self.sha256,
            "timesteps": self.input.timesteps,
            "input": {
                "shape": list(self.input.shape),
                "temporal": self.input.temporal,
                "encoding": self.input.encoding.kind,
            },
            "readout": self.readout,
            "class_names": list(self.class_names),
            "data": None if self.origin is None else {"origin": self.origin, "samples": self.samples},
            "params": self.params,
            "layers": [layer.as_json() for layer in self.layers],
            "nodes": [asdict(node) for node in self.nodes],
            "vacuous": list(self.vacuous),
            "cost": None if self.cost is None else self.cost.as_json(),
            "folded": folded,
            "syops": None if self.syops is None else asdict(self.syops),
            "neurobench": None if self.neurobench is None else asdict(self.neurobench),
            "file": None if self.file is None else dict(self.file),
            "notes": list(self.notes),
        }
