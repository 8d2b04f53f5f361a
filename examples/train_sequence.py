"""DALIF layers that run all timesteps in one call, so that what lies between them sees them all at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dalif_deploy import DALIF


class SequenceDALIF(DALIF):
    """A DALIF layer for training: takes T timesteps [T * B, ...], step by step in time, and returns their spikes.

    Between such layers time is part of the batch. So BatchNorm normalises over all timesteps together, which is
    what it does with its running statistics later, and a convolution is called once for all of them. What the layer
    computes is what DALIF computes in T calls; its parameters have the same names, so that a state_dict of the one
    network loads into the other.

    `repeats`: the input is [B, ...], the same at every timestep. Arguments as DALIF, and `timesteps`, T.
    """

    def __init__(self, *, timesteps: int, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.timesteps = timesteps
        self.repeats = False

    def forward(self, x: Tensor) -> Tensor:
        """Spikes [T * B, ...]."""
        self.reset_state()
        steps = [x] * self.timesteps if self.repeats else x.chunk(self.timesteps)
        spikes = [DALIF.forward(self, step) for step in steps]
        self.reset_state()  # no autograd history is kept alive
        return torch.cat(spikes)


def repeat_from_first(network: nn.Module) -> None:
    """Let the first neuron layer repeat its input: what lies before it is then computed once, not T times.

    For input that is the same at every timestep, and networks whose layers are registered in the order in which
    they run, with nothing but the first layer's convolution and BatchNorm before its neurons.
    """
    first = next(module for module in network.modules() if isinstance(module, SequenceDALIF))
    first.repeats = True


def run_sequence(network: nn.Module, batch: Tensor, timesteps: int, *, temporal: bool) -> Tensor:
    """Logits of every timestep, [T, B, K], of a network of SequenceDALIF layers.

    `batch`: [B, ...], the same at every timestep, for a network prepared by `repeat_from_first`; where `temporal`,
    [B, T, ...].
    """
    if temporal:
        batch = batch.transpose(0, 1).flatten(0, 1)
    logits: Tensor = network(batch)
    return logits.reshape(timesteps, -1, logits.shape[-1])
