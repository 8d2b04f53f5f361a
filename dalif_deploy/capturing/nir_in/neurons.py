"""What fires: LIF, IF, CubaLIF and Threshold.

All are integrated by forward Euler, as the NIR text says: tau dv/dt = (v_leak - v) + r x becomes

    V[t] = v_leak + beta (H[t-1] - v_leak) + alpha X[t]     beta = 1 - dt / tau, alpha = r dt / tau
"""

from __future__ import annotations

import numpy as np

from dalif_deploy.capturing.nir_in.integrators import decay, synapse
from dalif_deploy.capturing.nir_in.rules import Place
from dalif_deploy.errors import Code
from dalif_deploy.nodes import Array, Edge, Neuron, Node, frozen


def lif(place: Place) -> list[Node]:
    """tau dv/dt = (v_leak - v) + r x, and a spike."""
    gain = frozen(place.parameter("r") * (place.dt() / place.positive("tau")))
    return [_firing(place, place.source, alpha=gain, beta=decay(place, "tau"), leak=place.parameter("v_leak", 0.0))]


def cuba_lif(place: Place) -> list[Node]:
    """A synapse, whose current of the same step drives the membrane of a LIF: tau_mem dv/dt = (v_leak - v) + r I."""
    current = f"{place.name}.current"
    gain = frozen(place.parameter("r") * (place.dt() / place.positive("tau_mem")))
    leak = place.parameter("v_leak", 0.0)
    return [
        *synapse(place, current),
        _firing(place, Edge(current), alpha=gain, beta=decay(place, "tau_mem"), leak=leak),
    ]


def integrate_and_fire(place: Place) -> list[Node]:
    """dv/dt = r x, and a spike. r = 1 / dt, the equation's unit gain, and r = 1, as simulators write it, are both 1."""
    r = place.parameter("r")
    unit = np.ones_like(r, dtype=bool) & (r == 1.0)
    if np.all(unit):
        place.rules.say("IF with r = 1 taken as unit gain", place.name)
        gain = frozen(np.ones_like(r))
    else:
        scaled = r * place.dt()
        by_equation = np.abs(scaled - 1.0) <= 1e-6  # r may have been stored in float32
        gain = frozen(np.where(unit | by_equation, 1.0, scaled))
        if np.any(unit & ~by_equation):
            place.rules.say("IF with r = 1 taken as unit gain", place.name)
        if np.any(by_equation):
            place.rules.say("IF with r = 1 / dt taken as unit gain", place.name)
        if np.any(gain != 1.0):
            place.rules.say("IF with gain dt * r", place.name)
    return [_firing(place, place.source, alpha=gain, beta=frozen(1.0), leak=frozen(0.0))]


def threshold(place: Place) -> list[Node]:
    """A spike where x is beyond the threshold; nothing is kept."""
    return [
        Neuron(
            name=place.name, inputs=(place.source,), alpha=frozen(1.0), beta=frozen(0.0),
            v_threshold=place.parameter("threshold"), reset="none", fires_at=place.rules.fires_at,
        )
    ]  # fmt: skip


def _firing(place: Place, source: Edge, *, alpha: Array, beta: Array, leak: Array) -> Neuron:
    reset = place.parameter("v_reset", 0.0)
    if place.rules.reset == "subtract" and reset.any():
        raise place.refuse(
            "has a v_reset other than 0, which --reset subtract has no use for; leave it out, or mend the file",
            Code.AMBIGUOUS,
        )
    return Neuron(
        name=place.name, inputs=(source,), alpha=alpha, beta=beta, v_threshold=place.parameter("v_threshold"),
        v_reset=reset, leak_target=leak, reset=place.rules.reset, fires_at=place.rules.fires_at,
    )  # fmt: skip
