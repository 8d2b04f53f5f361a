"""Every dense operator against PyTorch's own in float64, and its magnitude against plain loops."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional as F

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Edge,
    Flatten,
    Linear,
    MaxPool2d,
    Neuron,
    Scale,
    SumPool2d,
    TensorType,
    frozen,
)
from dalif_deploy.operators import average_divisors, evaluate, reduce_time

Array = NDArray[np.float64]
IN = (Edge("x"),)
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


def drawn(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def close(found: NDArray[Any], expected: NDArray[Any] | torch.Tensor) -> None:
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-12, atol=1e-12)


def of_type(node: Any, x: NDArray[Any], found: NDArray[Any]) -> None:
    """The shape that the node promises."""
    assert found.shape == (len(x), *node.infer([TensorType(x.shape[1:], True)]).shape)


@given(
    seed=st.integers(0, 10**6), groups=st.integers(1, 3), per_group=st.integers(1, 3), out=st.integers(1, 2),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)), kernel=PAIRS, stride=PAIRS, dilation=PAIRS,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)), bias=st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_conv2d(
    seed: int, groups: int, per_group: int, out: int, size: tuple[int, int], kernel: tuple[int, int],
    stride: tuple[int, int], dilation: tuple[int, int], padding: tuple[int, int], bias: bool,
) -> None:  # fmt: skip
    assume(all((k - 1) * d + 1 <= n + 2 * p for k, d, n, p in zip(kernel, dilation, size, padding, strict=True)))
    weight, x = drawn(seed, out * groups, per_group, *kernel), drawn(seed + 1, 2, groups * per_group, *size)
    shift = drawn(seed + 2, out * groups) if bias else None
    node = Conv2d(
        name="n", inputs=IN, weight=frozen(weight), bias=None if shift is None else frozen(shift), stride=stride,
        padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip
    expected = F.conv2d(
        torch.from_numpy(x), torch.from_numpy(weight), None if shift is None else torch.from_numpy(shift), stride,
        padding, dilation, groups,
    )  # fmt: skip
    found = evaluate(node, [x])
    of_type(node, x, found)
    close(found, expected)

    # The sum of the absolute values of all terms, one output after another.
    magnitude = np.zeros(found.shape)
    for b, o, i, j in np.ndindex(*found.shape):
        total = abs(shift[o]) if shift is not None else 0.0
        for c, u, v in product(range(per_group), range(kernel[0]), range(kernel[1])):
            row = i * stride[0] + u * dilation[0] - padding[0]
            column = j * stride[1] + v * dilation[1] - padding[1]
            if 0 <= row < size[0] and 0 <= column < size[1]:
                total += abs(weight[o, c, u, v] * x[b, (o // out) * per_group + c, row, column])
        magnitude[b, o, i, j] = total
    close(evaluate(node, [np.abs(x)], magnitude=True), magnitude)


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool) -> None:
    weight, x = drawn(0, 5, 7), drawn(1, 3, 7)
    shift = drawn(2, 5)
    node = Linear(name="n", inputs=IN, weight=frozen(weight), bias=frozen(shift) if bias else None)
    expected = F.linear(torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(shift) if bias else None)
    close(evaluate(node, [x]), expected)
    magnitude = np.zeros((3, 5))
    for b, o in np.ndindex(3, 5):
        magnitude[b, o] = sum(abs(weight[o, i] * x[b, i]) for i in range(7)) + (abs(shift[o]) if bias else 0.0)
    close(evaluate(node, [np.abs(x)], magnitude=True), magnitude)


@pytest.mark.parametrize("shape", [(4,), (4, 3, 2)])
def test_batch_norm(shape: tuple[int, ...]) -> None:
    gamma, beta, mean, variance = drawn(0, 4), drawn(1, 4), drawn(2, 4), np.abs(drawn(3, 4))
    x = drawn(4, 3, *shape)
    node = BatchNorm(
        name="n", inputs=IN, weight=frozen(gamma), bias=frozen(beta), mean=frozen(mean), variance=frozen(variance),
        epsilon=1e-3,
    )  # fmt: skip
    tensors = [torch.from_numpy(value) for value in (x, mean, variance, gamma, beta)]
    close(evaluate(node, [x]), F.batch_norm(*tensors, training=False, eps=1e-3))
    magnitude = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        c = place[1]
        gain = abs(gamma[c] / np.sqrt(variance[c] + 1e-3))
        magnitude[place] = gain * abs(x[place]) + gain * abs(mean[c]) + abs(beta[c])
    close(evaluate(node, [np.abs(x)], magnitude=True), magnitude)


@pytest.mark.parametrize("shape", [(), (4, 1, 1), (4, 3, 2), (1, 2)])
def test_scale(shape: tuple[int, ...]) -> None:
    factor, offset, x = drawn(0, *shape), drawn(1, *shape), drawn(2, 3, 4, 3, 2)
    node = Scale(name="n", inputs=IN, factor=frozen(factor), offset=frozen(offset))
    close(evaluate(node, [x]), torch.from_numpy(x) * torch.as_tensor(factor) + torch.as_tensor(offset))
    spread_factor, spread_offset = np.broadcast_to(factor, x.shape), np.broadcast_to(offset, x.shape)
    magnitude = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        magnitude[place] = abs(spread_factor[place] * x[place]) + abs(spread_offset[place])
    close(evaluate(node, [np.abs(x)], magnitude=True), magnitude)


@given(
    seed=st.integers(0, 10**6), size=st.tuples(st.integers(1, 9), st.integers(1, 9)), kernel=PAIRS,
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)), padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    ceil_mode=st.booleans(), count_include_pad=st.booleans(), kind=st.sampled_from(["avg", "sum", "max"]),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_pools(
    seed: int, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    ceil_mode: bool, count_include_pad: bool, kind: str,
) -> None:  # fmt: skip
    assume(all(2 * p <= k <= n + 2 * p for k, n, p in zip(kernel, size, padding, strict=True)))
    x = drawn(seed, 2, 3, *size)
    tensor = torch.from_numpy(x)
    node: Any
    if kind == "max":
        node = MaxPool2d(name="n", inputs=IN, kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode)
        expected = F.max_pool2d(tensor, kernel, stride, padding, ceil_mode=ceil_mode)
    elif kind == "avg":
        node = AvgPool2d(
            name="n", inputs=IN, kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
        )  # fmt: skip
        expected = F.avg_pool2d(tensor, kernel, stride, padding, ceil_mode, count_include_pad)
    else:
        node = SumPool2d(name="n", inputs=IN, kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode)
        expected = F.avg_pool2d(tensor, kernel, stride, padding, ceil_mode, divisor_override=1)
    found = evaluate(node, [x])
    of_type(node, x, found)
    close(found, expected)

    # What is in a window, by loops; the padding holds zeros, or nothing for a maximum.
    magnitude = np.zeros(found.shape)
    for b, c, i, j in np.ndindex(*found.shape):
        rows = [i * stride[0] + u - padding[0] for u in range(kernel[0])]
        columns = [j * stride[1] + v - padding[1] for v in range(kernel[1])]
        inside = [
            abs(x[b, c, row, column])
            for row, column in product(rows, columns)
            if 0 <= row < size[0] and 0 <= column < size[1]
        ]
        if kind == "max":
            magnitude[b, c, i, j] = max(inside)
            continue
        reach = [n + (p if count_include_pad else 0) for n, p in zip(size, padding, strict=True)]
        least = [-p if count_include_pad else 0 for p in padding]
        places = [
            None
            for row, column in product(rows, columns)
            if least[0] <= row < reach[0] and least[1] <= column < reach[1]
        ]
        magnitude[b, c, i, j] = sum(inside) / (len(places) if kind == "avg" else 1)
        if kind == "avg":
            assert average_divisors(node, size)[i, j] == len(places)
    close(evaluate(node, [np.abs(x)], magnitude=True), magnitude)


def test_whole_windows_by_hand() -> None:
    def whole(size: int, kernel: int, stride: int, padding: int = 0, *, ceil_mode: bool = False) -> bool:
        node = AvgPool2d(
            name="n", inputs=IN, kernel=(kernel, 1), stride=(stride, 1), padding=(padding, 0), ceil_mode=ceil_mode
        )
        return node.whole_windows((size, 4))

    assert whole(4, 2, 2)
    assert whole(5, 2, 2)
    assert whole(5, 3, 2)
    assert not whole(4, 2, 2, 1)
    assert not whole(5, 2, 3, 1)
    assert whole(4, 2, 2, ceil_mode=True)
    assert not whole(5, 2, 2, ceil_mode=True)
    assert whole(5, 3, 2, ceil_mode=True)


def test_a_maximum_of_negative_values_is_not_the_padding() -> None:
    node = MaxPool2d(name="n", inputs=IN, kernel=(2, 2), stride=(2, 2), padding=(1, 1))
    assert (evaluate(node, [np.full((1, 1, 3, 3), -5.0)]) == -5.0).all()


def test_flatten_is_in_c_order() -> None:
    x = drawn(0, 2, 3, 4, 5)
    node = Flatten(name="n", inputs=IN)
    np.testing.assert_array_equal(evaluate(node, [x]), torch.from_numpy(x).flatten(1).numpy())
    np.testing.assert_array_equal(evaluate(node, [x], magnitude=True), x.reshape(2, 60))


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_add_is_from_left_to_right(terms: int) -> None:
    values = [drawn(seed, 2, 3) * 10.0**seed for seed in range(terms)]
    node = Add(name="n", inputs=IN * terms)
    expected = torch.zeros(2, 3, dtype=torch.float64) + torch.from_numpy(values[0])
    for value in values[1:]:
        expected = expected + torch.from_numpy(value)
    np.testing.assert_array_equal(evaluate(node, values), expected.numpy())
    # 1e16 + 1 - 1e16 is 0 in this order, 1 in the other.
    big, one = np.full((1, 1), 1e16), np.ones((1, 1))
    three = Add(name="n", inputs=IN * 3)
    assert evaluate(three, [big, one, -big]).item() == 0.0
    assert evaluate(three, [big, -big, one]).item() == 1.0


def test_the_result_is_in_the_inputs_dtype() -> None:
    x = drawn(0, 2, 2, 4, 4).astype(np.float32)
    for node in (
        Conv2d(name="n", inputs=IN, weight=frozen(drawn(1, 3, 2, 3, 3)), bias=frozen(drawn(2, 3))),
        Scale(name="n", inputs=IN, factor=frozen(0.1), offset=frozen(0.1)),
        AvgPool2d(name="n", inputs=IN, kernel=(3, 3), stride=(1, 1)),
        SumPool2d(name="n", inputs=IN, kernel=(3, 3), stride=(1, 1)),
        MaxPool2d(name="n", inputs=IN, kernel=(3, 3), stride=(1, 1)),
        BatchNorm(
            name="n", inputs=IN, weight=frozen([0.1, 0.2]), bias=frozen([0.1, 0.2]), mean=frozen([0.1, 0.2]),
            variance=frozen([0.1, 0.2]), epsilon=1e-5,
        ),
    ):  # fmt: skip
        for magnitude in (False, True):
            assert evaluate(node, [np.abs(x)], magnitude=magnitude).dtype == np.float32, type(node).__name__


def test_inputs_and_parameters_are_left_alone() -> None:
    x = drawn(0, 2, 2, 4, 4)
    kept = x.copy()
    node = Scale(name="n", inputs=IN, factor=frozen(-2.0), offset=frozen(1.0))
    evaluate(node, [x])
    evaluate(node, [x], magnitude=True)
    evaluate(Add(name="n", inputs=IN * 2), [x, x])
    np.testing.assert_array_equal(x, kept)


def test_a_node_without_dense_evaluation_is_refused_by_name() -> None:
    sn = Neuron(name="block.sn", inputs=IN, alpha=frozen(1.0), beta=frozen(1.0))
    with pytest.raises(DalifError, match=r"node 'block.sn' \(Neuron\): no dense evaluation exists") as caught:
        evaluate(sn, [np.ones((1, 1))])
    assert caught.value.code is Code.RUNTIME_CANNOT_RUN


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("timesteps", [1, 3, 7])
def test_reducing_time(dtype: Any, timesteps: int) -> None:
    values = drawn(0, 4, timesteps, 5).astype(dtype)
    total = np.zeros((4, 5), dtype)
    for t in range(timesteps):
        total = (total + values[:, t]).astype(dtype)
    np.testing.assert_array_equal(reduce_time(values, "sum"), total)
    np.testing.assert_array_equal(reduce_time(values, "mean"), (total / dtype(timesteps)).astype(dtype))
    np.testing.assert_array_equal(reduce_time(values, "last"), values[:, timesteps - 1])
    expected = np.array([[max(values[b, :, k]) for k in range(5)] for b in range(4)])
    np.testing.assert_array_equal(reduce_time(values, "max"), expected)
    for mode in ("sum", "mean", "last", "max"):
        assert reduce_time(values, mode).dtype == dtype  # type: ignore[arg-type]
