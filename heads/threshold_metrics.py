"""Metrics of scores for yes-or-no pairs at the threshold that suits them best.

Dimension key: N pairs.
"""

from typing import Any

import numpy as np

from heads.metric_inputs import check_finite, flat_pair


def threshold_metrics(scores: Any, labels: Any) -> dict[str, float]:
    """Best accuracy and best F1 over all thresholds, and average_precision, as sentence-transformers reports them.

    Args:
        scores: (N,), more for likelier pairs.
        labels: (N,), 0 or 1.

    Returns:
        accuracy, accuracy_threshold, f1, f1_threshold, precision and recall (at that F1), average_precision. A pair is
        taken for right at or above a threshold, which lies midway between two scores.

    Raises:
        ValueError: other labels, or scores that are not finite.
    """
    from sklearn.metrics import average_precision_score

    scores, labels = flat_pair(scores, labels, "threshold_metrics")
    check_finite(scores, "threshold_metrics")
    if unknown := set(np.unique(labels).tolist()) - {0, 1}:
        raise ValueError(f"[threshold_metrics] expected labels 0 and 1 but got {sorted(unknown)}. Map the labels.")
    order = np.argsort(-scores, kind="stable")
    ranked, right = scores[order], labels[order].astype(np.int64)
    hits = np.cumsum(right)
    last = np.append(ranked[1:] != ranked[:-1], True)  # no threshold lies between equal scores
    cuts = np.flatnonzero(last)
    taken = cuts + 1
    below = np.append(ranked[1:], ranked[-1])[cuts]
    thresholds = (ranked[cuts] + below) / 2
    thresholds = np.where((thresholds == below) & (cuts + 1 < len(ranked)), ranked[cuts], thresholds)
    positives = right.sum()
    accuracy = (hits[cuts] + (len(right) - positives) - (taken - hits[cuts])) / len(right)
    none_taken = (len(right) - positives) / len(right)
    best = int(accuracy.argmax())
    finds_more = accuracy[best] > none_taken
    above_all = np.nextafter(ranked[0], np.inf, dtype=np.result_type(ranked.dtype, np.float16))
    precision, recall = hits[cuts] / taken, hits[cuts] / max(positives, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    top = int(f1.argmax())
    return {
        "accuracy": float(accuracy[best] if finds_more else none_taken),
        "accuracy_threshold": float(thresholds[best] if finds_more else above_all),
        "f1": float(f1[top]),
        "f1_threshold": float(thresholds[top]) if positives else 0.0,
        "precision": float(precision[top]),
        "recall": float(recall[top]),
        "average_precision": float(average_precision_score(right, ranked)) if positives else 0.0,
    }
