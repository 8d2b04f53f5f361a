"""Tells dalif_deploy what a PulseCell computes; given with --adapter."""

from pulse_net import PulseCell

from dalif_deploy import NeuronParameters, register_neuron

register_neuron(
    PulseCell,
    lambda cell: NeuronParameters(
        alpha=cell.drive(), beta=cell.keep(), v_threshold=cell.barrier, v_reset=cell.floor, membrane="charge"
    ),
)
