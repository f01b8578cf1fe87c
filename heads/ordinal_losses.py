"""Losses of ordered classes 0 < 1 < ... < K-1, from K - 1 threshold logits.

Dimension key: B batch, K classes. All arithmetic is float32.
"""

import mlx.core as mx
import mlx.nn as nn

from heads.classification_losses import binary_cross_entropy
from heads.loss_reduction import IGNORE_INDEX, align_targets, reduce_loss


def ordinal_targets(labels: mx.array, num_classes: int) -> mx.array:
    """Binary targets ``[y > k]`` for k = 0 .. K-2. ``labels (B,)`` -> (B, K-1) float32."""
    return (mx.expand_dims(labels, -1) > mx.arange(num_classes - 1)).astype(mx.float32)


def ordinal_loss(
    threshold_logits: mx.array,
    labels: mx.array,
    class_weights: mx.array | None = None,
    sample_weights: mx.array | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> mx.array:
    """Binary cross-entropy of every threshold: the loss of CORAL (Cao et al. 2020) and of independent thresholds.

    Args:
        threshold_logits: (B, K-1), logits of ``P(y > k)``.
        labels: (B,), 0 to K-1 or ``ignore_index``.
        class_weights: (K,), weight of a sample by its class.
        sample_weights: (B,).
        ignore_index: Label that does not count.

    Returns:
        Scalar: the mean over thresholds and (weighted) samples.
    """
    num_classes = threshold_logits.shape[-1] + 1
    weights, labels, _ = _ordinal_weights(labels, num_classes, class_weights, sample_weights, ignore_index)
    losses = binary_cross_entropy(threshold_logits, ordinal_targets(labels, num_classes), reduction="none")
    return reduce_loss(_where_weighted(weights, mx.mean(losses, axis=-1)), "mean", weights)


def cumulative_logits_loss(
    cumulative_logits: mx.array,
    labels: mx.array,
    class_weights: mx.array | None = None,
    sample_weights: mx.array | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> mx.array:
    """Negative log-likelihood of the proportional odds model (McCullagh 1980).

    ``P(y = k) = s(c_k) - s(c_{k-1})`` with ``c_k = theta_k - f``, s the logistic function, ``s(c_{-1}) = 0`` and
    ``s(c_{K-1}) = 1``.

    Args:
        cumulative_logits: (B, K-1), logits c of ``P(y <= k)``, strictly rising in k.
        labels: (B,), 0 to K-1 or ``ignore_index``.
        class_weights: (K,), weight of a sample by its class.
        sample_weights: (B,).
        ignore_index: Label that does not count.

    Returns:
        Scalar: the mean over the (weighted) samples.
    """
    logits = cumulative_logits.astype(mx.float32)
    num_classes = logits.shape[-1] + 1
    weights, labels, valid = _ordinal_weights(labels, num_classes, class_weights, sample_weights, ignore_index)
    # s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)): each factor keeps its precision far out in the tails.
    above = -nn.softplus(-logits)
    below = -nn.softplus(logits)
    gap = mx.maximum(logits[..., 1:] - logits[..., :-1], 1e-7)
    inner = above[..., 1:] + below[..., :-1] + mx.log(-mx.expm1(-gap))
    log_probs = mx.concatenate([above[..., :1], inner, below[..., -1:]], axis=-1)
    log_p = mx.take_along_axis(log_probs, mx.expand_dims(labels, -1), axis=-1)[..., 0]
    return reduce_loss(_where_weighted(weights, -mx.where(valid, log_p, mx.nan)), "mean", weights)


def ordinal_probabilities(threshold_logits: mx.array) -> mx.array:
    """Class probabilities ``P(y > k-1) - P(y > k)`` from logits of ``P(y > k)``. (B, K-1) -> (B, K).

    Independent thresholds may cross; a negative difference counts as 0 and the rest is rescaled to sum 1.
    """
    exceeds = mx.sigmoid(threshold_logits.astype(mx.float32))
    edge = mx.ones((*exceeds.shape[:-1], 1))
    steps = mx.concatenate([edge, exceeds], axis=-1) - mx.concatenate([exceeds, mx.zeros_like(edge)], axis=-1)
    steps = mx.maximum(steps, 0)
    return steps / mx.sum(steps, axis=-1, keepdims=True)


def _ordinal_weights(
    labels: mx.array,
    num_classes: int,
    class_weights: mx.array | None,
    sample_weights: mx.array | None,
    ignore_index: int,
) -> tuple[mx.array, mx.array, mx.array]:
    """Weight of each sample (0 where ignored, NaN for a label that is no class), usable labels, which are classes."""
    counted = labels != ignore_index
    valid = (labels >= 0) & (labels < num_classes) & (labels == labels.astype(mx.int32))
    safe = mx.where(valid, labels, 0).astype(mx.int32)
    weights = mx.ones(labels.shape) if class_weights is None else mx.array(class_weights).astype(mx.float32)[safe]
    if sample_weights is not None:
        weights = weights * align_targets(labels, sample_weights)
    weights = mx.where(valid, weights, mx.nan)
    return mx.where(counted, weights, 0.0), safe, valid


def _where_weighted(weights: mx.array, losses: mx.array) -> mx.array:
    return mx.where(weights == 0, 0.0, weights * losses)
