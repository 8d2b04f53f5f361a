"""What a run produced: the spikes of every neuron layer at every timestep, and the readout."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class SpikeTrain:
    """The spikes of one layer: bool [batch, T, *shape], packed eight neurons to a byte.

    `bits`: uint8 [batch, T, ceil(neurons / 8)], most significant bit first, the last byte padded
    with zeros; so one sample or one timestep can be taken out without unpacking the rest.
    """

    bits: NDArray[np.uint8]
    shape: tuple[int, ...]

    @classmethod
    def pack(cls, spikes: NDArray[np.bool_]) -> Self:
        """From bool [batch, T, *shape]."""
        batch, timesteps, *shape = spikes.shape
        return cls(np.packbits(spikes.reshape(batch, timesteps, -1), axis=-1), tuple(shape))

    def unpack(self) -> NDArray[np.bool_]:
        """To bool [batch, T, *shape]."""
        bits = np.unpackbits(self.bits, axis=-1, count=self.neurons)
        return bits.view(np.bool_).reshape(*self.bits.shape[:2], *self.shape)

    def step(self, t: int) -> NDArray[np.bool_]:
        """The spikes of timestep `t`, bool [batch, *shape]."""
        bits = np.unpackbits(self.bits[:, t], axis=-1, count=self.neurons)
        return bits.view(np.bool_).reshape(len(self.bits), *self.shape)

    @property
    def neurons(self) -> int:
        """How many neurons the layer has."""
        return math.prod(self.shape)

    @property
    def neuron_steps(self) -> int:
        """batch * T * neurons."""
        return int(self.bits.shape[0] * self.bits.shape[1] * self.neurons)

    def count(self) -> int:
        """How many spikes there are."""
        return int(np.bitwise_count(self.bits).sum())

    def differing(self, other: SpikeTrain) -> NDArray[np.int64]:
        """Per sample, in how many neuron-steps two trains of one layer differ; int64 [batch]."""
        return np.asarray(np.bitwise_count(self.bits ^ other.bits).sum(axis=(1, 2), dtype=np.int64))


@dataclass(frozen=True)
class Operations:
    """What an event-driven run computed, over its whole batch.

    `synaptic`: accumulations caused by an event (a spike or count that is not zero), by node; each is one
    weight added to one current. `macs`: multiply-accumulates of layers fed by real values, by node.
    """

    synaptic: Mapping[str, int] = field(default_factory=dict)
    macs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Recording:
    """One batch through one runtime.

    `spikes`: by neuron layer's name. `logits`: the graph's output, [batch, ...], in the runtime's dtype.
    `operations`: of runtimes that count them.
    """

    spikes: Mapping[str, SpikeTrain]
    logits: NDArray[np.floating]
    operations: Operations | None = None

    @classmethod
    def joined(cls, parts: Sequence[Recording]) -> Recording:
        """Several batches of one runtime as one recording; operations are added up."""
        spikes = {
            name: SpikeTrain(np.concatenate([part.spikes[name].bits for part in parts]), train.shape)
            for name, train in parts[0].spikes.items()
        }
        counted = [part.operations for part in parts if part.operations is not None]
        total = None
        if counted:
            synaptic, macs = Counter[str](), Counter[str]()
            for operations in counted:
                synaptic.update(operations.synaptic)
                macs.update(operations.macs)
            total = Operations(dict(synaptic), dict(macs))
        return Recording(spikes, np.concatenate([part.logits for part in parts]), total)

    def part(self, start: int, stop: int) -> Recording:
        """Samples `start` to `stop`, without operations, which are counted over the whole."""
        spikes = {name: SpikeTrain(train.bits[start:stop], train.shape) for name, train in self.spikes.items()}
        return Recording(spikes, self.logits[start:stop])
