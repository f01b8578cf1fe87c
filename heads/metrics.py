"""Metrics of a whole evaluation set: predictions and labels in, a dict of floats out. Standard ones are scikit-learn's.

Dimension key: N samples, C classes or labels, F forecast steps.

Each takes numpy arrays, mx.arrays or sequences. A metric without a value (AUC of one class, r2 of one sample) is NaN;
a ratio over nothing (the precision of a class never predicted) counts as 0, as usual. Label -100 does not count.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from heads.loss_reduction import IGNORE_INDEX
from heads.metric_inputs import as_numpy, check_finite, check_not_empty, class_indices, flat_pair
from heads.ranking_metrics import ranking_metrics, recall_at_k, retrieval_metrics
from heads.tagging_metrics import bio_entities, entity_metrics, span_metrics, token_metrics


def binary_metrics(probabilities: Any, labels: Any, threshold: float = 0.5) -> dict[str, float]:
    """accuracy, auc, f1, precision and recall of a yes-or-no task.

    Args:
        probabilities: (N,) or (N, 1), P(y = 1).
        labels: (N,) or (N, 1), 0, 1 or -100.
        threshold: Predict 1 above it.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

    scores, labels = flat_pair(probabilities, labels, "binary_metrics")
    scores, labels = scores[labels != IGNORE_INDEX].astype(np.float64), labels[labels != IGNORE_INDEX].astype(np.int64)
    check_not_empty(labels, "binary_metrics")
    check_finite(scores, "binary_metrics")
    if unknown := set(labels.tolist()) - {0, 1}:
        raise ValueError(f"[binary_metrics] expected labels 0 and 1 but got {sorted(unknown)}. Map the labels.")
    predicted = (scores > threshold).astype(np.int64)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="binary", zero_division=0)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "auc": float(roc_auc_score(labels, scores)) if len(set(labels.tolist())) == 2 else math.nan,
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
    }


def multiclass_metrics(scores: Any, labels: Any, present_only: bool = False) -> dict[str, float]:
    """accuracy, f1_macro, f1_micro, precision_macro, recall_macro, and top3_accuracy from three classes on.

    Args:
        scores: (N, C), logits or probabilities.
        labels: (N,), 0 to C-1 or -100.
        present_only: Macro means over the classes that occur in labels or predictions, not over all C.
    """
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support, top_k_accuracy_score

    scores, labels = as_numpy(scores), as_numpy(labels).reshape(-1)
    if scores.ndim != 2 or len(scores) != len(labels):
        raise ValueError(
            f"[multiclass_metrics] expected scores (N, C) for {len(labels)} labels but got {scores.shape}. "
            "Give one row of scores per label."
        )
    counted = labels != IGNORE_INDEX
    scores, labels = scores[counted].astype(np.float64), class_indices(labels[counted], "multiclass_metrics")
    check_not_empty(labels, "multiclass_metrics")
    num_classes = scores.shape[1]
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"[multiclass_metrics] expected labels from 0 to {num_classes - 1} but got {np.unique(labels).tolist()}. "
            "Map the labels."
        )
    check_finite(scores, "multiclass_metrics")
    predicted = scores.argmax(axis=1)
    classes = None if present_only else np.arange(num_classes)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=classes, average="macro", zero_division=0
    )
    metrics = {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1_macro": float(f1),
        "f1_micro": float(f1_score(labels, predicted, average="micro")),
        "precision_macro": float(precision),
        "recall_macro": float(recall),
    }
    if num_classes == 3:
        metrics["top3_accuracy"] = 1.0
    elif num_classes > 3:
        metrics["top3_accuracy"] = float(top_k_accuracy_score(labels, scores, k=3, labels=np.arange(num_classes)))
    return metrics


def multilabel_metrics(predictions: Any, labels: Any) -> dict[str, float]:
    """subset_accuracy, hamming_loss, f1_macro and f1_micro.

    Args:
        predictions: (N, C), 0 and 1 or booleans.
        labels: (N, C), 0, 1 or -100; a place of -100 is left out, not its whole row.
    """
    from sklearn.metrics import f1_score

    predicted, labels = as_numpy(predictions), as_numpy(labels)
    if predicted.shape != labels.shape or labels.ndim != 2:
        raise ValueError(
            f"[multilabel_metrics] expected predictions and labels (N, C) but got {predicted.shape} and "
            f"{labels.shape}. Give one value per label."
        )
    if predicted.dtype.kind == "f" and not np.isin(predicted, (0, 1)).all():
        raise ValueError(
            "[multilabel_metrics] expected predictions 0 and 1 but got scores. Apply the thresholds first."
        )
    counted = labels != IGNORE_INDEX
    check_not_empty(labels[counted], "multilabel_metrics")
    # A place that is 0 on both sides is no true positive and no error, so it drops out of F1 and of the comparison.
    predicted, labels = (np.where(counted, x, 0).astype(np.int64) for x in (predicted, labels))
    return {
        "subset_accuracy": float((predicted == labels).all(axis=1).mean()),
        "hamming_loss": float((predicted != labels).sum() / counted.sum()),
        "f1_macro": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "f1_micro": float(f1_score(labels, predicted, average="micro", zero_division=0)),
    }


def regression_metrics(predictions: Any, targets: Any, uncertainty: Any = None) -> dict[str, float]:
    """mse, rmse, mae, r2 and mape, over all values together.

    Args:
        predictions: (N,) or any other shape.
        targets: Same shape up to axes of 1.
        uncertainty: Predicted standard deviations of the same shape; adds avg_uncertainty and uncertainty_correlation,
            the rank correlation of the absolute error with them.

    Raises:
        ValueError: if a value is not finite.
    """
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    predicted, targets = (x.astype(np.float64) for x in flat_pair(predictions, targets, "regression_metrics"))
    check_finite(predicted, "regression_metrics")
    # Constant targets leave no variance to explain: r2 is then -inf or NaN.
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = float(r2_score(targets, predicted, force_finite=False)) if targets.size > 1 else math.nan
    mse = float(mean_squared_error(targets, predicted))
    metrics = {
        "mse": mse,
        "rmse": math.sqrt(mse),
        "mae": float(mean_absolute_error(targets, predicted)),
        "r2": r2,
        "mape": _mape(predicted, targets),
    }
    if uncertainty is not None:
        deviations, _ = flat_pair(uncertainty, targets, "regression_metrics")
        metrics["avg_uncertainty"] = float(deviations.mean())
        metrics["uncertainty_correlation"] = _spearman(np.abs(predicted - targets), deviations)
    return metrics


def time_series_metrics(predictions: Any, targets: Any) -> dict[str, float]:
    """mse, rmse, mae, mape, and for more than one step directional_accuracy: how often the sign of a step is right.

    Args:
        predictions: (N, F) or (N,).
        targets: Same shape.
    """
    metrics = regression_metrics(predictions, targets)
    metrics.pop("r2")
    predicted, targets = as_numpy(predictions), as_numpy(targets)
    if predicted.ndim == 2 and predicted.shape[1] > 1:
        same = np.sign(np.diff(predicted, axis=1)) == np.sign(np.diff(targets.reshape(predicted.shape), axis=1))
        metrics["directional_accuracy"] = float(same.mean())
    return metrics


def ordinal_metrics(predictions: Any, labels: Any, num_classes: int | None = None) -> dict[str, float]:
    """accuracy, mae, ordinal_accuracy (off by at most one), kendall_tau (tau-b) and qwk (quadratic weighted kappa).

    Args:
        predictions: (N,), classes.
        labels: (N,), classes or -100.
        num_classes: K; it does not change kappa, but labels outside 0 to K-1 are an error.
    """
    from scipy.stats import kendalltau
    from sklearn.metrics import accuracy_score, cohen_kappa_score, mean_absolute_error

    predicted, labels = flat_pair(predictions, labels, "ordinal_metrics")
    counted = labels != IGNORE_INDEX
    predicted, labels = predicted[counted].astype(np.int64), class_indices(labels[counted], "ordinal_metrics")
    check_not_empty(labels, "ordinal_metrics")
    highest = max(labels.max(), predicted.max())
    if min(labels.min(), predicted.min()) < 0 or (num_classes is not None and highest >= num_classes):
        raise ValueError(f"[ordinal_metrics] expected classes from 0 below {num_classes} but got {highest}. Map them.")
    # Without any disagreement to expect, when all is one class, kappa is 0/0.
    varied = len(set(labels.tolist()) | set(predicted.tolist())) > 1
    kappa = (
        cohen_kappa_score(labels, predicted, labels=np.arange(highest + 1), weights="quadratic") if varied else math.nan
    )
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "mae": float(mean_absolute_error(labels, predicted)),
        "ordinal_accuracy": float((np.abs(labels - predicted) <= 1).mean()),
        "kendall_tau": float(kendalltau(labels, predicted).statistic),
        "qwk": float(kappa),
    }


def similarity_metrics(scores: Any, targets: Any) -> dict[str, float]:
    """spearman and pearson correlation of similarity scores (N,) with targets (N,), as in STS benchmarks."""
    scores, targets = (x.astype(np.float64) for x in flat_pair(scores, targets, "similarity_metrics"))
    check_finite(scores, "similarity_metrics")
    constant = np.ptp(scores) == 0 or np.ptp(targets) == 0
    pearson = math.nan if constant else float(np.corrcoef(scores, targets)[0, 1])
    return {"spearman": _spearman(scores, targets), "pearson": pearson}


def _mape(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Mean absolute percentage error as a fraction; zero targets have none and are left out."""
    from sklearn.metrics import mean_absolute_percentage_error

    kept = targets != 0
    return float(mean_absolute_percentage_error(targets[kept], predicted[kept])) if kept.any() else math.nan


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(spearmanr(first, second).statistic)


METRIC_SETS: dict[str, Callable[..., dict[str, float]]] = {
    "binary_classification": binary_metrics,
    "multiclass_classification": multiclass_metrics,
    "multilabel_classification": multilabel_metrics,
    "regression": regression_metrics,
    "ordinal_regression": ordinal_metrics,
    "ranking": ranking_metrics,
    "recommendation": ranking_metrics,
    "time_series": time_series_metrics,
}
"""The metrics of each competition type."""

__all__ = [
    "METRIC_SETS",
    "binary_metrics",
    "bio_entities",
    "entity_metrics",
    "multiclass_metrics",
    "multilabel_metrics",
    "ordinal_metrics",
    "ranking_metrics",
    "recall_at_k",
    "regression_metrics",
    "retrieval_metrics",
    "similarity_metrics",
    "span_metrics",
    "time_series_metrics",
    "token_metrics",
]
