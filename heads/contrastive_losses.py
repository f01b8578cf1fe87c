"""Losses that pull embeddings together and push them apart.

Dimension key: B batch, N samples, M negatives, E embedding size. All arithmetic is float32.
"""

import mlx.core as mx

from heads.classification_losses import cross_entropy
from heads.loss_reduction import IGNORE_INDEX, reduce_loss
from heads.regression_losses import mse_loss

DISTANCES = ("euclidean", "squared_euclidean", "manhattan", "cosine")


def unit_vectors(x: mx.array, eps: float = 1e-8) -> mx.array:
    """``x / max(|x|, eps)`` over the last axis, in float32; a zero vector stays zero, with a finite gradient."""
    x = x.astype(mx.float32)
    return x * mx.rsqrt(mx.maximum(mx.sum(mx.square(x), axis=-1, keepdims=True), eps**2))


def pair_distances(first: mx.array, second: mx.array, distance: str = "euclidean") -> mx.array:
    """Distance of row i of ``first (B, E)`` from row i of ``second (B, E)``: (B,) float32, with a finite gradient.

    Args:
        first: (B, E).
        second: (B, E).
        distance: ``"euclidean"``, ``"squared_euclidean"``, ``"manhattan"`` or ``"cosine"`` (1 - cosine).

    Raises:
        ValueError: another distance, or shapes that differ.
    """
    if distance not in DISTANCES:
        raise ValueError(
            f"[pair_distances] expected distance to be one of {', '.join(DISTANCES)} but got {distance!r}. "
            "Use one of them."
        )
    first, second = _pair(first, second, normalize=distance == "cosine")
    if distance == "cosine":
        return 1 - mx.sum(first * second, axis=-1)
    if distance == "manhattan":
        return mx.sum(mx.abs(first - second), axis=-1)
    squared = mx.sum(mx.square(first - second), axis=-1)
    return squared if distance == "squared_euclidean" else _root(squared)


def info_nce_loss(
    first: mx.array,
    second: mx.array,
    temperature: float | mx.array = 0.07,
    symmetric: bool = True,
    normalize: bool = True,
) -> mx.array:
    """InfoNCE with in-batch negatives: cross-entropy of ``first second^T / temperature`` against the diagonal.

    Args:
        first: (B, E).
        second: (B, E); row i belongs to row i of ``first``, the other rows are its negatives.
        temperature: Positive number.
        symmetric: Mean of both directions (NT-Xent as in CLIP), not only first -> second.
        normalize: Use cosine similarities.
    """
    first, second = _pair(first, second, normalize)
    logits = first @ second.T / temperature
    labels = mx.arange(logits.shape[0])
    loss = cross_entropy(logits, labels)
    return (loss + cross_entropy(logits.T, labels)) / 2 if symmetric else loss


def multiple_negatives_ranking_loss(
    anchors: mx.array,
    positives: mx.array,
    negatives: mx.array | None = None,
    scale: float = 20.0,
    symmetric: bool = False,
    normalize: bool = True,
) -> mx.array:
    """Cross-entropy over scaled cosines of each anchor with all positives and hard negatives (Henderson et al. 2017).

    Args:
        anchors: (B, E).
        positives: (B, E).
        negatives: (B, E) or (B, M, E), hard negatives of every anchor, seen by all anchors; None: in-batch only.
        scale: Factor on the cosine.
        symmetric: Mean of this and of each positive's cross-entropy over all anchors.
        normalize: Use cosines, not dot products.
    """
    anchors, positives = _pair(anchors, positives, normalize)
    candidates, labels = positives, mx.arange(anchors.shape[0])
    if negatives is not None:
        negatives = unit_vectors(negatives) if normalize else negatives.astype(mx.float32)
        candidates = mx.concatenate([positives, negatives.reshape(-1, anchors.shape[-1])])
    loss = cross_entropy(scale * anchors @ candidates.T, labels)
    return (loss + cross_entropy(scale * positives @ anchors.T, labels)) / 2 if symmetric else loss


def supervised_contrastive_loss(
    embeddings: mx.array,
    labels: mx.array,
    temperature: float = 0.07,
    normalize: bool = True,
    ignore_index: int = IGNORE_INDEX,
) -> mx.array:
    """Supervised contrastive loss, the positives outside the logarithm (Khosla et al. 2020, eq. 2).

    ``-1/|P(i)| sum_{p in P(i)} log(exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t))``, mean over the samples that have
    a positive; 0 if none has.

    Args:
        embeddings: z (N, E).
        labels: (N,), class of each sample; those of ``ignore_index`` take no part.
        temperature: t.
        normalize: Use cosine similarities.
        ignore_index: Label that does not count.
    """
    vectors = unit_vectors(embeddings) if normalize else embeddings.astype(mx.float32)
    counted = labels != ignore_index
    others = counted[:, None] & counted[None, :] & ~mx.eye(labels.shape[0], dtype=mx.bool_)
    positives = others & (labels[:, None] == labels[None, :])
    scores = mx.where(others, vectors @ vectors.T / temperature, mx.finfo(mx.float32).min)
    log_share = scores - mx.logsumexp(scores, axis=1, keepdims=True)
    count = mx.sum(positives, axis=1)
    losses = -mx.sum(mx.where(positives, log_share, 0.0), axis=1) / mx.maximum(count, 1)
    return reduce_loss(losses, "mean", count > 0)


def pair_contrastive_loss(
    first: mx.array, second: mx.array, labels: mx.array, margin: float = 1.0, distance: str = "euclidean"
) -> mx.array:
    """``y d^2 + (1 - y) max(0, margin - d)^2`` with the distance d, mean over pairs (Hadsell et al. 2006).

    Args:
        first: (B, E).
        second: (B, E).
        labels: (B,), 1 for similar and 0 for dissimilar pairs.
        margin: Distance from which a dissimilar pair costs nothing.
        distance: As in :func:`pair_distances`.
    """
    distances = pair_distances(first, second, distance)
    labels = labels.astype(mx.float32)
    return mx.mean(labels * mx.square(distances) + (1 - labels) * mx.square(mx.maximum(margin - distances, 0)))


def triplet_loss(
    anchors: mx.array,
    positives: mx.array,
    negatives: mx.array,
    margin: float = 1.0,
    distance: str = "squared_euclidean",
) -> mx.array:
    """``max(0, d(a, p) - d(a, n) + margin)``, mean over triplets.

    Args:
        anchors: a (B, E).
        positives: p (B, E).
        negatives: n (B, E).
        margin: As above.
        distance: As in :func:`pair_distances`.
    """
    near, far = (pair_distances(anchors, other, distance) for other in (positives, negatives))
    return mx.mean(mx.maximum(near - far + margin, 0))


def cosine_mse_loss(first: mx.array, second: mx.array, targets: mx.array) -> mx.array:
    """Mean squared error of the cosine of ``first`` and ``second``, both (B, E), against ``targets (B,)``."""
    first, second = _pair(first, second, normalize=True)
    return mse_loss(mx.sum(first * second, axis=-1), targets)


def _pair(first: mx.array, second: mx.array, normalize: bool = False) -> tuple[mx.array, mx.array]:
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"[contrastive loss] expected two arrays of one shape (B, E) but got {tuple(first.shape)} and "
            f"{tuple(second.shape)}. Row i of one belongs to row i of the other."
        )
    if normalize:
        return unit_vectors(first), unit_vectors(second)
    return first.astype(mx.float32), second.astype(mx.float32)


def _root(squared: mx.array) -> mx.array:
    """Square root with a zero instead of an infinite gradient at 0."""
    return mx.where(squared > 0, mx.sqrt(mx.where(squared > 0, squared, 1.0)), 0.0)
