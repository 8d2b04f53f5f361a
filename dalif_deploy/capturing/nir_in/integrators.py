"""Leaky integrators that do not fire: LI, I and CubaLI, and the synaptic current of the Cuba kinds.

    y[t] = gain x[t] + (beta y[t-1] + (1 - beta) rest)

is written with a sum that hears itself one step before. What is not there before step 0 is 0, which is where an
integrator starts.
"""

from __future__ import annotations

import numpy as np

from dalif_deploy.capturing.nir_in.rules import Place
from dalif_deploy.nodes import Add, Array, Edge, Node, Scale, frozen


def integrator(name: str, source: Edge, *, gain: Array, beta: Array, rest: Array | None = None) -> list[Node]:
    """The nodes of one integrator; the last is called `name`. Parameters broadcast against the shape."""
    nodes: list[Node] = []
    if np.any(gain != 1.0):
        nodes.append(Scale(name=f"{name}.gain", inputs=(source,), factor=gain, offset=frozen(0.0)))
        source = Edge(nodes[0].name)
    offset = frozen(0.0) if rest is None or not rest.any() else frozen((1.0 - beta) * rest)
    kept = Scale(name=f"{name}.kept", inputs=(Edge(name, 1),), factor=beta, offset=offset)
    return [*nodes, kept, Add(name=name, inputs=(source, Edge(kept.name)))]


def decay(place: Place, key: str) -> Array:
    """1 - dt / tau of forward Euler."""
    beta = frozen(1.0 - place.dt() / place.positive(key))
    if np.any(beta < 0.0):
        place.rules.say(f"{key} is shorter than a timestep, so that forward Euler overshoots", place.name)
    return beta


def synapse(place: Place, name: str) -> list[Node]:
    """tau_syn dI/dt = -I + w_in x."""
    gain = frozen(place.parameter("w_in", 1.0) * (place.dt() / place.positive("tau_syn")))
    return integrator(name, place.source, gain=gain, beta=decay(place, "tau_syn"))


def li(place: Place) -> list[Node]:
    """tau dv/dt = (v_leak - v) + r x."""
    gain = frozen(place.parameter("r") * (place.dt() / place.positive("tau")))
    return integrator(
        place.name, place.source, gain=gain, beta=decay(place, "tau"), rest=place.parameter("v_leak", 0.0)
    )


def i(place: Place) -> list[Node]:
    """dv/dt = r x."""
    return integrator(place.name, place.source, gain=frozen(place.parameter("r") * place.dt()), beta=frozen(1.0))


def cuba_li(place: Place) -> list[Node]:
    """A synapse, whose current of the same step drives the membrane: tau_mem dv/dt = (v_leak - v) + r I."""
    current = f"{place.name}.current"
    gain = frozen(place.parameter("r") * (place.dt() / place.positive("tau_mem")))
    return [
        *synapse(place, current),
        *integrator(
            place.name, Edge(current), gain=gain, beta=decay(place, "tau_mem"), rest=place.parameter("v_leak", 0.0)
        ),
    ]
