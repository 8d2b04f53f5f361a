"""How data becomes the module's input: the formula, and every refusal by its code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy.encoding import Encoding, InputSpec
from dalif_deploy.errors import Code, DalifError

CODES = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 5)).astype(np.uint8)


def refused(code: Code, message: str) -> Any:
    return pytest.raises(DalifError, match=rf"^\[{code.identifier}\] .*{message}")


def by_hand(codes: NDArray[np.uint8], encoding: Encoding, channel_axis: int) -> NDArray[np.float32]:
    """The formula in Python's own floats, element by element."""

    def of(value: float | tuple[float, ...], channel: int) -> float:
        return value if isinstance(value, float) else value[channel]

    out = np.empty(codes.shape, np.float32)
    for place in np.ndindex(*codes.shape):
        channel = place[channel_axis]
        number = (int(codes[place]) * encoding.scale - of(encoding.mean, channel)) / of(encoding.std, channel)
        out[place] = np.float32(number)
    return out


@pytest.mark.parametrize(
    "encoding",
    [
        Encoding(kind="uint8"),
        Encoding(kind="uint8", scale=1 / 16),
        Encoding(kind="uint8", scale=1 / 255, mean=0.5, std=0.25),
        Encoding(kind="uint8", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        Encoding(kind="uint8", scale=-0.5, mean=0.1, std=(1.0, -2.0, 3.0)),
        Encoding(kind="uint8", scale=1 / 255, mean=(0.1, 0.2, 0.3)),
    ],
)
@pytest.mark.parametrize("temporal", [False, True])
def test_codes_become_the_modules_input_by_the_formula(encoding: Encoding, temporal: bool) -> None:
    codes = CODES[:, None].repeat(2, axis=1) if temporal else CODES
    spec = InputSpec((3, 2, 5), temporal, 2, encoding)
    found = spec.module_input(codes)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, by_hand(codes, encoding, 2 if temporal else 1))


def test_channels_of_vectors_are_their_features() -> None:
    encoding = Encoding(kind="uint8", mean=(1.0, 2.0, 3.0))
    found = InputSpec((3,), False, 1, encoding).module_input(np.array([[5, 5, 5]], np.uint8))
    assert found.tolist() == [[4.0, 3.0, 2.0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["real", "uint8"])
def test_floats_already_are_the_modules_input(dtype: Any, kind: Any) -> None:
    values = np.random.default_rng(1).normal(size=(2, 3)).astype(dtype)
    encoding = Encoding(kind=kind, scale=0.5 if kind == "uint8" else 1.0)
    found = InputSpec((3,), False, 1, encoding).module_input(values)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_spikes_may_be_stored_in_any_type(dtype: Any) -> None:
    values = np.array([[0, 1, 1]], dtype)
    found = InputSpec((3,), False, 1, Encoding(kind="spikes")).module_input(values)
    assert found.dtype == np.float32
    assert found.tolist() == [[0.0, 1.0, 1.0]]


def test_the_data_is_left_alone() -> None:
    values = CODES.copy()
    InputSpec((3, 2, 5), False, 1, Encoding(kind="uint8", scale=0.5)).module_input(values)
    np.testing.assert_array_equal(values, CODES)


def test_numbers_of_any_kind_become_floats() -> None:
    encoding = Encoding(kind="uint8", scale=1, mean=[np.float32(0.5), 1], std=np.array([1, 2]))  # type: ignore[arg-type]
    assert encoding == Encoding(kind="uint8", scale=1.0, mean=(0.5, 1.0), std=(1.0, 2.0))
    assert all(type(value) is float for value in (encoding.scale, *encoding.mean, *encoding.std))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "int8"}, "encoding kind 'int8'"),
        ({"kind": "uint8", "scale": 0.0}, "scale and std must not be zero"),
        ({"kind": "uint8", "std": 0.0}, "scale and std must not be zero"),
        ({"kind": "uint8", "std": (1.0, 0.0)}, "scale and std must not be zero"),
        ({"kind": "uint8", "scale": float("nan")}, "finite"),
        ({"kind": "uint8", "mean": float("inf")}, "finite"),
        ({"kind": "uint8", "mean": (0.0, float("nan"))}, "finite"),
        ({"kind": "uint8", "std": (1.0, float("inf"))}, "finite"),
        ({"kind": "uint8", "scale": (1.0, 2.0)}, "scale is a number"),
        ({"kind": "uint8", "scale": "1/255"}, "scale is a number"),
        ({"kind": "uint8", "mean": ((1.0,), (2.0,))}, "scale is a number"),
        ({"kind": "uint8", "std": None}, "scale is a number"),
        ({"kind": "real", "scale": 0.5}, "'real' takes no scale"),
        ({"kind": "real", "mean": 0.5}, "'real' takes no scale"),
        ({"kind": "spikes", "std": 2.0}, "'spikes' takes no scale"),
    ],
)
def test_an_encoding_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with refused(Code.BAD_OPTION, message):
        Encoding(**arguments)


@pytest.mark.parametrize(
    ("kind", "values", "code", "message"),
    [
        (
            "real",
            np.ones((1, 3), np.uint8),
            Code.BAD_DATA,
            "type uint8, but the model was saved with real-valued input",
        ),
        ("real", np.ones((1, 3), np.int32), Code.BAD_DATA, "type int32"),
        ("real", np.ones((1, 3), complex), Code.BAD_DATA, "type complex128: numbers are needed"),
        ("real", np.array([["a", "b", "c"]]), Code.BAD_DATA, "numbers are needed"),
        ("real", np.array([[None, 1, 2]], object), Code.BAD_DATA, "numbers are needed"),
        ("real", np.array([[0.0, np.nan, 1.0]]), Code.NOT_FINITE, "NaN or infinite"),
        ("real", np.array([[0.0, np.inf, 1.0]]), Code.NOT_FINITE, "NaN or infinite"),
        ("real", np.array([[0.0, 1e39, 1.0]]), Code.NOT_FINITE, "beyond float32"),
        ("uint8", np.ones((1, 3), np.int64), Code.BAD_DATA, "codes must be stored as uint8"),
        ("uint8", np.ones((1, 3), np.int8), Code.BAD_DATA, "codes must be stored as uint8"),
        ("uint8", np.array([[0.0, np.nan, 1.0]]), Code.NOT_FINITE, "NaN or infinite"),
        ("spikes", np.array([[0.0, 0.5, 1.0]]), Code.BAD_DATA, "every value must be 0 or 1"),
        ("spikes", np.array([[0, 2, 1]]), Code.BAD_DATA, "every value must be 0 or 1"),
        ("spikes", np.array([[0, -1, 1]]), Code.BAD_DATA, "every value must be 0 or 1"),
        ("spikes", np.array([[0.0, np.nan, 1.0]]), Code.NOT_FINITE, "NaN or infinite"),
    ],
)
def test_data_that_cannot_be_input_is_refused(kind: Any, values: Any, code: Code, message: str) -> None:
    with refused(code, message):
        InputSpec((3,), False, 1, Encoding(kind=kind)).module_input(values)


def test_codes_that_leave_float32_are_refused() -> None:
    with refused(Code.NOT_FINITE, "beyond float32"):
        InputSpec((1,), False, 1, Encoding(kind="uint8", scale=1e38)).module_input(np.full((1, 1), 255, np.uint8))


@pytest.mark.parametrize("name", ["mean", "std"])
def test_one_value_a_channel_must_fit_the_channels(name: str) -> None:
    encoding = Encoding(kind="uint8", **{name: (1.0, 2.0)})  # type: ignore[arg-type]
    with refused(Code.WRONG_SHAPE, "2 mean or std values for 3 channels"):
        InputSpec((3, 2, 5), False, 1, encoding).module_input(CODES)


@pytest.mark.parametrize(
    ("temporal", "shape"),
    [
        (False, (3, 4)), (False, (0, 2, 4)), (False, (5, 4, 2)), (False, (5, 3, 2, 4)), (False, ()), (False, (2,)),
        (True, (5, 2, 4)), (True, (5, 2, 2, 4)), (True, (5, 3, 4, 2)), (True, (0, 3, 2, 4)), (True, (3, 2, 4)),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_refused_with_the_right_one(temporal: bool, shape: tuple[int, ...]) -> None:
    expected = r"\[N, 3, 2, 4\] \(N samples of T timesteps\)" if temporal else r"\[N, 2, 4\] \(static"
    with refused(Code.WRONG_SHAPE, rf"data of shape .*: the model takes {expected}"):
        InputSpec((2, 4), temporal, 3, Encoding()).module_input(np.zeros(shape))


def test_a_right_shape_is_taken() -> None:
    assert InputSpec((2, 4), True, 3, Encoding()).module_input(np.zeros((5, 3, 2, 4))).shape == (5, 3, 2, 4)
    assert InputSpec((2, 4), False, 3, Encoding()).module_input(np.zeros((5, 2, 4))).shape == (5, 2, 4)
