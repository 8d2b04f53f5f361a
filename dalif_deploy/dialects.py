"""What each NIR simulator does with a .nir file, as data: one record a simulator, and the canonical form.

NIR fixes equations, not their discretisation: the length of a timestep, what happens at the threshold, the
reset and the meaning of `r` are each reader's own. The records hold what was measured with the versions
they name; they contain no logic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dalif_deploy.nodes import ResetRule, ThresholdRule

DT = 1e-4
"""Seconds a timestep in the canonical form; snntorch knows no other."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one reader takes a .nir file.

    `package`, `version`: what was measured. `dt`: how the reader gets its timestep. `decay`: its update of
    the potential v by the input x, tau in steps. `fires_at`, `reset`: its rules. `honours_v_reset`: whether
    a reset to another value than 0 is taken from the file. `r`: what it does with the resistance.

    `takes`: the NIR node kinds it reads rightly. `beta_above`: the leak 1 - dt / tau must be greater, or the
    reader refuses it; `beta_from`: a lower one is misread; `beta_gap`: so are those between 0 and this.
    `uniform`: the parameters that must be equal over a layer. `nonnegative_threshold`: whether a negative
    one is misread. `sum_pool_padding`: whether a sum pool's padding is kept. `usable`: False where no file
    makes this reader fire the network's spikes.

    `quirks`: what to steer round. `cannot_hold`: what no file in this dialect can say. `call`: the expression
    that loads the file at `path`, given the packages it names; `call_with_sums`: the one for a file in which
    a node has several inputs or readers, where it differs.
    """

    name: str
    package: str
    version: str
    dt: str
    decay: str
    fires_at: ThresholdRule
    reset: ResetRule
    honours_v_reset: bool
    r: str
    takes: frozenset[str]
    beta_above: float = -math.inf
    beta_from: float = -math.inf
    beta_gap: float = 0.0
    uniform: tuple[Literal["tau", "v_threshold"], ...] = ()
    nonnegative_threshold: bool = False
    sum_pool_padding: bool = False
    usable: bool = True
    quirks: tuple[str, ...] = ()
    cannot_hold: tuple[str, ...] = ()
    call: str = ""
    call_with_sums: str = ""


_STATELESS = frozenset({"Input", "Output", "Affine", "Linear", "Conv2d", "SumPool2d", "Flatten"})

CANONICAL = Dialect(
    name="canonical",
    package="dalif_deploy",
    version="1",
    dt="1e-4, in the metadata",
    decay="v + (x - v) / tau; beta = 1 - dt / tau; v is (1 - beta) times the folded graph's potential",
    fires_at="ge",
    reset="hard",
    honours_v_reset=True,
    r="1 in LIF, 1 / dt in IF",
    takes=_STATELESS | {"AvgPool2d", "LIF", "IF"},
    sum_pool_padding=True,
    quirks=(
        "the threshold rule is in the metadata: NIR says v > v_threshold, the DA-LIF paper V >= v_th",
        "(1 - beta) v_th is rounded by every reader in its own way: right away from ties, V = v_th",
    ),
    cannot_hold=(
        "a subtract reset",
        "a leak target other than 0",
        "beta above 1",
        "a layer in which beta is 1 for some neurons only",
        "delayed edges",
        "max pools",
        "pools with open windows (ceil_mode) or with averages that leave out padding",
        "factors that differ from place to place of a feature map",
        "nodes after the readout",
    ),
    call="dalif_deploy.capturing.nir.read_nir(path)",
)

NORSE = Dialect(
    name="norse",
    package="norse",
    version="1.1.0",
    dt="argument, default 1e-3",
    decay="v + dt * (1 / tau) * (x - v), parameters in float32; IF: v + x",
    fires_at="gt",
    reset="hard",
    honours_v_reset=False,
    r="ignored",
    takes=_STATELESS | {"AvgPool2d", "LIF", "IF"},
    quirks=(
        "from_nir runs nodes in the wrong order where one has several inputs, and knows no AvgPool2d",
        "SumPool2d loses its padding and multiplies an average",
        "parameters are rounded to float32",
    ),
    cannot_hold=("v_reset other than 0", "r other than 1"),
    call="norse.torch.from_nir(nir.read(path), dt=1e-4)",
    call_with_sums=(
        "nirtorch.nir_to_torch(path, dict.fromkeys((nir.Affine, nir.Linear, nir.Conv2d, nir.Flatten, nir.SumPool2d, "
        "nir.LIF, nir.IF), functools.partial(norse.torch.utils.import_nir._import_norse_module, dt=1e-4)))"
    ),
)

SPIKINGJELLY = Dialect(
    name="spikingjelly",
    package="spikingjelly",
    version="2.0.0",
    dt="argument, default 1e-4",
    decay="v + (x - v) / tau; IF: v + x",
    fires_at="ge",
    reset="hard",
    honours_v_reset=False,
    r="1 or tau / dt in LIF, 1 / dt in IF; else refused",
    takes=_STATELESS | {"AvgPool2d", "LIF", "IF"},
    beta_above=0.0,
    uniform=("tau", "v_threshold"),
    quirks=(
        "the state is explicit: pass it back at every step",
        "v_reset is honoured, but must equal v_leak, and an IF starts from it",
        "SumPool2d loses its padding and fails in step mode 'm'",
    ),
    cannot_hold=("v_reset other than v_leak", "parameters that differ within a layer", "tau <= dt"),
    call="spikingjelly.activation_based.nir_exchange.import_from_nir(path, dt=1e-4)",
)

SNNTORCH = Dialect(
    name="snntorch",
    package="snntorch",
    version="1.0.0",
    dt="1e-4, fixed",
    decay="beta * v + x, with the threshold divided by r dt / tau",
    fires_at="gt",
    reset="hard",
    honours_v_reset=False,
    r="honoured: scales the threshold, where it is not within 1e-5 of tau / dt",
    takes=_STATELESS | {"AvgPool2d", "LIF"},
    beta_from=0.0,
    beta_gap=1.1e-5,
    uniform=("tau", "v_threshold"),
    nonnegative_threshold=True,
    quirks=(
        "beta below 0 is clamped to 0 without a word",
        "an IF becomes a Leaky with beta 0.9 and a subtract reset, or is refused for its r",
        "a gain within 1e-5 of 1 is taken for 1",
        "SumPool2d loses its padding and multiplies an average",
        "neurons hold their own state: call snntorch.utils.reset(net) before every batch",
    ),
    cannot_hold=("beta = 1", "beta below 0", "v_reset other than 0", "thresholds that differ within a layer"),
    call="snntorch.import_nir.import_from_nir(nir.read(path))",
)

SINABS = Dialect(
    name="sinabs",
    package="sinabs",
    version="3.1.3",
    dt="none: tau counts steps",
    decay="exp(-1 / tau) v + (1 - exp(-1 / tau)) x",
    fires_at="ge",
    reset="subtract",
    honours_v_reset=False,
    r="ignored",
    takes=_STATELESS | {"LIF", "IF"},
    usable=False,
    quirks=(
        "resets by subtraction and fires several spikes a step",
        "takes tau for a number of steps, and decays by exp(-1 / tau)",
        "its v_leak check fails for feature maps; an IF clamps the potential at -v_threshold",
        "declares nir<=1.0.4, which does not load files of nir 1.0.8",
    ),
    cannot_hold=("a hard reset",),
    call="sinabs.from_nir(path)",
)

SIMULATORS: Mapping[str, Dialect] = {record.name: record for record in (NORSE, SPIKINGJELLY, SNNTORCH, SINABS)}
"""The simulators by name."""

DIALECTS: Mapping[str, Dialect] = {CANONICAL.name: CANONICAL, **SIMULATORS}
"""Every dialect by name; "canonical" is the one that files are written in."""
