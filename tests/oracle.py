"""The DA-LIF paper's equations (2), (3) and (9) written down once more, in plain NumPy float64.

Nothing here comes from the package: this is what the runtimes are held against. One fixed network,
convolution - batch normalisation - DA-LIF - average pool - linear - DA-LIF - linear, read out as the mean
over time. Everything is written for one sample at one timestep, with loops where the paper has sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class DALIFLayer:
    """Eq. (9) and (2): integrate, fire with Theta(0) = 1, hard reset. State `H` starts at 0.

    `closest` is the smallest |V - v_th| met so far: how near to a tie the layer came.
    """

    alpha: Array | float
    beta: Array | float
    v_th: float = 1.0
    v_reset: float = 0.0
    H: Array | float = 0.0
    closest: float = np.inf

    def __call__(self, X: Array) -> Array:
        V = self.beta * self.H + self.alpha * X
        self.closest = min(self.closest, float(np.abs(V - self.v_th).min()))
        S = np.where(V - self.v_th < 0, 0.0, 1.0)
        self.H = self.v_reset * S + V * (1 - S)
        return S


def conv(x: Array, weight: Array, bias: Array, stride: int, top: int, left: int | None = None) -> Array:
    """Eq. (3) at every place of the output: `x` [C, H, W], `weight` [O, C, k, m], padded by `top` rows above and below
    and by `left` columns (None: as many) on both sides."""
    channels, height, width = x.shape
    k, m = weight.shape[2:]
    left = top if left is None else left
    padded = np.zeros((channels, height + 2 * top, width + 2 * left))
    padded[:, top : top + height, left : left + width] = x
    rows, columns = (height + 2 * top - k) // stride + 1, (width + 2 * left - m) // stride + 1
    out = np.empty((len(weight), rows, columns))
    for o in range(len(weight)):
        for y in range(rows):
            for z in range(columns):
                patch = padded[:, y * stride : y * stride + k, z * stride : z * stride + m]
                out[o, y, z] = (weight[o] * patch).sum() + bias[o]
    return out


def average_pool(x: Array, k: int) -> Array:
    """Mean over each k x k tile of `x` [C, H, W]."""
    channels, height, width = x.shape
    tiles = [x[:, i::k, j::k][:, : height // k, : width // k] for i in range(k) for j in range(k)]
    return sum(tiles, np.zeros((channels, height // k, width // k))) / (k * k)


@dataclass
class Network:
    """The trained parameters, as plain arrays."""

    conv_weight: Array
    conv_bias: Array
    stride: int
    padding: int
    gamma: Array
    shift: Array
    mean: Array
    variance: Array
    epsilon: float
    first: tuple[Array | float, Array | float]  # alpha, beta
    pool: int
    hidden_weight: Array
    hidden_bias: Array
    second: tuple[Array | float, Array | float]
    out_weight: Array
    out_bias: Array

    def run(self, samples: Array, timesteps: int) -> tuple[Array, Array, Array, float]:
        """Static `samples` [N, C, H, W], or temporal [N, T, C, H, W].

        Returns the spikes of both layers, [N, T, ...], the logits [N, K], and how near to a tie it came.
        """
        per_sample = [self._one(x, timesteps) for x in samples]
        first, second, logits, closest = (np.array(column) for column in zip(*per_sample, strict=True))
        return first, second, logits, closest.min()

    def _one(self, x: Array, timesteps: int) -> tuple[Array, Array, Array, float]:
        first, second = DALIFLayer(*self.first), DALIFLayer(*self.second)
        spikes1, spikes2, outputs = [], [], []
        for t in range(timesteps):
            frame = x[t] if x.ndim == 4 else x
            y = conv(frame, self.conv_weight, self.conv_bias, self.stride, self.padding)
            for c in range(len(y)):
                y[c] = self.gamma[c] * (y[c] - self.mean[c]) / np.sqrt(self.variance[c] + self.epsilon) + self.shift[c]
            spikes1.append(first(y))
            pooled = average_pool(spikes1[-1], self.pool).reshape(-1)
            spikes2.append(second(self.hidden_weight @ pooled + self.hidden_bias))
            outputs.append(self.out_weight @ spikes2[-1] + self.out_bias)
        closest = min(first.closest, second.closest)
        return np.array(spikes1), np.array(spikes2), sum(outputs[1:], outputs[0]) / timesteps, closest
