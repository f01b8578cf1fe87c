"""What the losses share: the label that does not count, reductions, and targets of the right shape."""

import mlx.core as mx

IGNORE_INDEX = -100


def reduce_loss(values: mx.array, reduction: str, weights: mx.array | None = None) -> mx.array:
    """Reduce per-sample losses.

    Args:
        values: Losses, any shape, already multiplied by ``weights`` and zero where ignored.
        reduction: ``"mean"`` (sum over the sum of weights, 0 if that is 0), ``"sum"`` or ``"none"``.
        weights: Weight of each value, 0 where ignored; None for all ones.

    Raises:
        ValueError: for another reduction.
    """
    if reduction == "none":
        return values
    if reduction == "sum":
        return mx.sum(values)
    if reduction == "mean":
        total = mx.array(float(values.size)) if weights is None else mx.sum(weights.astype(mx.float32))
        return mx.sum(values) / mx.where(total > 0, total, 1.0)
    raise ValueError(f"[loss] expected reduction 'mean', 'sum' or 'none' but got {reduction!r}. Use one of them.")


def align_targets(predictions: mx.array, targets: mx.array) -> mx.array:
    """Give ``targets`` the shape of ``predictions``; only a last axis of size 1 may differ.

    Raises:
        ValueError: for any other difference, which would broadcast (N, 1) against (N,) to (N, N).
    """
    if predictions.shape == targets.shape:
        return targets
    if tuple(predictions.shape) == (*targets.shape, 1):
        return mx.expand_dims(targets, -1)
    if tuple(targets.shape) == (*predictions.shape, 1):
        return mx.squeeze(targets, -1)
    raise ValueError(
        f"[loss] expected targets of shape {tuple(predictions.shape)} but got {tuple(targets.shape)}. "
        "Give one target per prediction."
    )
