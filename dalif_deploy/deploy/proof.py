"""The proofs that run after capture and after every folding pass, on the graph at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.capturing import CapturedModule
from dalif_deploy.equivalence import Arithmetic, Comparer, Comparison, NeuronStep, Outcome, Precision, replay, simulate
from dalif_deploy.equivalence.judge import SHARE
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Array
from dalif_deploy.operators import Values
from dalif_deploy.passes import FOLDING
from dalif_deploy.recording import Recording

PROVED_SAMPLES = 4
_WHY = (
    "the reader of this neuron class gives other parameters or rules than the class uses, or this is a fault of the "
    "capture"
)


def prove_capture(captured: CapturedModule, batches: Iterable[NDArray[np.generic]], precision: Precision) -> Recording:
    """The user's own module against the captured graph: spikes on all batches in the module's own dtype, and in
    float64, on a few samples of the first, every neuron's input current and potential after the reset. Those
    may differ by float64 rounding only: a BatchNorm epsilon of 1.01e-5 or a leak of 0.2500001 shows, though
    either may leave every spike as it is.

    A spike may differ only where rounding explains it. Returns what the module fired.
    Raises `DalifError` (CAPTURE_MISMATCH), naming layer, step and index.
    """
    graph = captured.graph
    comparer = Comparer("module", graph, arithmetic=Arithmetic.of_module(graph, precision))
    fired = []
    for number, batch in enumerate(batches):
        if number == 0:
            _prove_potentials(captured, batch[:PROVED_SAMPLES])
        fired.append(captured.run(graph.input_spec.module_input(batch)))
        comparer.add(batch, simulate(graph, batch), fired[-1])
    result = comparer.result()
    if result.outcome > Outcome.ROUNDING:
        first = result.origins[0]
        raise DalifError(
            Code.CAPTURE_MISMATCH,
            f"layer '{first.layer}', step {first.t}, index {list(first.index)} of sample {first.sample}: the module "
            f"{'fired' if first.fired else 'did not fire'}, the captured graph has a potential of "
            f"{first.potential:.9g} at a threshold of {first.threshold:.9g}; {_WHY}",
        )
    return Recording.joined(fired)


def _prove_potentials(captured: CapturedModule, batch: NDArray[np.generic]) -> None:
    graph = captured.graph
    inputs = graph.input_spec.module_input(batch)
    currents: Mapping[str, Array] = captured.currents(inputs)
    held: Mapping[str, Array] = captured.membranes(inputs)
    fired = captured.run_float64(inputs).spikes

    def visit(step: NeuronStep) -> None:
        name, t = step.neuron.name, step.t
        assert step.current_error is not None
        assert step.bound is not None
        # The module's own spikes are followed: where V is v_th, its rounding may decide otherwise than the graph's.
        far = np.abs(step.compared - step.neuron.v_threshold) > SHARE["float64"] * step.bound
        _fires_alike(step, fired[name].step(t), far)
        _same(name, t, "feeds it", currents[name][:, t], step.current, step.current_error)
        if name in held:
            expected = step.potential if name in captured.before_reset else step.held
            _same(name, t, "holds a potential of", held[name][:, t], expected, step.bound)

    replay(graph, batch, visit, history=fired, update="own")


def _fires_alike(step: NeuronStep, fired: NDArray[np.bool_], far: NDArray[np.bool_]) -> None:
    wrong = (fired != step.fires) & far
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise DalifError(
            Code.CAPTURE_MISMATCH,
            f"layer '{step.neuron.name}', step {step.t}, index {list(place[1:])} of sample {place[0]}: in float64 the "
            f"module {'fired' if fired[place] else 'did not fire'}, the captured graph has a potential of "
            f"{step.compared[place]:.17g} at a threshold of {_at(step.neuron.v_threshold, place, fired.shape):.17g}; "
            f"{_WHY}",
        )


def _at(values: Array, place: tuple[int, ...], shape: tuple[int, ...]) -> float:
    return float(np.broadcast_to(values, shape)[place])


def _same(name: str, t: int, what: str, module: Array, graph: Values, bound: Values) -> None:
    gap = np.abs(module - graph)
    wrong = gap > SHARE["float64"] * bound
    if not wrong.any():
        return
    place = tuple(int(i) for i in np.unravel_index(int(np.argmax(np.where(wrong, gap, 0.0))), gap.shape))
    raise DalifError(
        Code.CAPTURE_MISMATCH,
        f"layer '{name}', step {t}, index {list(place[1:])} of sample {place[0]}: the module {what} "
        f"{module[place]:.17g}, the captured graph {graph[place]:.17g}; {_WHY}",
    )


def prove_folding(graph: SpikingGraph, batches: Iterable[NDArray[np.generic]]) -> tuple[SpikingGraph, Comparison]:
    """The folded graph, every pass of it proved against the training graph, both in float64.

    Raises `DalifError` (FOLD_MISMATCH), naming the pass, layer, step and index, and what the passes raise.
    """
    stages = []
    folded = graph
    for step in FOLDING:
        folded = step(folded)
        stages.append(
            (step.name, folded, Comparer(step.name, graph, arithmetic=Arithmetic("float64"), ties_tell=False))
        )
    for batch in batches:
        reference = simulate(graph, batch)
        for _, stage, comparer in stages:
            comparer.add(batch, reference, simulate(stage, batch))
    results = [(name, comparer.result()) for name, _, comparer in stages]
    for name, result in results:
        if result.outcome > Outcome.ROUNDING:
            first = result.origins[0]
            raise DalifError(
                Code.FOLD_MISMATCH,
                f"layer '{first.layer}', step {first.t}, index {list(first.index)} of sample {first.sample}: after the "
                f"pass {name} it fires otherwise than the training graph (margin {first.margin:.3g}); this is a "
                "fault of the pass, please report it with the model",
            )
    return folded, results[-1][1]
