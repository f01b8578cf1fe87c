"""Searching and mining among embeddings, in chunks: memory is bounded by the chunk sizes, not by the corpus.

Embeddings may be numpy arrays (also memory-mapped files) or MLX arrays; only a chunk of them is on the device.
Results are those of ``sentence_transformers.util``. Dimensions: Q queries, N texts of a corpus, D values, K results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_bert.inference.batching import compute
from mlx_bert.inference.similarity import SIMILARITIES, as_matrix, check_name, normalize

if TYPE_CHECKING:
    from mlx_bert.inference.encode import SentenceEncoder

Matrix = np.ndarray | mx.array
CORPUS_CHUNK = 50_000
MEMBERS = 1 << 22  # the largest number of members of possible communities that are listed at a time


def nearest(
    queries: Matrix,
    corpus: Matrix,
    top_k: int = 10,
    score_function: str = "cosine",
    query_chunk_size: int = 256,
    corpus_chunk_size: int = CORPUS_CHUNK,
) -> tuple[np.ndarray, np.ndarray]:
    """The ``K = min(top_k, N)`` best of a corpus for each query, best first.

    Args:
        queries: ``(Q, D)``, or ``(D,)`` for one.
        corpus: ``(N, D)``.
        score_function: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``; larger is better.
        query_chunk_size, corpus_chunk_size: scores of so many at a time are held.

    Returns:
        Places in the corpus ``(Q, K)`` int64, and scores ``(Q, K)`` float32.

    Raises:
        ValueError: an unknown function, sizes below 1, or widths that differ.
    """
    check_name(score_function)
    _check_sizes(top_k=top_k, query_chunk_size=query_chunk_size, corpus_chunk_size=corpus_chunk_size)
    queries, corpus = on_host(queries), on_host(corpus)
    if queries.ndim == 1:
        queries = queries[None]
    if len(corpus.shape) != 2:
        raise ValueError(f"[search] expected a corpus (N, D) but got the shape {tuple(corpus.shape)}.")
    if queries.shape[1] != corpus.shape[1]:
        raise ValueError(f"[search] expected equal widths but got {queries.shape[1]} and {corpus.shape[1]}.")
    by_cosine = score_function == "cosine"
    prepare = (lambda x: normalize(as_matrix(x))) if by_cosine else as_matrix
    score = SIMILARITIES["dot" if by_cosine else score_function]
    K = min(top_k, len(corpus))
    places = np.zeros((len(queries), 0), np.int64)
    scores = np.zeros((len(queries), 0), np.float32)

    def best_of(queries: Matrix, corpus: Matrix, start: int) -> list[tuple[np.ndarray, np.ndarray]]:
        chunk = prepare(corpus[start : start + corpus_chunk_size])
        blocks = range(0, len(queries), query_chunk_size)
        return [_best(score(prepare(queries[at : at + query_chunk_size]), chunk), K) for at in blocks]

    for start in range(0, len(corpus) if len(queries) else 0, corpus_chunk_size):
        found = compute(best_of, queries, corpus, start)
        places = np.concatenate([places, np.concatenate([place for place, _ in found]) + start], axis=1)
        scores = np.concatenate([scores, np.concatenate([value for _, value in found])], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        places, scores = np.take_along_axis(places, order, 1), np.take_along_axis(scores, order, 1)
    return places, scores


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"[search] expected {name} of at least 1 but got {value}.")


def on_host(embeddings: Matrix) -> Matrix:
    """MLX arrays and lists as numpy ``(N, D)``, so that rows can be taken in any thread; anything else as it is."""
    if isinstance(embeddings, (list, tuple)):
        return np.array([np.asarray(row, np.float32) for row in embeddings])
    if not isinstance(embeddings, mx.array):
        return embeddings
    return compute(lambda rows: np.asarray(rows.astype(mx.float32)), embeddings)


def _best(scores: mx.array, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values of the ``k`` largest scores of each row, in no order. ``(Q, n) -> (Q, min(k, n))``."""
    k = min(k, scores.shape[1])
    columns = mx.argpartition(-scores, k - 1, axis=1)[:, :k] if k < scores.shape[1] else mx.argsort(-scores, axis=1)
    values = mx.take_along_axis(scores, columns, axis=1)
    mx.eval(columns, values)
    return np.asarray(columns).astype(np.int64), np.asarray(values)


def semantic_search(queries: Matrix, corpus: Matrix, top_k: int = 10, **options: Any) -> list[list[dict[str, Any]]]:
    """:func:`nearest` as lists: for each query ``{"corpus_id": ..., "score": ...}``, best first."""
    places, scores = nearest(queries, corpus, top_k, **options)
    return [
        [{"corpus_id": place, "score": score} for place, score in zip(row, values, strict=True)]
        for row, values in zip(places.tolist(), scores.tolist(), strict=True)
    ]


def paraphrase_mining_embeddings(
    embeddings: Matrix, max_pairs: int = 500_000, top_k: int = 100, block: int = 4096, **options: Any
) -> list[tuple[float, int, int]]:
    """The most similar pairs among all texts.

    Args:
        embeddings: ``(N, D)``.
        max_pairs: keep this many.
        top_k: pairs of each text with its nearest so many others are considered.
        block: texts looked up at a time.
        options: as for :func:`nearest`.

    Returns:
        ``(score, i, j)`` with ``i < j``, each pair once, best first.
    """
    embeddings = on_host(embeddings)
    kept = np.zeros((0, 2), np.int64)
    kept_scores = np.zeros(0, np.float32)
    for start in range(0, len(embeddings), block):
        places, scores = nearest(embeddings[start : start + block], embeddings, top_k + 1, **options)
        own = np.arange(start, start + len(places))[:, None]
        others = places != own
        others &= np.cumsum(others, axis=1) <= top_k
        pairs = np.stack(np.broadcast_arrays(own, places), axis=-1)[others]
        kept = np.concatenate([kept, np.sort(pairs, axis=1)])
        kept_scores = np.concatenate([kept_scores, scores[others]])
        kept, first = np.unique(kept, axis=0, return_index=True)
        order = np.argsort(-kept_scores[first], kind="stable")[:max_pairs]
        kept, kept_scores = kept[order], kept_scores[first][order]
    return [(score, i, j) for score, (i, j) in zip(kept_scores.tolist(), kept.tolist(), strict=True)]


def paraphrase_mining(
    encoder: SentenceEncoder, texts: Sequence[str], batch_size: int = 32, **options: Any
) -> list[tuple[float, int, int]]:
    """:func:`paraphrase_mining_embeddings` of texts."""
    return paraphrase_mining_embeddings(encoder.encode(texts, batch_size), **options)


def community_detection(
    embeddings: Matrix,
    threshold: float = 0.75,
    min_community_size: int = 10,
    batch_size: int = 1024,
    corpus_chunk_size: int = CORPUS_CHUNK,
) -> list[list[int]]:
    """Groups of texts around a central one, each member at least ``threshold`` in cosine from the centre.

    Rows are compared twice, first to count the members of each possible group, then to list those of the largest that
    are left. So memory grows with ``N`` and not with its square, however alike the texts are.

    Args:
        embeddings: ``(N, D)``.
        threshold: least cosine.
        min_community_size: smaller groups are left out.
        batch_size, corpus_chunk_size: so many rows and columns of the ``(N, N)`` similarities are held at a time.

    Returns:
        Disjoint groups of places, the largest first; the centre stands first in each, the others by cosine.

    Raises:
        ValueError: sizes below 1.
    """
    _check_sizes(batch_size=batch_size, corpus_chunk_size=corpus_chunk_size)
    if len(embeddings) < max(1, min_community_size):
        return []
    embeddings = on_host(embeddings)

    def cosines(rows: np.ndarray | slice, start: int) -> mx.array:
        columns = embeddings[start : start + corpus_chunk_size]
        return normalize(as_matrix(embeddings[rows])) @ normalize(as_matrix(columns)).T

    def count(rows: slice, start: int) -> np.ndarray:
        return np.asarray((cosines(rows, start) >= threshold).sum(axis=1))

    N = len(embeddings)
    chunks = range(0, N, corpus_chunk_size)
    blocks = (slice(start, start + batch_size) for start in range(0, N, batch_size))
    sizes = np.concatenate([sum(compute(count, rows, start) for start in chunks) for rows in blocks])
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] >= min_community_size]
    used = np.zeros(N, bool)
    communities = []
    while len(order := order[~used[order]]):
        fitting = np.searchsorted(np.cumsum(sizes[order[:batch_size]], dtype=np.int64), MEMBERS, "right")
        centres, order = np.split(order, [max(1, fitting)])
        for centre, members in zip(centres.tolist(), _members(cosines, centres, chunks, threshold), strict=True):
            free = members[~used[members]]
            if used[centre] or len(free) < min_community_size:
                continue
            communities.append([centre, *free[free != centre].tolist()])
            used[communities[-1]] = True
    return sorted(communities, key=len, reverse=True)


def _members(
    cosines: Callable[[np.ndarray, int], mx.array], centres: np.ndarray, chunks: range, threshold: float
) -> list[np.ndarray]:
    """Places of at least ``threshold`` in cosine from each centre, the nearest first, of equals the first."""
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in centres]
    for start in chunks:
        values = compute(lambda start: np.asarray(cosines(centres, start)), start)
        for own, row in zip(found, values, strict=True):
            columns = np.flatnonzero(row >= threshold)
            own.append((columns + start, row[columns]))
    joined = [[np.concatenate(parts) for parts in zip(*own, strict=True)] for own in found]
    return [places[np.argsort(-near, kind="stable")] for places, near in joined]


def mine_hard_negatives(
    queries: Matrix,
    corpus: Matrix,
    positives: Sequence[Sequence[int]],
    num_negatives: int = 3,
    range_min: int = 0,
    range_max: int = 100,
    min_score: float | None = None,
    max_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    **options: Any,
) -> list[list[dict[str, Any]]]:
    """For each query the best of the corpus that do not answer it: what a model confuses, to train it on.

    Args:
        queries: ``(Q, D)``.
        corpus: ``(N, D)``.
        positives: for each query the places of its right answers; they are never taken.
        num_negatives: take at most so many for each query.
        range_min: pass over so many of the best first: unlabelled answers hide there.
        range_max: look no further than this rank.
        min_score, max_score: take only scores within.
        absolute_margin: take only what scores at least this much below the worst right answer.
        relative_margin: take only what scores at most ``1 - relative_margin`` times the worst right answer.
        options: as for :func:`nearest`.

    Returns:
        For each query ``{"corpus_id": ..., "score": ...}``, the hardest first.

    Raises:
        ValueError: not one list of positives for each query, an empty one where a margin needs it, or an empty range.
    """
    if len(positives) != len(queries):
        raise ValueError(f"[search] expected {len(queries)} lists of positives but got {len(positives)}.")
    if not 0 <= range_min < range_max:
        raise ValueError(f"[search] expected 0 <= range_min < range_max but got {range_min} and {range_max}.")
    queries, corpus = on_host(queries), on_host(corpus)
    with_margin = absolute_margin is not None or relative_margin is not None
    most = max((len(right) for right in positives), default=0)
    places, scores = nearest(queries, corpus, range_max + most, **options)
    results = []
    for query, right in enumerate(positives):
        highest = np.inf if max_score is None else max_score
        if with_margin:
            if not len(right):
                raise ValueError(f"[search] expected a positive for query {query}: a margin is measured from it.")
            one = queries[query : query + 1]
            _, own = nearest(one, corpus[np.asarray(right)], len(right), **options)
            worst = float(own.min())
            highest = min(highest, worst - (absolute_margin or 0.0), worst * (1 - (relative_margin or 0.0)))
        candidates = ~np.isin(places[query], np.asarray(right, np.int64))
        rank = np.cumsum(candidates) - 1
        candidates &= (rank >= range_min) & (rank < range_max)
        candidates &= (scores[query] <= highest) & (scores[query] >= (-np.inf if min_score is None else min_score))
        chosen = np.flatnonzero(candidates)[:num_negatives]
        results.append([{"corpus_id": int(places[query, i]), "score": float(scores[query, i])} for i in chosen])
    return results


def mine_negative_texts(
    encoder: SentenceEncoder,
    pairs: Sequence[Sequence[str]],
    corpus: Sequence[str] = (),
    num_negatives: int = 3,
    batch_size: int = 32,
    prompts: Sequence[str | None] = (None, None),
    **options: Any,
) -> list[list[str]]:
    """For each (anchor, positive) the texts that the encoder takes for answers and that are none, hardest first.

    Candidates are the positives of all pairs and ``corpus``. The anchor itself and the positives of every pair with
    the same anchor are never taken.

    Args:
        encoder: embeds the texts.
        pairs: (anchor, positive).
        corpus: more candidates.
        num_negatives: at most so many for each pair.
        batch_size: as for ``encode``.
        prompts: of the anchors and of the candidates; None for the encoder's default.
        options: as for :func:`mine_hard_negatives`.

    Returns:
        One list for each pair; shorter than ``num_negatives`` where the options leave no more.
    """
    anchors = list(dict.fromkeys(anchor for anchor, _ in pairs))
    candidates = list(dict.fromkeys([*(positive for _, positive in pairs), *corpus]))
    places = {text: place for place, text in enumerate(candidates)}
    right: dict[str, list[int]] = {anchor: [] for anchor in anchors}
    for anchor, positive in pairs:
        if places[positive] not in right[anchor]:
            right[anchor].append(places[positive])
    found = mine_hard_negatives(
        encoder.encode(anchors, batch_size, prompt=prompts[0]),
        encoder.encode(candidates, batch_size, prompt=prompts[1]),
        [right[anchor] for anchor in anchors],
        num_negatives + 1,  # one may be the anchor itself
        **options,
    )
    negatives = {
        anchor: [text for hit in hits if (text := candidates[hit["corpus_id"]]) != anchor][:num_negatives]
        for anchor, hits in zip(anchors, found, strict=True)
    }
    return [list(negatives[anchor]) for anchor, _ in pairs]
