"""Spike trains as NIR's own event data: nir.NIRGraphData in memory, and the same fields in an .npz.

nir 1.0.8 has classes for spike trains (nir.data_ir) and no file format for them: nir.write refuses them. So the file is
ours, an .npz of arrays named as EventData names them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.archive import Archive
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.recording import Recording

OBSERVABLE = "spikes"
"""The name of the observable of every layer."""

Spikes = Mapping[str, NDArray[np.bool_]]
"""By layer, bool [N, T, *shape]."""


def spike_times(steps: NDArray[np.integer], dt: float) -> NDArray[np.float64]:
    """When a step begins, in the unit of `dt`: step * dt, raised by as many units in the last place as it takes for
    floor(time / dt), by which nir finds the step again, to be the step.

    `steps`: [n], from 0 on. Returns float64 [n]. Raises `DalifError` (BAD_OPTION) where no such time is found.
    """
    with np.errstate(over="ignore"):  # a time that is infinite is refused below
        times: NDArray[np.float64] = steps * np.float64(dt)
    for _ in range(4):  # the product and the quotient are each off by half a unit at most
        early = np.floor(times / dt) < steps
        if not early.any():
            break
        times[early] = np.nextafter(times[early], np.inf)
    if (np.floor(times / dt) != steps).any():
        raise DalifError(Code.BAD_OPTION, f"dt = {dt}: no time falls on each of {len(steps)} steps; give another dt")
    return times


def to_event_data(spikes: Recording | Spikes, dt: float) -> Any:
    """A `nir.NIRGraphData` with one node a neuron layer, whose observable "spikes" is a `nir.EventData`.

    `spikes`: a recording, or bool [N, T, *shape] by layer. `dt`: seconds a step. A neuron's index is its place in C
    order; a spike's time is the beginning of its step, such that `EventData.to_time_gridded(dt)` gives the spike trains
    back, bool [N, T, neurons]. Samples with fewer events than another are filled up with index -1 at time inf.
    Raises `DalifError` (BAD_OPTION) for a dt that is not positive and finite.
    """
    import nir

    if not (math.isfinite(dt) and dt > 0.0):
        raise DalifError(Code.BAD_OPTION, f"dt = {dt}: a timestep lasts a positive, finite time in seconds")
    nodes = {}
    for name, train in _by_layer(spikes).items():
        idx, time = _columns(train, dt)
        end = float(spike_times(np.array([train.shape[1]]), dt)[0])  # int(t_max / dt) is T
        events = nir.EventData(idx=idx, time=time, n_neurons=math.prod(train.shape[2:]), t_max=end)
        nodes[name] = nir.NIRNodeData({OBSERVABLE: events})
    return nir.NIRGraphData(nodes)


def event_arrays(data: Any) -> dict[str, NDArray[np.generic]]:
    """The fields of a `nir.NIRGraphData` as `to_event_data` makes it: `<layer>.idx` int64 [N, E], `<layer>.time`
    float64 [N, E], `<layer>.n_neurons`, `<layer>.t_max`, to be written as an .npz."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, node in data.nodes.items():
        events = node.observables[OBSERVABLE]
        arrays[f"{name}.idx"] = events.idx
        arrays[f"{name}.time"] = events.time
        arrays[f"{name}.n_neurons"] = np.asarray(events.n_neurons, np.int64)
        arrays[f"{name}.t_max"] = np.asarray(events.t_max, np.float64)
    return arrays


def read_event_data(path: str | Path) -> Any:
    """The `nir.NIRGraphData` in an .npz of `event_arrays`.

    Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE, PICKLED; BAD_DATA where it holds something else.
    """
    import nir

    nodes = {}
    with Archive(Path(path)) as archive:
        for name in [name.removesuffix(".idx") for name in archive.names if name.endswith(".idx")]:
            fields = {}
            for field, kinds, ndim in (("idx", "iu", 2), ("time", "f", 2), ("n_neurons", "iu", 0), ("t_max", "f", 0)):
                fields[field] = archive.read(f"{name}.{field}")
                if fields[field].dtype.kind not in kinds or fields[field].ndim != ndim:
                    raise DalifError(
                        Code.BAD_DATA, f"{path}: `{name}.{field}` is {fields[field].dtype} "
                        f"{list(fields[field].shape)}; it was not written as event data",
                    )  # fmt: skip
            if fields["idx"].shape != fields["time"].shape:
                raise DalifError(Code.BAD_DATA, f"{path}: `{name}.idx` and `{name}.time` differ in shape")
            events = nir.EventData(
                idx=fields["idx"], time=fields["time"], n_neurons=int(fields["n_neurons"]),
                t_max=float(fields["t_max"]),
            )  # fmt: skip
            nodes[name] = nir.NIRNodeData({OBSERVABLE: events})
    if not nodes:
        raise DalifError(Code.BAD_DATA, f"{path}: holds no event data; give what dalif-run --event-data wrote")
    return nir.NIRGraphData(nodes)


def _by_layer(spikes: Recording | Spikes) -> Spikes:
    if isinstance(spikes, Recording):
        return {name: train.unpack() for name, train in spikes.spikes.items()}
    for name, train in spikes.items():
        if train.dtype != np.bool_ or train.ndim < 3:
            raise DalifError(
                Code.BAD_DATA, f"spikes of '{name}': {train.dtype} {list(train.shape)}; bool [N, T, ...] is needed"
            )
    return spikes


def _columns(train: NDArray[np.bool_], dt: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """idx and time, [N, E], the events of every sample in order of time, then of neuron."""
    flat = train.reshape(*train.shape[:2], -1)
    sample, step, neuron = np.nonzero(flat)
    counts = np.bincount(sample, minlength=len(flat))
    place = np.arange(len(sample)) - (np.cumsum(counts) - counts)[sample]
    shape = (len(flat), int(counts.max(initial=0)))
    idx, time = np.full(shape, -1, np.int64), np.full(shape, np.inf)
    idx[sample, place] = neuron
    time[sample, place] = spike_times(step, dt)
    return idx, time
