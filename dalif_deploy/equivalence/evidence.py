"""The samples that are kept of a candidate's run, to find out later why it diverges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.recording import Recording, SpikeTrain

MOST = 16
"""So many samples are kept, whatever the size of the data."""


@dataclass(frozen=True, eq=False)
class Kept:
    """Samples as one batch: their indices in the data, the data, and what the candidate fired."""

    samples: tuple[int, ...]
    batch: NDArray[np.generic]
    spikes: dict[str, SpikeTrain]

    def first(self, count: int) -> Kept:
        """At most so many of them."""
        spikes = {name: SpikeTrain(train.bits[:count], train.shape) for name, train in self.spikes.items()}
        return Kept(self.samples[:count], self.batch[:count], spikes)


class Evidence:
    """Keeps the samples that go wrong in the earliest layer, and where there are few of them also some that do not
    go wrong, which a cause must explain as well."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, int, NDArray[np.generic], dict[str, SpikeTrain]]] = []

    def add(self, batch: NDArray[np.generic], candidate: Recording, places: Sequence[int], first_sample: int) -> None:
        """One batch. `places`: by sample, how far behind the input it first goes wrong; the smaller the better."""
        for row in sorted(range(len(batch)), key=lambda row: places[row])[:MOST]:
            rank = (places[row], first_sample + row)
            if len(self._kept) == MOST and rank >= self._kept[-1][:2]:
                continue
            spikes = {n: SpikeTrain(train.bits[row].copy(), train.shape) for n, train in candidate.spikes.items()}
            self._kept.append((*rank, batch[row].copy(), spikes))
            self._kept.sort(key=lambda kept: kept[:2])
            del self._kept[MOST:]

    def kept(self) -> Kept:
        """All samples that are kept, the most telling first; there must be one."""
        spikes = {
            name: SpikeTrain(np.stack([kept[3][name].bits for kept in self._kept]), train.shape)
            for name, train in self._kept[0][3].items()
        }
        return Kept(tuple(kept[1] for kept in self._kept), np.stack([kept[2] for kept in self._kept]), spikes)
