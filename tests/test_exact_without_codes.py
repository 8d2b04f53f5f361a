"""An exact file of a model that was saved with what its module takes, and not with codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dalif_deploy
from dalif_deploy.deploy import check_certificate
from tests.commands import Small, dalif, done


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of codes whose stored samples are floats."""
    path = tmp_path / "m.pt"
    images = np.random.default_rng(2).random((6, 4), dtype=np.float32)
    encoding = dalif_deploy.Encoding(kind="uint8", scale=1 / 64)
    dalif_deploy.save(Small(), path, example_input=images, timesteps=2, encoding=encoding)
    return path


def test_it_is_verified_on_codes_that_are_seeded(model: Path) -> None:
    exact = model.with_suffix(".onnx")
    ran = done("export", "--to", "onnx", "--precision", "exact", model, "-o", exact)
    assert "data: 6 seeded samples of codes, since the samples stored with the model are none (--data takes" in ran.err
    assert check_certificate(exact).holds
    ran = dalif("verify", model, exact)
    assert ran.status == 2
    assert "takes uint8 codes; give the codes (--data)" in ran.err


def test_data_that_are_no_codes_are_refused_by_their_name(model: Path) -> None:
    data = model.with_name("images.npy")
    np.save(data, np.zeros((2, 4), np.float32))
    ran = dalif(
        "export", "--to", "onnx", "--precision", "exact", model, "-o", model.with_suffix(".onnx"), "--data", data
    )
    assert ran.status == 2
    assert f"{data}: float32; an exact file of this model takes the uint8 codes" in ran.err
    assert not model.with_suffix(".onnx").exists()
