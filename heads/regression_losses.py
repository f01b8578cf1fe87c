"""Regression losses. Any number is a target, -100 too: what does not count has a weight of 0.

Dimension key: B batch, F forecast steps; leading axes are free. All arithmetic is float32.
"""

import mlx.core as mx

from heads.loss_reduction import align_targets, reduce_loss


def _residual_loss(values: mx.array, predictions: mx.array, weights: mx.array | None, reduction: str) -> mx.array:
    if weights is None:
        return reduce_loss(values, reduction)
    weights = mx.broadcast_to(align_targets(predictions, weights), values.shape).astype(mx.float32)
    # Where the weight is 0 the target may be anything, NaN too.
    return reduce_loss(mx.where(weights != 0, weights * values, 0.0), reduction, weights)


def _residual(predictions: mx.array, targets: mx.array, weights: mx.array | None) -> mx.array:
    targets = align_targets(predictions, targets)
    if weights is not None:
        targets = mx.where(align_targets(predictions, weights) != 0, targets, mx.stop_gradient(predictions))
    return predictions.astype(mx.float32) - targets.astype(mx.float32)


def mse_loss(
    predictions: mx.array, targets: mx.array, weights: mx.array | None = None, reduction: str = "mean"
) -> mx.array:
    """Mean squared error.

    Args:
        predictions: (...).
        targets: Same shape, up to a last axis of 1.
        weights: Weight or mask per prediction, same shape; the mean is over their sum.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """
    return _residual_loss(mx.square(_residual(predictions, targets, weights)), predictions, weights, reduction)


def mae_loss(
    predictions: mx.array, targets: mx.array, weights: mx.array | None = None, reduction: str = "mean"
) -> mx.array:
    """Mean absolute error; arguments as in `mse_loss`."""
    return _residual_loss(mx.abs(_residual(predictions, targets, weights)), predictions, weights, reduction)


def huber_loss(
    predictions: mx.array,
    targets: mx.array,
    delta: float = 1.0,
    weights: mx.array | None = None,
    reduction: str = "mean",
) -> mx.array:
    """``r^2 / 2`` where ``|r| <= delta``, else ``delta |r| - delta^2 / 2``; other arguments as in `mse_loss`."""
    size = mx.abs(_residual(predictions, targets, weights))
    clipped = mx.minimum(size, delta)
    return _residual_loss(clipped * (size - clipped / 2), predictions, weights, reduction)


def gaussian_nll_loss(
    mean: mx.array,
    log_variance: mx.array,
    targets: mx.array,
    weights: mx.array | None = None,
    reduction: str = "mean",
) -> mx.array:
    """Negative log-likelihood of a normal distribution without its constant: ``((y - m)^2 / v + log v) / 2``.

    Args:
        mean: m (...).
        log_variance: log v, same shape.
        targets: y, same shape up to a last axis of 1.
        weights: Weight or mask per prediction, same shape.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """
    log_variance = align_targets(mean, log_variance).astype(mx.float32)
    squares = mx.square(_residual(mean, targets, weights))
    return _residual_loss((squares * mx.exp(-log_variance) + log_variance) / 2, mean, weights, reduction)


def temporal_smoothness_loss(predictions: mx.array) -> mx.array:
    """Mean squared step ``(p_{t+1} - p_t)^2`` along the last axis of ``predictions (..., F)``; 0 for F = 1."""
    if predictions.shape[-1] < 2:
        return mx.array(0.0)
    predictions = predictions.astype(mx.float32)
    return mx.mean(mx.square(predictions[..., 1:] - predictions[..., :-1]))
