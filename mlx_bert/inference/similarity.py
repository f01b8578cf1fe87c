"""How alike embeddings are: four functions, for all pairs or row by row. Larger is more alike; distances are negated.

Dimensions: N and M embeddings, D values each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import numpy as np

from mlx_bert.inference.batching import compute

Embeddings = mx.array | np.ndarray | Sequence[mx.array] | Sequence[np.ndarray] | Sequence[Sequence[float]]
Similarity = Callable[[mx.array, mx.array], mx.array]
CHUNK_VALUES = 1 << 24  # the largest N * M * D that Manhattan distances hold at a time


def as_matrix(embeddings: Embeddings, where: str = "similarity") -> mx.array:
    """Any form of embeddings as float32 ``(N, D)``; a single vector becomes one row.

    Raises:
        ValueError: neither one vector nor a matrix.
    """
    if not isinstance(embeddings, mx.array):
        rows = [np.asarray(row) for row in embeddings] if isinstance(embeddings, list | tuple) else embeddings
        embeddings = mx.array(np.ascontiguousarray(rows))
    embeddings = embeddings.astype(mx.float32)
    if embeddings.ndim == 1:
        embeddings = embeddings[None]
    if embeddings.ndim != 2:
        raise ValueError(f"[{where}] expected embeddings of shape (N, D) or (D,) but got {embeddings.shape}.")
    return embeddings


def normalize(x: mx.array) -> mx.array:
    """Rows of length 1: ``x / max(|x|, 1e-12)``, in float32. ``(..., D)`` in and out."""
    x = x.astype(mx.float32)
    return x / mx.maximum(mx.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def cosine(a: mx.array, b: mx.array) -> mx.array:
    """``(N, D), (M, D) -> (N, M)`` in [-1, 1]."""
    return normalize(a) @ normalize(b).T


def dot(a: mx.array, b: mx.array) -> mx.array:
    """``(N, D), (M, D) -> (N, M)``."""
    return a @ b.T


def euclidean(a: mx.array, b: mx.array) -> mx.array:
    """Negative distance ``(N, D), (M, D) -> (N, M)``. Taken from differences: exact where rows are close."""
    return _by_chunks(a, b, lambda difference: -mx.linalg.norm(difference, axis=-1))


def manhattan(a: mx.array, b: mx.array) -> mx.array:
    """Negative sum of absolute differences ``(N, D), (M, D) -> (N, M)``."""
    return _by_chunks(a, b, lambda difference: -mx.sum(mx.abs(difference), axis=-1))


def _by_chunks(a: mx.array, b: mx.array, reduce: Callable[[mx.array], mx.array]) -> mx.array:
    step = max(1, CHUNK_VALUES // max(1, b.size))
    parts = []
    for start in range(0, a.shape[0], step):
        parts.append(reduce(a[start : start + step, None] - b[None]))
        mx.eval(parts[-1])
    return mx.concatenate(parts) if parts else mx.zeros((0, b.shape[0]))


SIMILARITIES: dict[str, Similarity] = {
    "cosine": cosine,
    "dot": dot,
    "euclidean": euclidean,
    "manhattan": manhattan,
}

PAIRWISE: dict[str, Similarity] = {
    "cosine": lambda a, b: mx.sum(normalize(a) * normalize(b), axis=-1),
    "dot": lambda a, b: mx.sum(a * b, axis=-1),
    "euclidean": lambda a, b: -mx.linalg.norm(a - b, axis=-1),
    "manhattan": lambda a, b: -mx.sum(mx.abs(a - b), axis=-1),
}


def check_name(name: str) -> str:
    """``name`` if it is a similarity function.

    Raises:
        ValueError: it is not.
    """
    if name not in SIMILARITIES:
        raise ValueError(f"[similarity] expected one of {', '.join(SIMILARITIES)} but got {name!r}.")
    return name


def similarity(a: Embeddings, b: Embeddings, name: str = "cosine") -> mx.array:
    """Every embedding of ``a`` against every one of ``b``: ``(N, D), (M, D) -> (N, M)`` float32.

    Raises:
        ValueError: an unknown name, or widths that differ.
    """
    return compute(partial(_all_pairs, SIMILARITIES[check_name(name)]), a, b)


def similarity_pairwise(a: Embeddings, b: Embeddings, name: str = "cosine") -> mx.array:
    """Row ``i`` of ``a`` against row ``i`` of ``b``: ``(N, D), (N, D) -> (N,)`` float32.

    Raises:
        ValueError: an unknown name, or shapes that differ.
    """
    return compute(partial(_row_by_row, PAIRWISE[check_name(name)]), a, b)


def _all_pairs(score: Similarity, a: Embeddings, b: Embeddings) -> mx.array:
    a, b = as_matrix(a), as_matrix(b)
    _check_widths(a, b)
    return score(a, b)


def _row_by_row(score: Similarity, a: Embeddings, b: Embeddings) -> mx.array:
    a, b = as_matrix(a), as_matrix(b)
    _check_widths(a, b)
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"[similarity] expected as many rows on both sides but got {a.shape[0]} and {b.shape[0]}.")
    return score(a, b)


def _check_widths(a: mx.array, b: mx.array) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"[similarity] expected embeddings of equal width but got {a.shape[1]} and {b.shape[1]}. "
            "Were they made by the same model, with the same truncate_dim?"
        )
