"""What the metrics share: arrays as numpy, and checks of their shapes."""

from typing import Any

import mlx.core as mx
import numpy as np


def as_numpy(values: Any) -> np.ndarray:
    """A numpy array of an mx.array (bfloat16 as float32), a sequence or a numpy array."""
    if isinstance(values, mx.array) and values.dtype == mx.bfloat16:
        values = values.astype(mx.float32)
    return np.array(values)


def flat_pair(predictions: Any, targets: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets as vectors; their shapes may differ by axes of size 1 only.

    Raises:
        ValueError: if the shapes do not agree or there is nothing to measure.
    """
    predictions, targets = as_numpy(predictions), as_numpy(targets)
    if [n for n in predictions.shape if n != 1] != [n for n in targets.shape if n != 1]:
        raise ValueError(
            f"[{where}] expected predictions and targets of one shape but got {predictions.shape} and {targets.shape}. "
            "Give one target per prediction."
        )
    check_not_empty(targets, where)
    return predictions.reshape(-1), targets.reshape(-1)


def check_not_empty(values: np.ndarray, where: str) -> None:
    """Raise ValueError if there is nothing to measure."""
    if values.size == 0:
        raise ValueError(f"[{where}] expected at least one labelled sample but got none. Check the labels.")


def class_indices(labels: np.ndarray, where: str) -> np.ndarray:
    """Labels as int64, whole floats such as 1.0 too.

    Raises:
        ValueError: a label is no whole number.
    """
    if labels.dtype.kind == "f" and not (whole := labels == np.floor(labels)).all():
        raise ValueError(
            f"[{where}] expected classes, whole numbers, as labels but got {labels[~whole][0]}. Map the labels."
        )
    return labels.astype(np.int64)


def check_finite(values: np.ndarray, where: str) -> None:
    """Raise ValueError if a prediction is NaN or infinite: no metric of it means anything."""
    if not np.isfinite(values).all():
        raise ValueError(f"[{where}] expected finite predictions but got NaN or infinity. Look for where it diverged.")
