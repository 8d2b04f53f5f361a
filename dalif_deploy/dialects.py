"""What each NIR simulator does with a .nir file, as data: one record a simulator, and the canonical form.

NIR fixes equations, not their discretisation: the length of a timestep, what happens at the threshold, the
reset and the meaning of `r` are each reader's own. The records hold what was measured with the versions
they name; they contain no logic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dalif_deploy.nodes import ThresholdRule

DT = 1e-4
"""Seconds a timestep in every dialect; snntorch knows no other."""

NEVER_LEAKS = 2.0**60
"""tau in timesteps that stands for beta = 1 in a LIF: 1 - 2^-60 is 1 in float64, and so is exp(-2^-60)."""

FORGETS = 2.0**-10
"""tau in timesteps that stands for beta = 0 where the leak is exponential: exp(-2^10) is 0 in float64."""

Limit = Literal[
    "v_reset other than 0 in a LIF",
    "v_reset other than 0 in an IF",
    "beta below 0",
    "beta = 0",
    "beta = 1 as an IF",
    "a gain almost 1",
    "leaks that differ within a layer",
    "gains that differ within a layer",
    "thresholds that differ within a layer",
    "a threshold below 0",
    "a padded sum pool",
]
"""What some reader does not take as it is meant; `nir_rules` finds it in a file."""

UNSAYABLE: Mapping[str, str] = {
    "a maximum of anything but spikes": "module 'nir' has no attribute 'MaxPool2d'",
    "averages over open windows (ceil_mode)": "unexpected keyword argument 'ceil_mode'",
    "averages that do not count the padding": "unexpected keyword argument 'count_include_pad'",
    "kernels whose height and width differ by an odd number": "type mismatch: conv.output",
    "an offset of a map that differs within a channel": "type mismatch: input.output",
}
"""What NIR has no words for, and what the package nir says to whoever tries; averages that a linear layer alone reads
apart, whose division goes into its weights."""

_POOLS = "a sum pool is an average times its size: of spikes exact for windows up to 4x4, not for 5x5 and 7x7"

_KINDS = frozenset({"Input", "Output", "Affine", "Linear", "Conv2d", "SumPool2d", "AvgPool2d", "Flatten", "LIF", "IF"})


@dataclass(frozen=True)
class Refusal:
    """One limit of one reader. `does`: what the reader makes of it. `says`: the error that it raises, as its own
    text; empty where it goes on without a word."""

    limit: Limit
    does: str
    says: str = ""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one reader takes a .nir file, and how a file for it is written.

    `package`, `version`: what was measured. `dt`: how the reader gets its timestep. `decay`: its update of
    the potential v by the input x, tau in steps. `fires_at`, `reset`: its rules. `r`: what it does with the
    resistance. `takes`: the NIR node kinds it reads. `refusals`: what of these it does not take as it is meant.
    `own_only`: why it reads no canonical file as it is meant, but only those in its own dialect; empty where it does.

    Its own files: `potential` is what their neurons hold: "scaled", v = (1 - beta) V with r = 1, and V in an IF
    where beta = 1; or "unit", v = V, and a LIF that never leaks where beta = 1. `leak`: how beta follows from tau:
    "euler", 1 - dt / tau, in seconds, and r = tau / dt for a potential in units; or "exponential", exp(-1 / tau), in
    steps, and r = 1. `tie`: the reader's own float32 potential after one step from rest with X = v_th, in words;
    `nir_neurons` computes it.

    `inexact`: why its reader does not compute V = fl(fl(beta H) + X), as exact files are defined; empty where it does.

    `quirks`: what to steer round. `call`: the expression that loads the file at `path`, given the packages it
    names; `call_with_sums`: the one for a file in which a node has several inputs or readers, where it differs.
    """

    name: str
    package: str
    version: str
    dt: str
    decay: str
    fires_at: ThresholdRule
    reset: str
    r: str
    takes: frozenset[str] = _KINDS
    refusals: tuple[Refusal, ...] = ()
    own_only: str = ""
    potential: Literal["scaled", "unit"] = "scaled"
    leak: Literal["euler", "exponential"] = "euler"
    tie: str = ""
    inexact: str = ""
    quirks: tuple[str, ...] = ()
    call: str
    call_with_sums: str = ""


CANONICAL = Dialect(
    name="canonical",
    package="dalif_deploy",
    version="1",
    dt="1e-4, in the metadata",
    decay="v + (x - v) / tau; beta = 1 - dt / tau; v is (1 - beta) times the folded graph's potential",
    fires_at="ge",
    reset="hard, to v_reset",
    r="1 in LIF, 1 / dt in IF",
    inexact="it holds (1 - beta) V, which every reader rounds in its own way",
    quirks=(
        "the threshold rule is in the metadata: NIR says v > v_threshold, the DA-LIF paper V >= v_th",
        "(1 - beta) v_th is rounded by every reader in its own way: right away from ties, V = v_th",
    ),
    call="dalif_deploy.capturing.nir.read_nir(path)",
)

NORSE = Dialect(
    name="norse",
    package="norse",
    version="1.1.0",
    dt="argument, default 1e-3",
    decay="v + dt (1 / tau) (x - v), parameters in float32; IF: v + x",
    fires_at="gt",
    reset="hard, to 0",
    r="ignored",
    refusals=(
        Refusal("v_reset other than 0 in a LIF", "resets to 0"),
        Refusal("v_reset other than 0 in an IF", "resets to 0"),
        Refusal("a padded sum pool", "drops the padding"),
    ),
    tie="dt fl(1 / fl(tau)) v_th; IF: v_th",
    inexact="norse computes v + dt (1 / tau) (x - v), which rounds otherwise than beta v + x",
    quirks=(
        "from_nir runs nodes in the wrong order where one has several inputs, and knows no AvgPool2d",
        _POOLS,
        "parameters are rounded to float32",
    ),
    call="norse.torch.from_nir(nir.read(path), dt=1e-4)",
    call_with_sums=(
        "nirtorch.nir_to_torch(path, dict.fromkeys((nir.Affine, nir.Linear, nir.Conv2d, nir.Flatten, nir.SumPool2d, "
        "nir.LIF, nir.IF), functools.partial(norse.torch.utils.import_nir._import_norse_module, dt=1e-4)))"
    ),
)

_TAU = "nir.LIF.tau / dt must be finite and greater than 1."

SPIKINGJELLY = Dialect(
    name="spikingjelly",
    package="spikingjelly",
    version="2.0.0",
    dt="argument, default 1e-4",
    decay="v + (x - v) / tau; IF: v + x",
    fires_at="ge",
    reset="hard, to v_reset",
    r="1 or tau / dt in LIF, 1 / dt in IF; else refused",
    refusals=(
        Refusal("v_reset other than 0 in a LIF", "refuses it", "nir.LIF.v_leak must equal v_reset."),
        Refusal("v_reset other than 0 in an IF", "starts from it too"),
        Refusal("beta below 0", "refuses it", _TAU),
        Refusal("beta = 0", "refuses it", _TAU),
        Refusal("leaks that differ within a layer", "refuses it", "nir.LIF.tau must be uniform across all neurons."),
        Refusal(
            "thresholds that differ within a layer", "refuses it", "v_threshold must be uniform across all neurons."
        ),
        Refusal("a padded sum pool", "drops the padding"),
    ),
    tie="fl(v_th / fl(tau / dt)); IF: v_th",
    inexact="spikingjelly computes v + (x - v) / tau, which rounds otherwise than beta v + x",
    quirks=(
        "the state is explicit: pass it back at every step",
        _POOLS,
        "SumPool2d fails in step mode 'm'",
    ),
    call="spikingjelly.activation_based.nir_exchange.import_from_nir(path, dt=1e-4)",
)

SNNTORCH = Dialect(
    name="snntorch",
    package="snntorch",
    version="1.0.0",
    dt="1e-4, fixed",
    decay="beta v + x, with the threshold divided by the gain r dt / tau",
    fires_at="gt",
    reset="hard, to 0",
    r="honoured: scales the threshold, where r dt / tau is not within 1e-5 of 1",
    refusals=(
        Refusal("v_reset other than 0 in a LIF", "resets to 0"),
        Refusal("beta below 0", "takes it for 0"),
        Refusal("beta = 1 as an IF", "refuses it", "r != 1 not supported"),
        Refusal("a gain almost 1", "takes it for 1"),
        Refusal("gains that differ within a layer", "takes one of them for all"),
        Refusal("thresholds that differ within a layer", "refuses it", "v_threshold must be same for all neurons"),
        Refusal("a threshold below 0", "takes a neuron that rests for one that fired"),
        Refusal("a padded sum pool", "drops the padding"),
    ),
    potential="unit",
    tie="v_th",
    quirks=(
        "an IF with r = 1 becomes a Leaky with beta 0.9 and a subtract reset",
        _POOLS,
        "neurons hold their own state: call snntorch.utils.reset(net) before every batch",
        "import_from_nir prints to standard output",
    ),
    call="snntorch.import_nir.import_from_nir(nir.read(path))",
)

SINABS = Dialect(
    name="sinabs",
    package="sinabs",
    version="3.1.3",
    dt="none: tau counts steps",
    decay="exp(-1 / tau) v + x, tau in float32; IF: v + x",
    fires_at="ge",
    reset="imported: subtract, several spikes a step; its option: hard, to 0",
    r="ignored",
    takes=_KINDS - {"AvgPool2d", "Linear"},
    refusals=(
        Refusal("v_reset other than 0 in a LIF", "ignores it"),
        Refusal("beta below 0", "takes exp(-1 / tau) for beta"),
        Refusal("beta = 1 as an IF", "keeps its potential above -v_threshold"),
        Refusal("a padded sum pool", "drops the padding"),
    ),
    own_only="it takes tau for a number of steps, and beta for exp(-1 / tau)",
    potential="unit",
    leak="exponential",
    tie="v_th",
    quirks=(
        "from_nir imports neurons that fire several spikes a step and subtract; set spike_fn and reset_fn of each",
        "its v_leak check fails for feature maps; in its dialect linear layers have a bias and there is no AvgPool2d",
        "exp(-1 / tau) of a float32 tau misses some float32 beta below 1/2; alpha_mem with train_alphas holds them all",
        "from_nir runs nodes in the wrong order where one has several inputs",
        _POOLS,
        "a batch of another size starts from a random choice of the last one's potentials: initialise the state",
        "declares nir<=1.0.4, which does not load files of nir 1.0.8",
    ),
    call="dalif_deploy.runtimes.sinabs.SinabsRuntime(path)",
)

SIMULATORS: Mapping[str, Dialect] = {record.name: record for record in (NORSE, SPIKINGJELLY, SNNTORCH, SINABS)}
"""The simulators by name."""

DIALECTS: Mapping[str, Dialect] = {record.name: record for record in (CANONICAL, *SIMULATORS.values())}
"""What a file can be written in, by name: the canonical form, and a dialect for every reader."""
