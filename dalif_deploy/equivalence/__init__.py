"""Whether two runs fired alike, and if not, where and why. Knows graphs and recordings, never a runtime."""

from dalif_deploy.equivalence.compare import Comparer
from dalif_deploy.equivalence.judge import Contradiction, Precision, contradictions
from dalif_deploy.equivalence.parameters import ParameterDifference, compare_parameters
from dalif_deploy.equivalence.replay import NeuronStep, replay, simulate
from dalif_deploy.equivalence.verdict import Comparison, Gains, Outcome, RuntimeComparison, Verdict

__all__ = [
    "Comparer",
    "Comparison",
    "Contradiction",
    "Gains",
    "NeuronStep",
    "Outcome",
    "ParameterDifference",
    "Precision",
    "RuntimeComparison",
    "Verdict",
    "compare_parameters",
    "contradictions",
    "replay",
    "simulate",
]
