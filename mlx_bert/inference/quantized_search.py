"""Searching embeddings of a byte or a bit per value, and ordering what is found by floating queries.

Candidates are found by comparing codes, exactly and in chunks; then the best of them are chosen by the inner product of
the floating query with what the codes stand for, or with the original embeddings. Steps and numbers are those of
``sentence_transformers.util.semantic_search_usearch`` and ``semantic_search_faiss`` with ``exact=True``.

Dimensions: Q queries, N texts of a corpus, D values, W bytes of a code, C candidates, K results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_bert.inference.batching import compute
from mlx_bert.inference.quantization import check_precision, dequantize_embeddings, quantize_embeddings

QUERY_CHUNK = 256
CHUNK_VALUES = 1 << 24  # the largest number of values that stand unpacked in memory at a time
EXACT_COLUMNS = 256  # a float32 sums so many products of two bytes without rounding

Rows = Callable[[np.ndarray], np.ndarray]


def nearest_quantized(
    queries: np.ndarray,
    corpus: np.ndarray,
    corpus_precision: str,
    top_k: int = 10,
    ranges: np.ndarray | None = None,
    calibration_embeddings: np.ndarray | None = None,
    rescore: bool = True,
    rescore_multiplier: int = 2,
    rescore_embeddings: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The ``K = min(top_k, N)`` best of a quantised corpus for each query, best first; of equals the first.

    Args:
        queries: float ``(Q, D)``, or ``(D,)`` for one; or codes ``(Q, W)`` as in the corpus, which cannot be rescored.
        corpus: codes ``(N, W)`` as :func:`quantize_embeddings` gives them; may be a memory-mapped file.
        corpus_precision: ``"int8"`` or ``"uint8"`` (candidates by the inner product of the codes), ``"binary"`` or
            ``"ubinary"`` (by Hamming distance).
        ranges: with which the corpus was quantised to int8 or uint8, ``(2, D)``.
        calibration_embeddings: float ``(M, D)`` to take them from instead.
        rescore: choose among ``C = top_k * rescore_multiplier`` candidates with the floating queries.
        rescore_multiplier: how many times more candidates than results.
        rescore_embeddings: the original embeddings ``(N, D)``, may be memory-mapped; None rescores with what the codes
            stand for: a value within a 256th of the range, or 0 and 1 for a bit.

    Returns:
        Places in the corpus ``(Q, K)`` int64, and scores ``(Q, K)`` float64, larger is better: inner products; without
        rescoring, inner products of codes, or Hamming distances with a minus.

    Raises:
        ValueError: shapes, types or precisions that do not fit together; ranges missing.
    """
    if check_precision(corpus_precision) == "float32":
        raise ValueError("[search] expected a quantised corpus but got precision 'float32'. Use nearest.")
    for name, value in (("top_k", top_k), ("rescore_multiplier", rescore_multiplier)):
        if value < 1:
            raise ValueError(f"[search] expected {name} of at least 1 but got {value}.")
    expected = np.int8 if corpus_precision in ("int8", "binary") else np.uint8
    if corpus.ndim != 2 or corpus.dtype != expected:
        raise ValueError(
            f"[search] expected a {corpus_precision} corpus (N, W) of {np.dtype(expected)} but got {corpus.dtype} "
            f"{corpus.shape}."
        )
    queries = np.atleast_2d(np.asarray(queries))
    is_float = np.issubdtype(queries.dtype, np.floating)
    if is_float and corpus_precision.endswith("int8"):
        if ranges is None and calibration_embeddings is None:
            raise ValueError(
                f"[search] expected ranges or calibration_embeddings for {corpus_precision}: give those with which the "
                "corpus was quantised."
            )
        if ranges is None:
            ranges = np.stack([np.min(calibration_embeddings, axis=0), np.max(calibration_embeddings, axis=0)])
    codes = quantize_embeddings(queries, corpus_precision, ranges) if is_float else queries
    if codes.dtype != expected or codes.shape[1] != corpus.shape[1]:
        raise ValueError(
            f"[search] expected {corpus_precision} codes of {corpus.shape[1]} bytes for the queries but got "
            f"{codes.dtype} of {codes.shape[1]}. Were they made by the same model, with the same truncate_dim?"
        )
    if not is_float and rescore and rescore_embeddings is not None:
        raise ValueError("[search] expected floating queries to rescore with. Quantised ones have lost what it needs.")
    rescoring = rescore and is_float
    places, scores = _candidates(codes, corpus, corpus_precision, top_k * (rescore_multiplier if rescoring else 1))
    if not rescoring:
        return places, scores.astype(np.float64)
    if rescore_embeddings is not None:
        rows: Rows = rescore_embeddings.__getitem__
    else:
        width = queries.shape[1]
        rows = lambda chosen: dequantize_embeddings(corpus[chosen], corpus_precision, ranges, width)  # noqa: E731
    return rescored(queries, places, rows, top_k)


def semantic_search_quantized(
    queries: np.ndarray, corpus: np.ndarray, corpus_precision: str, top_k: int = 10, **options: Any
) -> list[list[dict[str, Any]]]:
    """:func:`nearest_quantized` as lists: for each query ``{"corpus_id": ..., "score": ...}``, best first."""
    places, scores = nearest_quantized(queries, corpus, corpus_precision, top_k, **options)
    return [
        [{"corpus_id": place, "score": score} for place, score in zip(row, values, strict=True)]
        for row, values in zip(places.tolist(), scores.tolist(), strict=True)
    ]


def rescored(
    queries: np.ndarray, places: np.ndarray, rows: Rows, top_k: int, score_function: str = "dot"
) -> tuple[np.ndarray, np.ndarray]:
    """The best of each query's candidates by their float embeddings.

    Args:
        queries: float ``(Q, D)``.
        places: candidates ``(Q, C)``; a negative place is none, and stays behind all others.
        rows: places ``(n,)`` to embeddings ``(n, D)``.
        top_k: results for each query.
        score_function: ``"dot"``, ``"cosine"`` or ``"euclidean"`` (distance with a minus).

    Returns:
        Places ``(Q, K)`` and scores ``(Q, K)`` float64, best first; ``-inf`` where there is none.
    """
    K = min(top_k, places.shape[1])
    found, values = np.full((len(queries), K), -1, np.int64), np.full((len(queries), K), -np.inf)
    step = max(1, CHUNK_VALUES // max(1, places.shape[1] * queries.shape[1]))
    for start in range(0, len(queries) if K else 0, step):
        some = places[start : start + step]
        chosen, inverse = np.unique(np.maximum(some, 0), return_inverse=True)
        vectors = np.asarray(rows(chosen), np.float64)[inverse.reshape(some.shape)]
        query = queries[start : start + step].astype(np.float64)[:, None]
        if score_function == "euclidean":
            scores = -np.linalg.norm(query - vectors, axis=-1)
        else:
            scores = np.sum(query * vectors, axis=-1)
            if score_function == "cosine":
                lengths = np.linalg.norm(query, axis=-1) * np.linalg.norm(vectors, axis=-1)
                scores = scores / np.maximum(lengths, 1e-12)
        scores[some < 0] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        found[start : start + step] = np.take_along_axis(some, order, 1)
        values[start : start + step] = np.take_along_axis(scores, order, 1)
    return found, values


def _candidates(codes: np.ndarray, corpus: np.ndarray, precision: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best by their codes: places and integer scores ``(Q, min(count, N))``, best first, of equals the first."""
    C = min(count, len(corpus))
    bits = precision.endswith("binary")
    unpack = _signs if bits else lambda x: mx.array(x).astype(mx.float32)
    width = codes.shape[1] * (8 if bits else 1)
    step = max(1, CHUNK_VALUES // max(width, QUERY_CHUNK))
    if not len(codes):
        return np.zeros((0, C), np.int64), np.zeros((0, C), np.int64)
    places, scores = np.zeros((len(codes), 0), np.int64), np.zeros((len(codes), 0), np.int64)

    def best_of(rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        chunk, found = unpack(rows), []
        for at in range(0, len(codes), QUERY_CHUNK):
            products = _integer_products(unpack(codes[at : at + QUERY_CHUNK]), chunk)
            found.append(_first_best((products - width) // 2 if bits else products, C))
        return found

    for start in range(0, len(corpus), step):
        found = compute(best_of, np.ascontiguousarray(corpus[start : start + step]))
        places = np.concatenate([places, np.concatenate([place for place, _ in found]) + start], axis=1)
        scores = np.concatenate([scores, np.concatenate([score for _, score in found])], axis=1)
        order = np.lexsort((places, -scores), axis=1)[:, :C]
        places, scores = np.take_along_axis(places, order, 1), np.take_along_axis(scores, order, 1)
    return places, scores


def _signs(codes: np.ndarray) -> mx.array:
    """Bits as -1 and 1: the product of two rows is D less twice their Hamming distance. ``(n, W) -> (n, 8 W)``."""
    bits = (mx.array(codes.view(np.uint8))[..., None] >> mx.arange(8, dtype=mx.uint8)) & 1
    return bits.reshape(len(codes), -1).astype(mx.float32) * 2 - 1


def _integer_products(a: mx.array, b: mx.array) -> np.ndarray:
    """Inner products of integers in float32 arrays, exactly: ``(Q, W), (n, W) -> (Q, n)`` int64."""
    total = mx.zeros((a.shape[0], b.shape[0]), mx.int32)
    for start in range(0, a.shape[1], EXACT_COLUMNS):
        block = slice(start, start + EXACT_COLUMNS)
        total = total + (a[:, block] @ b[:, block].T).astype(mx.int32)
    return np.asarray(total).astype(np.int64)


def _first_best(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values of the largest of each row, in no order; of equals the first. ``(Q, n)``, all integers."""
    n = scores.shape[1]
    if count >= n:
        return np.broadcast_to(np.arange(n), scores.shape), scores
    columns = np.argpartition(np.arange(n) - scores * n, count - 1, axis=1)[:, :count]
    return columns, np.take_along_axis(scores, columns, 1)
