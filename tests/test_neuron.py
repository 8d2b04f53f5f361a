"""The trainable neuron against the paper's equations, written out here once more in NumPy."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.neuron import DALIF, reset

F64 = NDArray[np.float64]
T = 4

ACT: dict[str, Callable[[F64], F64]] = {
    "tanh": np.tanh,
    "sigmoid": lambda r: 1.0 / (1.0 + np.exp(-r)),
    "identity": lambda r: r,
}
SLOPE: dict[str, Callable[[F64], F64]] = {
    "tanh": lambda r: 1.0 - np.tanh(r) ** 2,
    "sigmoid": lambda r: np.exp(-r) / (1.0 + np.exp(-r)) ** 2,
    "identity": np.ones_like,
}


@dataclass
class Case:
    """A layer and a sequence: `layer` in float64, `x` [T, B, C, H, W], raw parameters that broadcast against x[t]."""

    layer: DALIF
    x: F64
    a: F64
    b: F64


def make_case(
    *, channels: int | None = None, activation: str = "tanh", seed: int = 3, batch: int = 5, **options: Any
) -> Case:
    """Random currents around the threshold, so that there are spikes, silences and gradients of both kinds."""
    rng = np.random.default_rng(seed)
    layer = DALIF(channels=channels, activation=activation, **options).double()  # type: ignore[arg-type]
    shape = () if channels is None else (channels,)
    a, b = rng.uniform(0.6, 1.4, shape), rng.uniform(0.3, 1.2, shape)
    if channels is not None:
        b[0] = -b[0]  # a negative leak among them
    with torch.no_grad():
        layer.a.copy_(torch.from_numpy(np.asarray(a)))
        layer.b.copy_(torch.from_numpy(np.asarray(b)))
    spread = (..., None, None) if channels is not None else ()
    x = rng.normal(0.9, 0.7, (T, batch, channels or 3, 4, 4))
    return Case(layer, x, np.asarray(a)[spread], np.asarray(b)[spread])


def trajectory(case: Case) -> tuple[F64, F64, F64]:
    """S, V and H of eq. 2 and 9, each [T, B, C, H, W]; H[t] is the potential after the reset of step t."""
    alpha, beta = ACT[case.layer.activation](case.a), ACT[case.layer.activation](case.b)
    spikes, potentials, states = [], [], []
    h = np.zeros_like(case.x[0])
    for x in case.x:
        v = beta * h + alpha * x
        s = np.where(v - case.layer.v_threshold >= 0.0, 1.0, 0.0)
        h = case.layer.v_reset * s + v * (1.0 - s)
        spikes.append(s)
        potentials.append(v)
        states.append(h)
    return np.stack(spikes), np.stack(potentials), np.stack(states)


def backward(case: Case, upstream: F64, *, detach_reset: bool, width: float) -> tuple[F64, F64, F64]:
    """dL/dX [T, ...], dL/da and dL/db for dL/dS[t] = upstream[t]: eq. 10 and 11 by hand, from the last step back."""
    layer = case.layer
    alpha, beta = ACT[layer.activation](case.a), ACT[layer.activation](case.b)
    s, v, h = trajectory(case)
    rectangle = np.where(np.abs(v - layer.v_threshold) < width / 2, 1.0 / width, 0.0)
    grad_x = np.zeros_like(case.x)
    grad_alpha, grad_beta = np.zeros_like(s[0]), np.zeros_like(s[0])
    later = np.zeros_like(s[0])  # dL/dV[t+1]
    for t in reversed(range(T)):
        to_h = beta * later
        to_v = upstream[t] * rectangle[t] + to_h * (1.0 - s[t])
        if not detach_reset:
            to_v = to_v + to_h * (layer.v_reset - v[t]) * rectangle[t]
        grad_x[t] = alpha * to_v
        grad_alpha += to_v * case.x[t]
        if t > 0:
            grad_beta += to_v * h[t - 1]
        later = to_v
    axes = (0, 1, 2, 3) if layer.channels is None else (0, 2, 3)
    raw_a, raw_b = case.a.reshape(layer.a.shape), case.b.reshape(layer.b.shape)
    return (
        grad_x,
        grad_alpha.sum(axis=axes) * SLOPE[layer.activation](raw_a),
        grad_beta.sum(axis=axes) * SLOPE[layer.activation](raw_b),
    )


def run(layer: DALIF, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Spikes and potentials after the reset that `layer` gives for the sequence `x` [T, B, ...]."""
    reset(layer)
    spikes, states = [], []
    with torch.no_grad():
        for step in x:
            spikes.append(layer(torch.from_numpy(step)).numpy())
            assert layer.v is not None
            states.append(layer.v.numpy())
    return np.stack(spikes), np.stack(states)


def fused_multiply_add(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]) -> NDArray[Any]:
    """a * b + c, the product not rounded before the addition, in the dtype of c."""
    exact = [
        Fraction(float(i)) * Fraction(float(j)) + Fraction(float(k))
        for i, j, k in zip(a.flat, b.flat, c.flat, strict=True)
    ]
    return np.array([float(value) for value in exact]).astype(c.dtype).reshape(c.shape)


def refusal(code: Code, call: Callable[[], object]) -> str:
    """The message of the `DalifError` that `call` raises, which has this code."""
    with pytest.raises(DalifError) as caught:
        call()
    assert caught.value.code is code
    return caught.value.message


LAYERS = [
    pytest.param({}, id="scalar"),
    pytest.param({"channels": 3}, id="per-channel"),
    pytest.param({"activation": "sigmoid"}, id="sigmoid"),
    pytest.param({"activation": "identity", "channels": 3}, id="identity"),
    pytest.param({"v_reset": -0.35, "channels": 3}, id="reset-below-zero"),
    pytest.param({"v_reset": 0.4, "v_threshold": 0.8}, id="reset-above-zero"),
    pytest.param({"surrogate_width": 0.5}, id="narrow"),
    pytest.param({"surrogate_width": 2.5, "channels": 3}, id="wide"),
]


# Forward: eq. 2 and 9.


@pytest.mark.parametrize("options", LAYERS)
def test_forward_is_the_papers_equations(options: dict[str, Any]) -> None:
    case = make_case(**options)
    spikes, potentials, states = trajectory(case)
    assert 0.2 < spikes.mean() < 0.8
    # No potential is so near the threshold that the last bit of tanh could decide.
    assert np.abs(potentials - case.layer.v_threshold).min() > 1e-6
    got_spikes, got_states = run(case.layer, case.x)
    np.testing.assert_array_equal(got_spikes, spikes)
    np.testing.assert_allclose(got_states, states, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [None, 3])
def test_forward_is_bit_for_bit_two_operations(dtype: type[np.floating[Any]], channels: int | None) -> None:
    case = make_case(channels=channels, batch=40, v_reset=-0.1)
    layer = case.layer if dtype is np.float64 else case.layer.float()
    spread = (..., None, None) if channels else ()
    alpha, beta = layer.alpha.numpy()[spread], layer.beta.numpy()[spread]
    x = case.x.astype(dtype)
    h, expected, fused = np.zeros_like(x[0]), [], 0
    for step in x:
        product = beta * h
        v = product + alpha * step
        fused += int((fused_multiply_add(np.broadcast_to(beta, h.shape), h, alpha * step) != v).sum())
        h = np.where(v >= dtype(1.0), dtype(-0.1), v)
        expected.append(h)
    assert expected[0].dtype == dtype
    assert fused > 0  # so the comparison below would notice one
    _, states = run(layer, x)
    np.testing.assert_array_equal(states, np.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [1.0, 0.5, 0.1, 0.7, 1.1])
def test_a_tie_fires_and_the_next_number_below_does_not(dtype: torch.dtype, threshold: float) -> None:
    layer = DALIF(activation="identity", v_threshold=threshold).to(dtype)
    tie = torch.tensor([threshold], dtype=dtype)
    below = torch.nextafter(tie, torch.zeros_like(tie))
    assert layer(torch.cat([tie, below])).tolist() == [1.0, 0.0]


def test_the_first_step_has_no_leak() -> None:
    layer = DALIF(activation="identity", alpha_init=0.5, beta_init=math.pi, v_reset=-3.0)
    x = torch.tensor([0.25, 1.75, 2.5])
    assert layer(x).tolist() == [0.0, 0.0, 1.0]
    assert layer.v is not None
    assert layer.v.tolist() == [0.125, 0.875, -3.0]


def test_beta_has_no_effect_at_one_timestep() -> None:
    x = torch.linspace(-2, 2, 101)
    assert torch.equal(DALIF(beta_init=-2.0)(x), DALIF(beta_init=2.0)(x))


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 5), (2, 3, 4, 4)])
@pytest.mark.parametrize("channels", [None, 3])
def test_every_rank_of_input(shape: tuple[int, ...], channels: int | None) -> None:
    layer = DALIF(channels=channels)
    if channels and len(shape) == 1:
        assert "3 channels" in refusal(Code.WRONG_SHAPE, lambda: layer(torch.ones(shape)))
        return
    gains = torch.tensor([0.5, 1.5, 2.5]) if channels else torch.tensor(1.5)
    with torch.no_grad():
        layer.a.copy_(gains)
    spikes = layer(torch.full(shape, 1.1))
    expected = torch.tanh(gains) * 1.1 >= 1.0
    if channels:
        expected = expected.reshape(1, 3, *[1] * (len(shape) - 2))
    assert torch.equal(spikes, expected.float().expand(shape))


def test_alpha_and_beta_are_the_values_the_layer_multiplies_by() -> None:
    for activation, function in [("tanh", torch.tanh), ("sigmoid", torch.sigmoid), ("identity", torch.clone)]:
        layer = DALIF(channels=2, activation=activation, alpha_init=0.3, beta_init=-0.2)  # type: ignore[arg-type]
        assert torch.equal(layer.alpha, function(torch.full((2,), 0.3)))
        assert torch.equal(layer.beta, function(torch.full((2,), -0.2)))
        assert not layer.alpha.requires_grad
        frozen = layer.alpha
        with torch.no_grad():
            layer.a.add_(1.0)
        assert not torch.equal(layer.alpha, frozen)  # a value of its own, not a view of the parameter


def test_the_default_gains_are_tanh_of_one() -> None:
    layer = DALIF()
    assert layer.a.shape == layer.b.shape == ()
    assert layer.a.tolist() == layer.b.tolist() == 1.0
    assert round(float(layer.alpha), 4) == round(float(layer.beta), 4) == 0.7616
    assert DALIF(channels=7).a.shape == (7,)


# Special cases of the model.


def test_lif_if_and_plif_are_special_cases() -> None:
    x = np.random.default_rng(0).normal(0.8, 0.9, (T, 200))
    tau, w = 2.5, 0.4

    def decaying(rate: float) -> Callable[[F64, F64], F64]:
        return lambda h, current: h + (current - h) * rate

    def integrating(h: F64, current: F64) -> F64:
        return h + current

    cases = [
        (DALIF(activation="identity", alpha_init=1 / tau, beta_init=1 - 1 / tau), decaying(1 / tau)),
        (DALIF(activation="identity"), integrating),
        (DALIF(activation="sigmoid", alpha_init=w, beta_init=-w), decaying(1 / (1 + math.exp(-w)))),
    ]
    for layer, integrate in cases:
        # Set again in float64: what the constructor was given is rounded to float32.
        layer.double()
        with torch.no_grad():
            raw = (1 / tau, 1 - 1 / tau) if integrate is cases[0][1] else (1.0, 1.0)
            raw = (w, -w) if layer.activation == "sigmoid" else raw
            layer.a.fill_(raw[0])
            layer.b.fill_(raw[1])
        h, expected = np.zeros(200), []
        for step in x:
            v = integrate(h, step)
            assert np.abs(v - 1.0).min() > 1e-9
            expected.append(v >= 1.0)
            h = np.where(v >= 1.0, 0.0, v)
        assert 0.02 < np.mean(expected) < 0.8
        np.testing.assert_array_equal(run(layer, x)[0], np.stack(expected))


# Gradients: eq. 10 and 11.


def gradients(case: Case, upstream: F64) -> tuple[F64, F64, F64]:
    """The layer's own dL/dX [T, ...], dL/da and dL/db for the loss sum of upstream * S."""
    reset(case.layer)
    steps = [torch.from_numpy(step).requires_grad_() for step in case.x]
    loss = torch.stack([(case.layer(x) * torch.from_numpy(g)).sum() for x, g in zip(steps, upstream, strict=True)])
    grads = torch.autograd.grad(loss.sum(), [*steps, case.layer.a, case.layer.b])
    *grad_x, grad_a, grad_b = [g.numpy() for g in grads]
    return np.stack(grad_x), grad_a, grad_b


@pytest.mark.parametrize("options", LAYERS)
@pytest.mark.parametrize("detach_reset", [False, True])
def test_gradients_equal_a_backward_written_by_hand(options: dict[str, Any], detach_reset: bool) -> None:
    case = make_case(detach_reset=detach_reset, **options)
    width = options.get("surrogate_width", 1.0)
    upstream = np.random.default_rng(8).normal(size=case.x.shape)
    expected = backward(case, upstream, detach_reset=detach_reset, width=width)
    # The path through the reset matters here, so an implementation with the wrong one would be seen.
    other = backward(case, upstream, detach_reset=not detach_reset, width=width)
    for mine, its in zip(expected, other, strict=True):
        assert np.abs(mine - its).max() > 1e-3
    for got, mine in zip(gradients(case, upstream), expected, strict=True):
        assert got.shape == mine.shape
        np.testing.assert_allclose(got, mine, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("options", LAYERS)
def test_gradients_equal_finite_differences_of_the_linearised_spike(options: dict[str, Any]) -> None:
    """A second opinion that derives nothing: S replaced by S0[t] + rectangle[t] * (V - V0[t]), differences taken."""
    case = make_case(**options)
    layer, width = case.layer, options.get("surrogate_width", 1.0)
    upstream = np.random.default_rng(9).normal(size=case.x.shape)
    spikes, potentials, _ = trajectory(case)
    slope = np.where(np.abs(potentials - layer.v_threshold) < width / 2, 1.0 / width, 0.0)

    def loss(x: F64, a: F64, b: F64) -> float:
        alpha, beta = ACT[layer.activation](a), ACT[layer.activation](b)
        h, total = np.zeros_like(x[0]), 0.0
        for t in range(T):
            v = beta * h + alpha * x[t]
            s = spikes[t] + slope[t] * (v - potentials[t])
            h = layer.v_reset * s + v * (1.0 - s)
            total += float((upstream[t] * s).sum())
        return total

    grad_x, grad_a, grad_b = gradients(case, upstream)
    rng, step = np.random.default_rng(10), 1e-5
    for _ in range(5):
        dx, da, db = rng.normal(size=case.x.shape), rng.normal(size=case.a.shape), rng.normal(size=case.b.shape)
        ahead = loss(case.x + step * dx, case.a + step * da, case.b + step * db)
        behind = loss(case.x - step * dx, case.a - step * da, case.b - step * db)
        along = (
            (grad_x * dx).sum() + (grad_a * da.reshape(grad_a.shape)).sum() + (grad_b * db.reshape(grad_b.shape)).sum()
        )
        assert (ahead - behind) / (2 * step) == pytest.approx(along, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_the_surrogate_is_a_rectangle_with_open_ends(width: float) -> None:
    edges = np.array([1.0 - width / 2, 1.0 + width / 2])
    inner = edges + np.array([1e-15, -1e-15])
    assert not np.isin(inner, edges).any()
    potentials = [*edges, *inner, 1.0, -9.0, 9.0]
    x = torch.tensor(potentials, dtype=torch.float64, requires_grad=True)
    DALIF(activation="identity", surrogate_width=width).double()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0, 1 / width, 1 / width, 1 / width, 0.0, 0.0]


def test_gradients_reach_back_to_the_first_step_and_stop_at_a_reset() -> None:
    layer = DALIF(activation="identity", beta_init=0.5).double()
    first = torch.tensor([0.25], dtype=torch.float64, requires_grad=True)
    layer(first)
    for current in (0.25, 0.5):  # potentials .25, .375 (outside the rectangle), .6875 (within it)
        last = layer(torch.tensor([current], dtype=torch.float64))
    assert torch.autograd.grad(last.sum(), first)[0].tolist() == [0.25]
    reset(layer)
    assert torch.autograd.grad(layer(first.new_ones(1)).sum(), first, allow_unused=True) == (None,)


# State.


class Wrapped(nn.Module):
    """Layers within layers, and someone else's stateful module."""

    class Foreign(nn.Module):
        resets = 0

        def reset_state(self) -> None:
            self.resets += 1

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), DALIF(), nn.ModuleDict({"inner": DALIF(channels=4)})["inner"])
        self.foreign = self.Foreign()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)  # type: ignore[no-any-return]


def test_reset_starts_a_new_sequence_everywhere() -> None:
    torch.manual_seed(0)
    model = Wrapped()
    x = torch.rand(T, 16, 4) * 4
    first = [model(step) for step in x]
    carried = [model(step) for step in x]
    reset(model)
    assert model.foreign.resets == 1
    assert all(layer.v is None for layer in model.modules() if isinstance(layer, DALIF))
    again = [model(step) for step in x]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, carried, strict=True))


def test_the_state_is_not_in_the_state_dict() -> None:
    layer = DALIF(channels=3)
    layer(torch.rand(2, 3))
    assert list(layer.state_dict()) == ["a", "b"]
    assert list(layer.buffers()) == []
    fresh = DALIF(channels=3, alpha_init=0.1, beta_init=0.2)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.alpha, layer.alpha)
    assert fresh.v is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_takes_the_inputs_shape_dtype_and_device(dtype: torch.dtype) -> None:
    layer = DALIF(channels=3).to(dtype)
    x = torch.rand(2, 3, 5, dtype=dtype)
    spikes = layer(x)
    assert layer.v is not None
    assert spikes.dtype == layer.v.dtype == dtype
    assert spikes.shape == layer.v.shape == x.shape
    meta = DALIF(channels=3).to("meta")
    meta(torch.empty(2, 3, device="meta"))
    assert meta.v is not None
    assert meta.v.device.type == "meta"
    assert "alpha=?" in repr(meta)


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("module_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.float64, torch.uint8, torch.bool])
def test_a_mixture_computes_in_the_wider_dtype(
    channels: int | None, module_dtype: torch.dtype, input_dtype: torch.dtype
) -> None:
    layer = DALIF(channels=channels).to(module_dtype)
    spikes = layer(torch.ones(2, 3).to(input_dtype))
    assert spikes.dtype == torch.promote_types(module_dtype, input_dtype)
    assert spikes.tolist() == torch.zeros(2, 3).tolist()  # tanh(1) is below 1


def test_the_state_moves_with_the_module() -> None:
    layer = DALIF()
    layer(torch.tensor([0.5, 0.7]))
    assert layer.v is not None
    before = layer.v.double()
    layer.double()
    assert layer.v.dtype == torch.float64
    assert torch.equal(layer.v, before)
    assert layer(torch.tensor([1.0, 1.0], dtype=torch.float64)).dtype == torch.float64
    layer.to("meta")
    assert layer.v.device.type == "meta"


def through_pickle(layer: DALIF) -> DALIF:
    return pickle.loads(pickle.dumps(layer))  # type: ignore[no-any-return]


def through_torch(layer: DALIF) -> DALIF:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, through_pickle, through_torch])
def test_a_copy_in_mid_sequence_goes_on_alike(duplicate: Callable[[DALIF], DALIF]) -> None:
    layer = DALIF(channels=3, activation="sigmoid", v_reset=-0.1, detach_reset=True, surrogate_width=0.7)
    x = torch.rand(T, 8, 3, requires_grad=True) * 3
    layer(x[0])
    twin = duplicate(layer)
    assert repr(twin) == repr(layer)
    assert (twin.surrogate_width, twin.v_reset, twin.detach_reset) == (0.7, -0.1, True)
    spikes = [layer(step) for step in x[1:]]
    assert all(torch.equal(twin(step), s) for step, s in zip(x[1:], spikes, strict=True))
    assert sum(s.sum() for s in spikes) > 0
    assert duplicate(DALIF()).v is None


def test_a_copy_keeps_the_originals_gradients_alone() -> None:
    layer = DALIF(activation="identity").double()
    x = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    layer(x)
    twin = copy.deepcopy(layer)
    assert twin.v is not None
    assert not twin.v.requires_grad
    layer(torch.tensor([0.5], dtype=torch.float64)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0]


# What is refused, and what is shown.


def test_a_new_shape_in_mid_sequence_names_reset() -> None:
    layer = DALIF()
    layer(torch.rand(4, 3))
    message = refusal(Code.WRONG_SHAPE, lambda: layer(torch.rand(2, 3)))
    assert "[2, 3]" in message
    assert "[4, 3]" in message
    assert "reset(model)" in message
    reset(layer)
    layer(torch.rand(2, 3))


def test_a_wrong_number_of_channels_is_refused() -> None:
    assert "8 channels" in refusal(Code.WRONG_SHAPE, lambda: DALIF(channels=8)(torch.rand(2, 3, 8)))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"activation": "relu"}, "'relu'"),
        ({"activation": None}, "None"),
        ({"channels": 0}, "channels 0"),
        ({"channels": -2}, "channels -2"),
        ({"channels": 2.0}, "channels 2.0"),
        ({"channels": True}, "channels True"),
        ({"surrogate_width": 0.0}, "surrogate_width 0.0"),
        ({"surrogate_width": -1.0}, "surrogate_width -1.0"),
        ({"surrogate_width": math.inf}, "surrogate_width inf"),
        ({"v_threshold": math.nan}, "v_threshold nan"),
        ({"v_threshold": -math.inf}, "v_threshold -inf"),
        ({"v_reset": math.inf}, "v_reset inf"),
        ({"alpha_init": math.nan}, "alpha_init nan"),
        ({"beta_init": math.inf}, "beta_init inf"),
        ({"alpha_init": "one"}, "alpha_init 'one'"),
        ({"v_threshold": [1.0, 2.0]}, "v_threshold [1.0, 2.0]"),
    ],
)
def test_bad_arguments_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    message = refusal(Code.BAD_OPTION, lambda: DALIF(**options))
    assert message.startswith("DALIF: ")
    assert named in message


def test_arguments_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        DALIF(3)  # type: ignore[misc]


def test_repr_shows_alpha_and_beta() -> None:
    assert repr(DALIF()) == "DALIF(alpha=0.7616, beta=0.7616, activation='tanh', v_threshold=1)"
    layer = DALIF(channels=2, activation="identity", v_reset=-0.5, detach_reset=True)
    with torch.no_grad():
        layer.a.copy_(torch.tensor([0.25, 0.5]))
    assert repr(layer) == (
        "DALIF(alpha=0.25..0.5, beta=1, channels=2, activation='identity', v_threshold=1, v_reset=-0.5, "
        "detach_reset=True)"
    )
