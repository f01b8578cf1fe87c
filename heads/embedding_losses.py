"""Losses of embedding models that learn from graded pairs, from classes, and from a teacher.

Dimension key: B batch, M negatives, N texts of an example, E embedding size. All arithmetic is float32.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from heads.contrastive_losses import pair_distances, unit_vectors

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_LEAST = mx.finfo(mx.float32).min


def pair_similarities(first: mx.array, second: mx.array, similarity: str = "cosine") -> mx.array:
    """Similarity of row i of ``first (B, E)`` and row i of ``second (B, E)``: (B,) float32; larger is closer.

    Args:
        first: (B, E).
        second: (B, E).
        similarity: ``"cosine"``, ``"dot"``, or the negative distance ``"euclidean"`` or ``"manhattan"``.

    Raises:
        ValueError: another similarity.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(
            f"[pair_similarities] expected similarity to be one of {', '.join(SIMILARITIES)} but got {similarity!r}. "
            "Use one of them."
        )
    if similarity == "dot":
        return mx.sum(first.astype(mx.float32) * second.astype(mx.float32), axis=-1)
    return float(similarity == "cosine") - pair_distances(first, second, similarity)


def angle_similarities(first: mx.array, second: mx.array) -> mx.array:
    """AnglE's similarity (Li & Li 2024, https://aclanthology.org/2024.acl-long.101) of rows (B, E): (B,).

    ``|cos + sin|`` of unit vectors, where value i and value i + E/2 are one complex number; an odd E gets a zero more.
    """
    first, second = (unit_vectors(x) for x in (first, second))
    if first.shape[-1] % 2:
        first, second = (mx.pad(x, ((0, 0), (0, 1))) for x in (first, second))
    (real_1, imaginary_1), (real_2, imaginary_2) = (mx.split(x, 2, axis=-1) for x in (first, second))
    cosines = mx.sum(first * second, axis=-1)
    return mx.abs(cosines + mx.sum(imaginary_1 * real_2 - real_1 * imaginary_2, axis=-1))


def cosent_loss(similarities: mx.array, labels: mx.array, scale: float = 20.0) -> mx.array:
    """``log(1 + sum exp(scale (s_i - s_j)))`` over all pairs of examples with ``y_i < y_j``.

    It is 0 where similarities are far apart in the order of the labels (CoSENT, https://kexue.fm/archives/8847).

    Args:
        similarities: s (B,) of pairs of texts.
        labels: y (B,), larger for texts that are closer; only their order counts.
        scale: As above.
    """
    similarities, labels = similarities.astype(mx.float32), labels.reshape(-1)
    differences = scale * (similarities[:, None] - similarities[None, :])
    wrong_way = mx.where(labels[:, None] < labels[None, :], differences, _LEAST)
    return mx.logsumexp(mx.concatenate([mx.zeros((1,)), wrong_way.reshape(-1)]))


def online_contrastive_loss(
    first: mx.array, second: mx.array, labels: mx.array, margin: float = 0.5, distance: str = "cosine"
) -> mx.array:
    """The contrastive loss of the hard pairs alone, their sum.

    Positives count ``d^2`` if farther than the nearest negative, negatives ``max(0, margin - d)^2`` if nearer than the
    farthest positive. With one kind of pairs only, those beyond the mean distance count.

    Args:
        first: (B, E).
        second: (B, E).
        labels: (B,), 1 for similar and 0 for dissimilar pairs.
        margin: Distance from which a dissimilar pair costs nothing.
        distance: As in :func:`heads.contrastive_losses.pair_distances`.
    """
    distances, labels = pair_distances(first, second, distance), labels.reshape(-1)
    is_positive, is_negative = labels == 1, labels == 0
    chosen = mx.stop_gradient(distances)
    mean = mx.mean(chosen)  # used where all pairs are of one kind
    farthest = mx.max(mx.where(is_positive, chosen, -mx.inf))
    nearest = mx.min(mx.where(is_negative, chosen, mx.inf))
    hard_negative = is_negative & (chosen < mx.where(mx.any(is_positive), farthest, mean))
    hard_positive = is_positive & (chosen > mx.where(mx.any(is_negative), nearest, mean))
    losses = mx.where(hard_positive, mx.square(distances), 0.0)
    return mx.sum(losses + mx.where(hard_negative, mx.square(mx.maximum(margin - distances, 0)), 0.0))


def batch_hard_triplet_loss(
    embeddings: mx.array, labels: mx.array, margin: float | None = 5.0, distance: str = "euclidean"
) -> mx.array:
    """Triplet loss with each text's farthest text of its class and nearest of the others (Hermans et al. 2017).

    ``max(0, d_p - d_n + margin)``, or ``log(1 + exp(d_p - d_n))`` without a margin; mean over the batch. A text alone
    in its class has d_p = 0; a batch of one class has as d_n the greatest distance twice, as in sentence-transformers.

    Args:
        embeddings: (B, E).
        labels: (B,), classes.
        margin: As above; None for the soft margin.
        distance: ``"euclidean"`` or ``"cosine"`` (1 - cosine).

    Raises:
        ValueError: another distance.
    """
    if distance not in ("euclidean", "cosine"):
        raise ValueError(
            f"[batch_hard_triplet_loss] expected distance 'euclidean' or 'cosine' but got {distance!r}. Use one."
        )
    labels = labels.reshape(-1)
    distances = _all_distances(embeddings, distance)
    same = labels[:, None] == labels[None, :]
    farthest = mx.max(mx.where(same & ~mx.eye(labels.shape[0], dtype=mx.bool_), distances, 0.0), axis=1)
    greatest = mx.max(distances, axis=1, keepdims=True)
    nearest = mx.min(mx.where(same, distances + greatest, distances), axis=1)
    gap = farthest - nearest
    return mx.mean(nn.softplus(gap) if margin is None else mx.maximum(gap + margin, 0))


def margin_mse_loss(
    queries: mx.array,
    positives: mx.array,
    negatives: Sequence[mx.array],
    targets: mx.array,
    similarity: str = "dot",
) -> mx.array:
    """Mean squared error of ``s(q, p) - s(q, n)`` against a teacher's difference (Hofstätter et al. 2020).

    Args:
        queries: q (B, E).
        positives: p (B, E).
        negatives: M times n (B, E).
        targets: the teacher's differences (B,) or (B, M), or its scores of the positive and the negatives (B, 1 + M).
        similarity: As in :func:`pair_similarities`.

    Raises:
        ValueError: targets of another shape.
    """
    count = len(negatives)
    targets = mx.stop_gradient(targets).astype(mx.float32)
    if targets.ndim == 1:
        targets = targets[:, None]
    if count and targets.shape == (queries.shape[0], count + 1):
        targets = targets[:, :1] - targets[:, 1:]
    if not count or targets.shape != (queries.shape[0], count):
        raise ValueError(
            f"[margin_mse_loss] expected {max(count, 1)} differences or {max(count, 1) + 1} scores for each example "
            f"with {count} negatives but got targets of shape {tuple(targets.shape)}. Give the teacher's scores."
        )
    best = pair_similarities(queries, positives, similarity)
    margins = mx.stack([best - pair_similarities(queries, other, similarity) for other in negatives], axis=1)
    return mx.mean(mx.square(margins - targets))


def _all_distances(x: mx.array, distance: str) -> mx.array:
    """Distances of all rows of ``x (B, E)`` from each other: (B, B), with a zero gradient where they are 0."""
    if distance == "cosine":
        x = unit_vectors(x)
        return 1 - x @ x.T
    x = x.astype(mx.float32)
    products = x @ x.T
    own = mx.diagonal(products)
    squared = own[None, :] - 2 * products + own[:, None]
    positive = squared > 0
    return mx.where(positive, mx.sqrt(mx.where(positive, squared, 1.0)), 0.0)
