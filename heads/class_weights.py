"""Class weights against imbalance, from label counts."""

from collections.abc import Sequence

import numpy as np

from heads.loss_reduction import IGNORE_INDEX
from heads.metric_inputs import class_indices


def class_weights_from_counts(
    counts: Sequence[int] | np.ndarray,
    method: str = "inverse_freq",
    beta: float = 0.999,
    clamp: tuple[float, float] | None = None,
) -> np.ndarray:
    """Weights that are larger for rarer classes, with a mean of 1 (before clamping).

    Args:
        counts: Samples of each of K classes; a class without samples counts as having one.
        method: ``"inverse_freq"``: ``1 / n_c``. ``"effective_num"``: ``(1 - beta) / (1 - beta^n_c)`` (Cui et al. 2019).
        beta: Of ``effective_num``, in [0, 1).
        clamp: Lowest and highest weight, such as ``(0.5, 3.0)``; None: no limits.

    Returns:
        (K,) float64.

    Raises:
        ValueError: for another method, no classes or a negative count.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 1 or counts.size == 0 or (counts < 0).any():
        raise ValueError(
            f"[class weights] expected a count of at least 0 per class but got {counts.tolist()}. Count the labels."
        )
    counts = np.maximum(counts, 1)
    if method == "inverse_freq":
        weights = 1 / counts
    elif method == "effective_num":
        if not 0 <= beta < 1:
            raise ValueError(f"[class weights] expected beta in [0, 1) but got {beta}. The default is 0.999.")
        weights = (1 - beta) / (1 - beta**counts)
    else:
        raise ValueError(
            f"[class weights] expected method 'inverse_freq' or 'effective_num' but got {method!r}. Use one of them."
        )
    weights = weights / weights.mean()
    return weights if clamp is None else np.clip(weights, *clamp)


def compute_class_weights(
    labels: Sequence[int] | np.ndarray,
    method: str = "inverse_freq",
    num_classes: int | None = None,
    beta: float = 0.999,
    clamp: tuple[float, float] | None = None,
) -> np.ndarray:
    """`class_weights_from_counts` of labels.

    Args:
        labels: Class indices, any shape; -100 does not count.
        method: As there.
        num_classes: K; None: the largest label plus one.
        beta: As there.
        clamp: As there.

    Raises:
        ValueError: for a label outside [0, K), or one that is no whole number.
    """
    labels = np.asarray(labels).reshape(-1)
    labels = class_indices(labels[labels != IGNORE_INDEX], "class weights")
    if labels.size and (labels.min() < 0 or (num_classes is not None and labels.max() >= num_classes)):
        raise ValueError(
            f"[class weights] expected labels from 0 to {'K-1' if num_classes is None else num_classes - 1} but got "
            f"{labels.min()} to {labels.max()}. Correct the labels or num_classes."
        )
    return class_weights_from_counts(np.bincount(labels, minlength=num_classes or 0), method, beta, clamp)
