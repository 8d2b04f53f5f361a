"""Folds the normalisation of a potential before its comparison into the threshold.

A neuron that fires where gain (V - mean) + bias reaches v_th (Guo et al., ICCV 2023) becomes one that compares its
potential itself. With o = bias - gain * mean, channel by channel:

1. gain > 0: the threshold becomes (v_th - o) / gain.
2. gain < 0: gain V + o >= v_th says V <= (v_th - o) / gain, so the comparison flips. The potential is mirrored
   instead: alpha, V_reset, the leak target and `potential_scale` change their signs, and the threshold becomes
   (v_th - o) / |gain|. The rule (>= or >) stays what it is.
3. gain = 0: o is compared, whatever V is, so the neuron fires always or never. Its input gain, V_reset and leak
   target become 0, so that V is 0, and the threshold becomes -1 or 1.

A state that does not start at 0 can neither be mirrored nor dropped: refused by name under rules 2 and 3.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Neuron, Node, frozen
from dalif_deploy.passes.contract import OWN_COMPARISON, Pass


def _fold(graph: SpikingGraph) -> SpikingGraph:
    changes: dict[str, Node] = {}
    notes: list[str] = []
    for neuron in graph.neurons:
        if neuron.normalised:
            changes[neuron.name] = _compares_itself(neuron)
            gain = neuron.norm_gain
            how = [f"{np.sum(gain < 0)} mirrored" * bool((gain < 0).any()), f"{np.sum(gain == 0)} constant" * bool(
                (gain == 0).any())]  # fmt: skip
            which = ", ".join(part for part in how if part)
            notes.append(
                f"{neuron.name}: normalisation of the potential folded into the threshold" + f" ({which})" * bool(which)
            )
    return graph.replaced(changes, note=notes) if changes else graph


def _compares_itself(neuron: Neuron) -> Neuron:
    gain = neuron.norm_gain
    sign = np.sign(gain)
    if np.any(sign != 1.0) and any(variable.initial for variable in neuron.state):
        raise DalifError(
            Code.BAD_GRAPH,
            f"node '{neuron.name}' (Neuron): a state that does not start at 0 cannot be mirrored, as a normalisation "
            "with a gain of 0 or below asks for",
        )
    offset = neuron.norm_bias - gain * neuron.norm_mean
    always = offset >= neuron.v_threshold if neuron.fires_at == "ge" else offset > neuron.v_threshold
    size = np.where(gain == 0.0, 1.0, np.abs(gain))
    threshold = np.where(gain == 0.0, np.where(always, -1.0, 1.0), (neuron.v_threshold - offset) / size)
    return replace(
        neuron,
        alpha=frozen(neuron.alpha * sign),
        v_threshold=frozen(threshold),
        v_reset=frozen(neuron.v_reset * sign),
        leak_target=frozen(neuron.leak_target * sign),
        potential_scale=frozen(neuron.potential_scale * np.where(gain < 0.0, -1.0, 1.0)),
        trained_alpha=neuron.alpha if neuron.trained_alpha is None else neuron.trained_alpha,
        norm_gain=frozen(1.0),
        norm_mean=frozen(0.0),
        norm_bias=frozen(0.0),
    )


fold_comparison = Pass("fold_comparison", _fold, ensures=(OWN_COMPARISON,))
