"""Whether two runs fired alike, and if not, where and why. Knows graphs and recordings, never a runtime."""

from dalif_deploy.equivalence.cause import Cause, Explanation, TrajectoryStep
from dalif_deploy.equivalence.compare import Comparer, Known
from dalif_deploy.equivalence.findings import Findings, NeuronStepFinding
from dalif_deploy.equivalence.judge import Arithmetic, Judgement, Precision, judge
from dalif_deploy.equivalence.membrane import Update
from dalif_deploy.equivalence.parameters import ParameterDifference, compare_parameters
from dalif_deploy.equivalence.replay import NeuronStep, replay, simulate
from dalif_deploy.equivalence.rounding import Grids
from dalif_deploy.equivalence.verdict import Comparison, Gains, Outcome, RuntimeComparison, Verdict

__all__ = [
    "Arithmetic",
    "Cause",
    "Comparer",
    "Comparison",
    "Explanation",
    "Gains",
    "Grids",
    "Judgement",
    "Known",
    "NeuronStep",
    "Findings",
    "NeuronStepFinding",
    "Outcome",
    "ParameterDifference",
    "Precision",
    "RuntimeComparison",
    "TrajectoryStep",
    "Update",
    "Verdict",
    "compare_parameters",
    "judge",
    "replay",
    "simulate",
]
