"""The networks that the DA-LIF paper evaluates, one timestep each, and their calibration.

Sources: Zhang et al., "DA-LIF: Dual Adaptive Leaky Integrate-and-Fire Model for Deep Spiking Neural Networks",
for the networks' names, data sets and sizes (Sec. IV, Table III); the layers are those of the public code family
whose parameter counts the paper's match (Guo et al., "Membrane Potential Batch Normalization for Spiking Neural
Networks", and for VGGSNN Deng et al., "Temporal Efficient Training of Spiking Neural Network").
"""

from dalif_deploy.networks.calibration import calibrate, firing_rates
from dalif_deploy.networks.resnet import resnet18, resnet19, resnet20, resnet34
from dalif_deploy.networks.vgg import vgg11, vgg16, vggsnn

__all__ = [
    "calibrate",
    "firing_rates",
    "resnet18",
    "resnet19",
    "resnet20",
    "resnet34",
    "vgg11",
    "vgg16",
    "vggsnn",
]
