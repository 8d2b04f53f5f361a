"""Every term of the error bound is needed: for each there is a float32 evaluation that comes near the whole bound.

The evaluations are adversarial: their numbers are chosen so that nearly every operation rounds by half a unit in
the last place, and all in one direction. A term that were left out would be exceeded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy.equivalence.membrane import MembraneError, Update
from dalif_deploy.equivalence.rounding import node_error
from dalif_deploy.nodes import Add, AvgPool2d, Edge, Linear, Neuron, Node, SumPool2d, TensorKind, TensorType, frozen
from dalif_deploy.operators import evaluate

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

HALF_UP = 0.999 * 2.0**-24
"""What a float32 program makes of 1 + x, for x a little more than half a unit in the last place of 1: 1 + 2^-23."""
UP = 2.0**-23 - HALF_UP


def bound_of(node: Node, inputs: list[F64], kind: TensorKind = "real") -> tuple[F64, F64]:
    """The exact value of a node without errors in its inputs, and the bound on a float32 evaluation of it."""
    value = evaluate(node, inputs)
    types = [TensorType(x.shape[1:], True, kind, 1 if kind == "spike" else None) for x in inputs]
    bound = node_error(node, inputs, [np.zeros_like(x) for x in inputs], types, value)
    assert bound is not None
    return value, bound


def one_and_halves(count: int) -> F32:
    """1, then numbers each of which takes the running sum up by half a unit in the last place more than it is."""
    return np.array([1.0, *[UP] * (count - 1)], np.float32)


def added(terms: F32) -> np.float32:
    total = np.float32(0.0)
    for term in terms.ravel():
        total = np.float32(total + term)
    return total


def share(found: Any, value: F64, bound: F64) -> float:
    """The largest |found - value| / bound, which is at most 1."""
    ratio = float((np.abs(np.asarray(found, np.float64) - value) / bound).max())
    assert ratio <= 1.0
    return ratio


# ---- sums


@pytest.mark.parametrize("terms", [2, 3, 12, 400])
def test_additions_of_weights(terms: int) -> None:
    """n - 1 additions, each off by u; the weights themselves, and not more than one rounding, are in the bound too."""
    weight = one_and_halves(terms)
    node = Linear(name="fc", inputs=(Edge("x"),), weight=frozen(weight[None]))
    value, bound = bound_of(node, [np.ones((1, terms))], "spike")
    assert share(added(weight), value, bound) > 0.98 * (terms - 1) / terms


def test_weights_are_rounded_once() -> None:
    node = Linear(name="fc", inputs=(Edge("x"),), weight=frozen([[1.0 + HALF_UP]]))
    value, bound = bound_of(node, [np.ones((1, 1))], "spike")
    assert share(np.float32(1.0 + HALF_UP), value, bound) > 0.98


def test_products_are_rounded_too() -> None:
    """Of real inputs; the largest over many of w and x a little more than 1, w rounded by nearly u."""
    rng = np.random.default_rng(0)
    x = (1.0 + rng.uniform(0.0, 2.0**-9, (20_000, 1))).astype(np.float32)
    exact = 1.0 + 2.0**-10 + HALF_UP
    value, bound = bound_of(Linear(name="fc", inputs=(Edge("x"),), weight=frozen([[exact]])), [x.astype(np.float64)])
    assert share(np.float32(exact) * x, value, bound) > 0.95


@pytest.mark.parametrize("branches", [2, 3, 12])
def test_sums_of_branches(branches: int) -> None:
    terms = one_and_halves(branches)
    node = Add(name="add", inputs=tuple(Edge(f"x{i}") for i in range(branches)))
    value, bound = bound_of(node, [np.full((1, 1), term) for term in terms.astype(np.float64)])
    assert share(added(terms), value, bound) > 0.98


@pytest.mark.parametrize("kind", [SumPool2d, AvgPool2d])
def test_pools_of_real_values(kind: type[SumPool2d] | type[AvgPool2d]) -> None:
    terms = one_and_halves(9)
    node = kind(name="pool", inputs=(Edge("x"),), kernel=(3, 3), stride=(3, 3))
    value, bound = bound_of(node, [terms.astype(np.float64).reshape(1, 1, 3, 3)])
    total = added(terms)
    assert share(total if kind is SumPool2d else total / np.float32(9.0), value, bound) > 0.6


@pytest.mark.parametrize("by", ["division", "reciprocal"])
def test_an_average_of_spikes_is_a_division(by: str) -> None:
    counts = np.arange(50, dtype=np.float32)
    spikes = (np.arange(49) < counts[:, None]).astype(np.float64).reshape(-1, 1, 7, 7)
    node = AvgPool2d(name="pool", inputs=(Edge("x"),), kernel=(7, 7), stride=(7, 7))
    value, bound = bound_of(node, [spikes], "spike")
    size = np.float32(49.0)
    found = counts / size if by == "division" else counts * (np.float32(1.0) / size)
    with np.errstate(invalid="ignore"):  # no spikes: 0 / 49 is exact
        found, value, bound = found[1:], value.ravel()[1:], bound.ravel()[1:]
    assert share(found, value, bound) > 0.2


def test_what_is_flushed_to_zero() -> None:
    """Hardware that has no subnormal numbers: every product below the normal range is 0. The other half of the bound is
    for weights that are flushed when they are read."""
    terms = 9
    node = Linear(name="fc", inputs=(Edge("x"),), weight=frozen(np.full((1, terms), 0.99 * 2.0**-126)))
    value, bound = bound_of(node, [np.ones((1, terms))], "spike")
    assert share(0.0, value, bound) > 0.45


# ---- membranes


def adversary(
    neuron: Neuron, update: Update, step: Callable[[F32, F32], F32], draw: Callable[[np.random.Generator, int], F64],
    *, steps: int, fires: bool = False,
) -> float:  # fmt: skip
    """The largest share of the bound that is reached, where each timestep's X is the one of many that errs most.

    `step`: V of H and X, in float32; `draw`: exact X of a timestep; `fires`: a spike at every step, or at none.
    """
    rng = np.random.default_rng(1)
    error = MembraneError(neuron, update)
    beta, threshold = float(neuron.beta), float(neuron.v_threshold)
    exact = held = 0.0
    largest = 0.0
    for t in range(steps):
        x = draw(rng, t).astype(np.float32)
        found = step(np.full(x.shape, held, np.float32), x)
        wide = x.astype(np.float64)
        bound = error.integrate(np.array(exact), wide, np.array(0.0), beta * exact + wide)
        wide += beta * exact
        largest = max(largest, share(found, wide, bound))
        if fires:
            found, wide = found - np.float32(threshold), wide - threshold
        worst = int(
            np.argmax(step(found, np.zeros_like(x)) - beta * wide)
        )  # what is left of the error at the next step
        exact, held = float(wide[worst]), float(found[worst])
        error.reset(np.array(fires), bound[worst], np.array(exact))
    return largest


def just_above(size: float, width: float = 0.02) -> Callable[[np.random.Generator, int], F64]:
    """Numbers from `size` on, of which a float32 is off by nearly u."""
    return lambda rng, t: rng.uniform(size, size * (1.0 + width), 50_000)


BETA = float(np.float32(0.5 + 2.0**-13)) - 0.98 * 2.0**-25
"""Rounded up by nearly u of itself, and no power of two, so that its products round."""


def test_the_leak_and_the_sum() -> None:
    """beta is rounded, beta H is, and so is its sum with X."""
    neuron = Neuron(name="sn", inputs=(Edge("x"),), alpha=frozen(1.0), beta=frozen(BETA), v_threshold=frozen(9.0))
    beta = np.float32(BETA)

    def draw(rng: np.random.Generator, t: int) -> F64:
        return rng.uniform(2.0, 2.02, 50_000) if t == 0 else rng.uniform(0.99, 1.03, 50_000)

    assert adversary(neuron, "sum", lambda h, x: beta * h + x, draw, steps=12) > 0.85


def test_the_reset_that_subtracts() -> None:
    """V - v_th is rounded, and v_th was."""
    beta = np.float32(0.99)
    threshold = 0.25 + 2.0**-22 - 2.0**-25 + 0.98 * 2.0**-26
    neuron = Neuron(
        name="sn", inputs=(Edge("x"),), alpha=frozen(1.0), beta=frozen(float(beta)), v_threshold=frozen(threshold),
        reset="subtract",
    )  # fmt: skip

    def draw(rng: np.random.Generator, t: int) -> F64:
        return rng.uniform(4.28, 4.3, 50_000) if t == 0 else rng.uniform(0.288, 0.292, 50_000)

    assert adversary(neuron, "sum", lambda h, x: beta * h + x, draw, steps=24, fires=True) > 0.7


DECAY = {
    "v + k (x - v)": lambda k: lambda v, x: v + k * (x - v),
    "v - k v + k x": lambda k: lambda v, x: v - k * v + k * x,
}


@pytest.mark.parametrize("form", DECAY)
@pytest.mark.parametrize("beta", [2.0**-12, 0.01, 0.1])
def test_the_formula_that_decays(form: str, beta: float) -> None:
    """Where beta H + X nearly cancels, and k (x - v) does not: the first step leaves H, the second takes it away."""
    neuron = Neuron(name="sn", inputs=(Edge("x"),), alpha=frozen(1.0), beta=frozen(beta), v_threshold=frozen(9.0))
    unit = 1.0 - beta
    k = np.float32(1e-4) * (np.float32(1.0) / np.float32(1e-4 / unit))
    v_of = DECAY[form](k)

    def step(held: F32, x: F32) -> F32:
        v = (np.float64(unit) * held).astype(np.float32)
        return (v_of(v, x).astype(np.float64) / unit).astype(np.float32)

    def draw(rng: np.random.Generator, t: int) -> F64:
        return rng.uniform(1.0, 1.05, 50_000) * (1.0 if t % 2 == 0 else -beta)

    assert adversary(neuron, "decay", step, draw, steps=6) > 0.05
