"""An exact file takes codes, the module the float32 numbers that they become: what lies between the two is rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dalif_deploy import DALIF, Encoding, export, save, verify
from dalif_deploy.encoding import InputSpec
from dalif_deploy.equivalence import Outcome

CODES = np.ones((1, 10), dtype=np.uint8)


def network(bias: float) -> nn.Module:
    """Ten inputs of 0.7 with weights 1: 7 + bias of the codes, 7 - 1.2e-7 + bias of fl(0.7)."""
    first, last = nn.Linear(10, 1), nn.Linear(1, 2)
    with torch.no_grad():
        first.weight.fill_(1.0)
        first.bias.fill_(bias)
    return nn.Sequential(first, DALIF(activation="identity", beta_init=0.5, v_threshold=7.0), last)


def written(bias: float, precision: str, folder: Path) -> Path:
    encoding = Encoding("uint8", scale=0.7)
    save(network(bias), folder / "model.pt", example_input=CODES, timesteps=1, encoding=encoding)
    export(folder / "model.pt", folder / "net.onnx", to="onnx", precision=precision, verified=False)
    return folder / "net.onnx"


@pytest.mark.parametrize("precision", ["exact64"])
def test_what_the_rounding_of_inputs_decides_is_no_divergence(precision: str, tmp_path: Path) -> None:
    file = written(6e-8, precision, tmp_path)
    found = next(r for r in verify(tmp_path / "model.pt", file).runtimes if r.file)
    assert found.comparison.spikes_differing == 1
    assert found.outcome == Outcome.ROUNDING
    (origin,) = found.comparison.origins
    assert origin.margin == pytest.approx(-6e-8, abs=2e-8)
    assert abs(origin.margin) < origin.bound < 2.0**-24 * 10  # of ten inputs, each off by half a unit at the most


def test_more_than_that_is_one(tmp_path: Path) -> None:
    """A file of a model whose bias is larger fires where 7 x 2^-24 is not enough to explain it."""
    other = tmp_path / "other"
    other.mkdir()
    file = written(1e-5, "exact64", other)
    written(-1e-6, "exact64", tmp_path)
    found = next(r for r in verify(tmp_path / "model.pt", file).runtimes if r.file)
    assert found.comparison.spikes_differing == 1
    assert found.comparison.outcome == Outcome.DIVERGENT


def test_the_rounding_of_inputs_is_bounded() -> None:
    """Against the encoding in long doubles."""
    encoding = Encoding("uint8", scale=1 / 255, mean=(0.485, 0.456), std=(0.229, 0.224))
    spec = InputSpec((2, 128), False, 1, encoding)
    batch = np.arange(256, dtype=np.uint8).reshape(1, 2, 128)
    exact = np.array([
        [(np.longdouble(int(c)) * np.longdouble(1 / 255) - np.longdouble(m)) / np.longdouble(s) for c in row]
        for row, m, s in zip(batch[0], (0.485, 0.456), (0.229, 0.224), strict=True)
    ])  # fmt: skip
    off = np.abs(spec.module_input(batch)[0].astype(np.longdouble) - exact)
    bound = spec.input_rounding(batch)[0]
    assert (off <= bound).all()
    assert (bound <= 2.0**-24 * np.abs(exact) + 1e-14).all()
    assert not InputSpec((2, 128), False, 1, Encoding("uint8")).input_rounding(batch).any()
