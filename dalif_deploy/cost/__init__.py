"""What a network costs: parameters, operations and energy, counted as the DA-LIF paper does and as others do."""

from dalif_deploy.cost.events import EventCounter, Events
from dalif_deploy.cost.operations import NodeOperations, operations_of
from dalif_deploy.cost.totals import (
    AC_PICOJOULES,
    MAC_PICOJOULES,
    Cost,
    EventDriven,
    NeuroBenchCounts,
    SyopsCounts,
    acs_of,
    cost_of,
    event_driven_of,
    neurobench_counts,
    syops_counts,
)

__all__ = [
    "AC_PICOJOULES",
    "MAC_PICOJOULES",
    "Cost",
    "EventCounter",
    "EventDriven",
    "Events",
    "NeuroBenchCounts",
    "NodeOperations",
    "SyopsCounts",
    "acs_of",
    "cost_of",
    "event_driven_of",
    "neurobench_counts",
    "operations_of",
    "syops_counts",
]
