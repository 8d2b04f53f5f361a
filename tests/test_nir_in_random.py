"""Random NIR graphs of all kinds on vectors, with sums, cycles and delays, read and run as the equations say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dalif_deploy.capturing.nir_in.reading import Answers, ForeignNir, read_foreign_nir
from dalif_deploy.deploy import LoadOptions, export
from dalif_deploy.equivalence import simulate
from dalif_deploy.passes import fold
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.torch import TorchRuntime
from tests.foreign_nir import DT, STEPS, Oracle, Spec, affine, graph, input_, output, write

T = 12
VECTOR_KINDS = sorted(STEPS.keys() - {"Conv1d", "Conv2d", "SumPool2d", "AvgPool2d", "Flatten"})
STATEFUL = ("LIF", "IF", "LI", "I", "CubaLIF", "CubaLI")
CARRIED_TWICE = [119, 435, 446]
"""Two gains that folding takes through the same sum, one after the other."""


def random_node(rng: np.random.Generator, kind: str, size: int) -> Spec:
    def between(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, size)

    def membrane() -> Spec:
        return {"r": between(-2, 6), "v_leak": between(-0.4, 0.4)}

    def firing() -> Spec:
        return {"v_threshold": between(0.1, 1.2), "v_reset": between(-0.3, 0.3)}

    cuba = {"tau_mem": between(1.2, 6) * DT, "tau_syn": between(1, 4) * DT, "w_in": between(-1, 3)}
    makes = {
        "Affine": lambda: affine(rng, size, size, 2.0),
        "Linear": lambda: {"weight": rng.normal(0.0, 1.0, (size, size))},
        "Scale": lambda: {"scale": rng.normal(0.0, 1.0, size)},
        "Threshold": lambda: {"threshold": between(-0.5, 0.8)},
        "Delay": lambda: {"delay": rng.integers(0, 3, size if rng.random() < 0.5 else 1) * DT + np.zeros(size)},
        "LIF": lambda: {"tau": between(1.2, 6) * DT, **membrane(), **firing()},
        "IF": lambda: {"r": rng.choice([1.0, 300.0, -500.0], size), **firing()},
        "LI": lambda: {"tau": between(1.2, 6) * DT, **membrane()},
        "I": lambda: {"r": between(-300, 300)},
        "CubaLIF": lambda: {**cuba, **membrane(), **firing()},
        "CubaLI": lambda: {**cuba, **membrane()},
    }
    return {"type": kind, **makes[kind]()}


def random_net(seed: int) -> tuple[dict[str, Spec], list[tuple[str, str]]]:
    """Up to 8 nodes, each hearing one or two before it, and up to two edges back to nodes that hold a state."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 5))
    names = [f"n{i}" for i in range(int(rng.integers(3, 9)))]
    nodes: dict[str, Spec] = {"input": input_(size)}
    edges: list[tuple[str, str]] = []
    for i, name in enumerate(names):
        nodes[name] = random_node(rng, str(rng.choice(VECTOR_KINDS)), size)
        before = ["input", *names[:i]]
        count = min(len(before), int(rng.integers(1, 3)))
        edges += [(str(source), name) for source in rng.choice(before, size=count, replace=False)]
    for _ in range(int(rng.integers(0, 3))):
        source = int(rng.integers(0, len(names)))
        edge = names[source], names[int(rng.integers(0, source + 1))]
        if edge not in edges and nodes[edge[1]]["type"] in STATEFUL:
            edges.append(edge)
    nodes["output"] = output(size)
    edges.append((names[-1], "output"))
    return nodes, [edges[i] for i in rng.permutation(len(edges))]


def oracle_of(found: ForeignNir, nodes: dict[str, Spec], edges: list[tuple[str, str]]) -> Oracle | None:
    """The oracle on what the output hears, with the edges late that the reading says; None where a Delay that lets some
    elements through at once closes a cycle that is none for the others."""
    late = [
        (note.split("'")[3], note.split("'")[1]) for note in found.notes if note.startswith("recurrence")
    ]  # fmt: skip
    silent = {name for note in found.notes if note.startswith("left out") for name in note.split(": ")[1].split(", ")}
    heard = {name: node for name, node in nodes.items() if name not in silent}
    kept = [edge for edge in edges if not silent & set(edge)]
    order: dict[str, Spec] = {}
    while len(order) < len(heard):
        now = (name for name in heard if name not in order)
        ready = [n for n in now if all(a in order for a, b in kept if b == n and (a, b) not in late)]
        if not ready:
            return None
        order[ready[0]] = heard[ready[0]]
    return Oracle(order, kept, late)


@pytest.mark.parametrize("seed", [*range(20), *CARRIED_TWICE])
def test_a_random_graph_does_what_the_equations_say(seed: int, tmp_path: Path) -> None:
    nodes, edges = random_net(seed)
    path = write(tmp_path / "net.nir", graph(nodes, edges))
    found = read_foreign_nir(path, Answers(dt=DT, timesteps=T))
    oracle = oracle_of(found, nodes, edges)
    if oracle is None:
        pytest.fail("the oracle cannot order this graph; take another seed")
    data = np.random.default_rng(seed).random((2, T, *nodes["input"]["shape"]), dtype=np.float32)
    spikes, outputs = oracle.run(data)
    folded = fold(found.graph)
    recordings = [
        simulate(found.graph, data), simulate(folded, data), TorchRuntime(found.graph).run(data),
        EventsRuntime(folded, dtype="float64").run(data),
    ]  # fmt: skip
    for recording in recordings:
        assert recording.spikes.keys() == spikes.keys()
        for name, expected in spikes.items():
            assert np.array_equal(recording.spikes[name].unpack(), expected), name
        np.testing.assert_allclose(recording.logits, outputs.sum(axis=1), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("seed", range(30, 36))
def test_a_random_graph_is_the_same_in_onnx(seed: int, tmp_path: Path) -> None:
    nodes, edges = random_net(seed)
    path = write(tmp_path / "net.nir", graph(nodes, edges))
    data = np.random.default_rng(seed).random((2, T, *nodes["input"]["shape"]), dtype=np.float32)
    options = LoadOptions(dt=DT, timesteps=T)
    made = export(path, tmp_path / "net.onnx", to="onnx", options=options, data=data)
    assert str(made.verdict and made.verdict.outcome) in ("exact", "rounding")
