"""scikit-learn's 1,797 real handwritten digits, in a split that is fixed once and for all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

SPLIT = Path(__file__).with_name("digits_split.json")

Codes = NDArray[np.uint8]
Labels = NDArray[np.int64]


def held_out_indices() -> NDArray[np.int64]:
    """Which of the 1,797 images are held out: 360 indices, ascending, every digit in its share."""
    return np.array(json.loads(SPLIT.read_text())["test"], dtype=np.int64)


def load_split() -> tuple[Codes, Labels, Codes, Labels]:
    """(x_train, y_train, x_test, y_test): 1,437 and 360 images.

    Images are uint8 pixel codes 0..16 of shape [N, 1, 8, 8], labels int64 of shape [N].
    """
    digits = load_digits()
    codes = digits.images.astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    test = held_out_indices()
    train = np.setdiff1d(np.arange(len(codes)), test)
    return codes[train], labels[train], codes[test], labels[test]
