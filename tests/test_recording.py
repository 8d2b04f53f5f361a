"""Recordings: packing loses nothing at any size, counts are right, and batches can be joined and parted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dalif_deploy.recording import Operations, Recording, SpikeTrain


def spikes(seed: int, *shape: int, rate: float = 0.3) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(shape) < rate


SHAPES = [(1,), (7,), (8,), (9,), (16,), (1, 1, 1), (3, 3, 3), (2, 2, 2), (5, 1, 13)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("batch", "timesteps"), [(1, 1), (3, 4)])
def test_packing_loses_nothing(shape: tuple[int, ...], batch: int, timesteps: int) -> None:
    values = spikes(1, batch, timesteps, *shape, rate=0.5)
    train = SpikeTrain.pack(values)
    assert train.shape == shape
    assert train.neurons == np.prod(shape)
    assert train.neuron_steps == values.size
    assert train.bits.shape == (batch, timesteps, -(-train.neurons // 8))
    assert train.bits.dtype == np.uint8
    unpacked = train.unpack()
    assert unpacked.dtype == np.bool_
    np.testing.assert_array_equal(unpacked, values)
    assert train.count() == values.sum()
    for t in range(timesteps):
        assert train.step(t).dtype == np.bool_
        np.testing.assert_array_equal(train.step(t), values[:, t])


@pytest.mark.parametrize("rate", [0.0, 1.1])
def test_silence_and_constant_firing_are_counted_without_the_padding_bits(rate: float) -> None:
    train = SpikeTrain.pack(spikes(0, 2, 3, 13, rate=rate))
    assert train.count() == (train.neuron_steps if rate else 0)


def test_the_first_neuron_is_the_most_significant_bit_and_the_padding_is_zero() -> None:
    assert SpikeTrain.pack(np.array([[[True, False, True]]])).bits.tolist() == [[[0b10100000]]]


def test_a_layout_in_memory_does_not_matter() -> None:
    values = np.asfortranarray(spikes(2, 3, 4, 5, 6))
    np.testing.assert_array_equal(SpikeTrain.pack(values).unpack(), values)
    turned = spikes(2, 3, 4, 5, 6).transpose(1, 0, 3, 2)[:, ::-1]
    np.testing.assert_array_equal(SpikeTrain.pack(turned).unpack(), turned)


@given(
    seed=st.integers(0, 10**6), batch=st.integers(1, 4), timesteps=st.integers(1, 4), neurons=st.integers(1, 40)
)  # fmt: skip
@settings(deadline=None)
def test_differing_counts_by_sample(seed: int, batch: int, timesteps: int, neurons: int) -> None:
    left, right = (spikes(seed + n, batch, timesteps, neurons) for n in range(2))
    found = SpikeTrain.pack(left).differing(SpikeTrain.pack(right))
    assert found.dtype == np.int64
    assert found.tolist() == [int((left[b] != right[b]).sum()) for b in range(batch)]
    assert not SpikeTrain.pack(left).differing(SpikeTrain.pack(left.copy())).any()


def test_more_differences_than_a_byte_counts() -> None:
    shape = (1, 9, 12345)
    train = SpikeTrain.pack(np.zeros(shape, bool))
    assert train.differing(SpikeTrain.pack(np.ones(shape, bool))).tolist() == [9 * 12345]
    assert SpikeTrain.pack(np.ones(shape, bool)).count() == 9 * 12345


def recording(seed: int, batch: int, operations: Operations | None = None) -> Recording:
    trains = {"a": SpikeTrain.pack(spikes(seed, batch, 3, 2, 5)), "b": SpikeTrain.pack(spikes(seed + 1, batch, 3, 4))}
    return Recording(trains, np.random.default_rng(seed).normal(size=(batch, 6)).astype(np.float32), operations)


def test_batches_are_joined_in_order_and_their_operations_added_up() -> None:
    parts = [
        recording(1, 2, Operations({"x": 3, "y": 1}, {"m": 7})),
        recording(3, 1, Operations({"x": 4, "z": 0})),
        recording(5, 3, Operations()),
    ]
    joined = Recording.joined(parts)
    for name in "ab":
        expected = np.concatenate([part.spikes[name].unpack() for part in parts])
        np.testing.assert_array_equal(joined.spikes[name].unpack(), expected)
    np.testing.assert_array_equal(joined.logits, np.concatenate([part.logits for part in parts]))
    assert joined.logits.dtype == np.float32
    assert joined.operations == Operations({"x": 7, "y": 1, "z": 0}, {"m": 7})


def test_without_counting_runtimes_there_are_no_operations() -> None:
    assert Recording.joined([recording(1, 2), recording(2, 2)]).operations is None


def test_a_part_of_the_joined_is_what_was_joined() -> None:
    parts = [recording(1, 2, Operations({"x": 1})), recording(3, 3)]
    joined = Recording.joined(parts)
    for part, (start, stop) in zip(parts, [(0, 2), (2, 5)], strict=True):
        found = joined.part(start, stop)
        assert list(found.spikes) == ["a", "b"]
        for name in "ab":
            np.testing.assert_array_equal(found.spikes[name].unpack(), part.spikes[name].unpack())
        np.testing.assert_array_equal(found.logits, part.logits)
        assert found.operations is None, "they were counted over the whole"
