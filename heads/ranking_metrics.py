"""Metrics of ranked lists and of retrieval.

Dimension key: B lists, N items, Q queries, E embedding size.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from heads.metric_inputs import as_numpy, check_finite, check_not_empty


def ranking_metrics(
    scores: Any,
    relevance: Any,
    mask: Any = None,
    group_ids: Any = None,
    cutoffs: Sequence[int] = (5, 10),
    mrr_cutoffs: Sequence[int] = (),
) -> dict[str, float]:
    """ndcg@k (gains ``2^y - 1``), map and mrr, each the mean over the lists that have a relevant item.

    Args:
        scores: (B, N), or (N,) for one list.
        relevance: Same shape, at least 0; an item is relevant for map and mrr if it is above 0.
        mask: Same shape, which items are real.
        group_ids: Same shape; the items with one id form a list.
        cutoffs: The k of ndcg@k.
        mrr_cutoffs: The k of mrr@k, in which a first relevant item behind rank k counts 0.

    Returns:
        NaN for every metric if no list has a relevant item. Ties of scores: their mean for ndcg, one step for map, and
        the worst order for mrr.
    """
    from sklearn.metrics import average_precision_score, ndcg_score

    rows: dict[str, list[float]] = {**{f"ndcg@{k}": [] for k in cutoffs}, "map": [], "mrr": []}
    rows |= {f"mrr@{k}": [] for k in mrr_cutoffs}
    for row_scores, row_relevance in _lists(scores, relevance, mask, group_ids):
        if not (row_relevance > 0).any():
            continue
        gains = np.exp2(row_relevance) - 1
        for k in cutoffs:
            # One item alone is ranked perfectly; scikit-learn refuses to score it.
            value = 1.0 if len(gains) == 1 else float(ndcg_score([gains], [row_scores], k=k))
            rows[f"ndcg@{k}"].append(value)
        relevant = row_relevance > 0
        rows["map"].append(float(average_precision_score(relevant, row_scores)))
        rank = 1 + int((row_scores[~relevant] >= row_scores[relevant].max()).sum())
        rows["mrr"].append(1 / rank)
        for k in mrr_cutoffs:
            rows[f"mrr@{k}"].append(1 / rank if rank <= k else 0.0)
    return {name: float(np.mean(values)) if values else math.nan for name, values in rows.items()}


def _lists(scores: Any, relevance: Any, mask: Any, group_ids: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores and relevance of each list, without what is not real."""
    scores, relevance = as_numpy(scores).astype(np.float64), as_numpy(relevance).astype(np.float64)
    real = np.ones(scores.shape, bool) if mask is None else as_numpy(mask).astype(bool)
    groups = np.zeros(scores.shape, np.int64) if group_ids is None else as_numpy(group_ids)
    if not scores.shape == relevance.shape == real.shape == groups.shape or scores.ndim not in (1, 2):
        raise ValueError(
            f"[ranking_metrics] expected scores, relevance, mask and group_ids of one shape (B, N) or (N,) but got "
            f"{scores.shape}, {relevance.shape}, {real.shape} and {groups.shape}. Give one value per item."
        )
    check_not_empty(scores, "ranking_metrics")
    check_finite(scores[real], "ranking_metrics")
    if (relevance[real] < 0).any():
        raise ValueError("[ranking_metrics] expected relevance of at least 0 but got less. Mask items without a label.")
    lists = []
    for row in zip(*(np.atleast_2d(x) for x in (scores, relevance, real, groups)), strict=True):
        row_scores, row_relevance, row_real, row_groups = row
        for group in np.unique(row_groups[row_real]):
            kept = row_real & (row_groups == group)
            lists.append((row_scores[kept], row_relevance[kept]))
    return lists


def recall_at_k(similarities: Any, positives: Any = None, k: int = 1) -> float:
    """Share of queries with a positive among their k most similar candidates; queries without a positive are left out.

    Args:
        similarities: (Q, N).
        positives: (Q, N), which candidates are right; None: candidate i belongs to query i.
        k: At least 1.
    """
    scores = as_numpy(similarities).astype(np.float64)
    right = np.eye(*scores.shape, dtype=bool) if positives is None else as_numpy(positives).astype(bool)
    if k < 1 or scores.shape != right.shape:
        raise ValueError(
            f"[recall_at_k] expected k of at least 1 and positives of shape {scores.shape} but got {k} and "
            f"{right.shape}. Correct them."
        )
    check_finite(scores, "recall_at_k")
    known = right.any(axis=1)
    if not known.any():
        return math.nan
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    # Ties count against the positive, so that equal embeddings for everything do not score.
    ahead = ((scores >= best) & ~right).sum(axis=1)
    return float((ahead[known] < k).mean())


def retrieval_metrics(
    queries: Any, candidates: Any, positives: Any = None, cutoffs: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """recall@k and mrr by cosine similarity.

    Args:
        queries: (Q, E) embeddings.
        candidates: (N, E) embeddings.
        positives: (Q, N), which candidates are right; None: candidate i belongs to query i.
        cutoffs: The k of recall@k; those above N are left out.
    """
    queries, candidates = (as_numpy(x).astype(np.float64) for x in (queries, candidates))
    queries, candidates = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8) for x in (queries, candidates)
    )
    scores = queries @ candidates.T
    right = np.eye(*scores.shape, dtype=bool) if positives is None else as_numpy(positives).astype(bool)
    metrics = {f"recall@{k}": recall_at_k(scores, right, k) for k in cutoffs if k <= scores.shape[1]}
    metrics["mrr"] = ranking_metrics(scores, right, cutoffs=())["mrr"]
    return metrics
