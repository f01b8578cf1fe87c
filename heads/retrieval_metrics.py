"""Metrics of searching a corpus, from what was found: is the document at each rank a right one?

Dimension key: Q queries, K ranks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def ranked_list_metrics(
    hits: Sequence[Any], relevant: Sequence[int], cutoffs: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Means over the queries of metrics at cutoffs, such as ``ndcg@10``.

    Args:
        hits: for each query, which of its first K documents are right, best first.
        relevant: for each query, how many right documents there are in the corpus; at least 1.
        cutoffs: ``"accuracy"`` (a right one among the first k), ``"precision"``, ``"recall"``, ``"mrr"``,
            ``"map"`` (over the lesser of k and the right ones) or ``"ndcg"`` (gain 1 for a right one) -> its k.

    Raises:
        ValueError: no queries, none relevant for one, an unknown metric, or a k below 1.
    """
    if not len(hits) or len(hits) != len(relevant) or min(relevant) < 1:
        raise ValueError(
            "[ranked_list_metrics] expected at least one query, and a right document for each, but got "
            f"{len(hits)} lists and the counts {list(relevant)[:8]}. Leave out queries without an answer."
        )
    if unknown := sorted(set(cutoffs) - set(_METRICS)):
        raise ValueError(
            f"[ranked_list_metrics] expected metrics among {', '.join(_METRICS)} but got {', '.join(unknown)}."
        )
    if any(k < 1 for places in cutoffs.values() for k in places):
        raise ValueError(f"[ranked_list_metrics] expected cutoffs of at least 1 but got {dict(cutoffs)}.")
    rows = [np.asarray(row, dtype=bool) for row in hits]

    def mean(name: str, k: int) -> float:
        return float(np.mean([_METRICS[name](row[:k], count, k) for row, count in zip(rows, relevant, strict=True)]))

    return {f"{name}@{k}": mean(name, k) for name, places in cutoffs.items() for k in places}


def _reciprocal_rank(row: np.ndarray) -> float:
    return 1 / (1 + int(row.argmax())) if row.any() else 0.0


def _average_precision(row: np.ndarray, count: int, k: int) -> float:
    precisions = np.cumsum(row) / np.arange(1, len(row) + 1)
    return float(precisions[row].sum()) / min(k, count)


def _ndcg(row: np.ndarray, count: int, k: int) -> float:
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(count, k)))
    return sum(1 / math.log2(rank + 2) for rank in np.flatnonzero(row)) / ideal


_METRICS: dict[str, Callable[[np.ndarray, int, int], float]] = {
    "accuracy": lambda row, count, k: float(row.any()),
    "precision": lambda row, count, k: row.sum() / k,
    "recall": lambda row, count, k: row.sum() / count,
    "mrr": lambda row, count, k: _reciprocal_rank(row),
    "map": _average_precision,
    "ndcg": _ndcg,
}
