"""Classification losses from logits: cross-entropy, binary cross-entropy and their focal forms.

Dimension key: C classes; leading axes are free.

Labels equal to ``ignore_index`` (-100) do not count; the mean runs over the rest and is 0 when none remain.
All arithmetic is float32. A class label outside [0, C), or no whole number, makes the loss NaN, so that it cannot pass
unseen.
"""

import mlx.core as mx
import mlx.nn as nn

from heads.loss_reduction import IGNORE_INDEX, align_targets, reduce_loss


def _check_classes(logits: mx.array, labels: mx.array) -> None:
    if tuple(logits.shape[:-1]) != tuple(labels.shape):
        raise ValueError(
            f"[loss] expected labels of shape {tuple(logits.shape[:-1])} for logits {tuple(logits.shape)} "
            f"but got {tuple(labels.shape)}. Give one class index per row of logits."
        )


def _class_losses(
    logits: mx.array, labels: mx.array, class_weights: mx.array | None, label_smoothing: float, ignore_index: int
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Per sample: loss, weight of its class, log p of its class, and whether it counts."""
    _check_classes(logits, labels)
    num_classes = logits.shape[-1]
    log_probs = nn.log_softmax(logits.astype(mx.float32), axis=-1)
    counted = labels != ignore_index
    labels = mx.where(counted, labels, 0)
    index = labels.astype(mx.int32)
    valid = (index >= 0) & (index < num_classes) & (index == labels)
    index = mx.where(valid, index, 0)
    log_p = mx.take_along_axis(log_probs, index[..., None], axis=-1)[..., 0]
    log_p = mx.where(valid, log_p, mx.nan)
    weights = mx.ones((num_classes,)) if class_weights is None else mx.array(class_weights).astype(mx.float32)
    weight = weights[index]
    losses = -weight * log_p
    if label_smoothing:
        smooth = -mx.sum(weights * log_probs, axis=-1) / num_classes
        losses = (1 - label_smoothing) * losses + label_smoothing * smooth
    return mx.where(counted, losses, 0.0), mx.where(counted, weight, 0.0), log_p, counted


def cross_entropy(
    logits: mx.array,
    labels: mx.array,
    class_weights: mx.array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> mx.array:
    """Cross-entropy with the semantics of ``torch.nn.functional.cross_entropy``.

    ``l_n = (1 - e) (-w_y log p_y) + e/C sum_c (-w_c log p_c)``; the mean is ``sum l_n / sum w_{y_n}``.

    Args:
        logits: (..., C).
        labels: (...), class indices or ``ignore_index``.
        class_weights: (C,).
        label_smoothing: ``e`` in [0, 1).
        ignore_index: Label that does not count.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or (...) for ``"none"``.
    """
    losses, weights, _, _ = _class_losses(logits, labels, class_weights, label_smoothing, ignore_index)
    return reduce_loss(losses, reduction, weights)


def focal_loss(
    logits: mx.array,
    labels: mx.array,
    gamma: float = 2.0,
    alpha: float = 1.0,
    class_weights: mx.array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> mx.array:
    """Multi-class focal loss ``alpha (1 - p_y)^gamma l_n`` (Lin et al. 2017), plain mean over the samples.

    p_y is the unweighted softmax probability and ``l_n`` the loss of `cross_entropy`, weights and smoothing included.

    Args:
        logits: (..., C).
        labels: (...), class indices or ``ignore_index``.
        gamma: Focusing exponent, at least 0; 0 gives the plain mean of ``l_n``.
        alpha: Factor on every sample.
        class_weights: (C,).
        label_smoothing: Share spread over all classes, in [0, 1).
        ignore_index: Label that does not count.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """
    losses, _, log_p, counted = _class_losses(logits, labels, class_weights, label_smoothing, ignore_index)
    losses = alpha * _focus(log_p, gamma) * losses
    return reduce_loss(mx.where(counted, losses, 0.0), reduction, counted)


def _focus(log_p: mx.array, gamma: float) -> mx.array:
    """``(1 - p)^gamma`` from log p, with a finite gradient at p = 1."""
    if gamma < 0:
        raise ValueError(f"[focal loss] expected gamma >= 0 but got {gamma}. The usual value is 2.")
    if gamma == 0:
        return mx.ones_like(log_p)
    return mx.maximum(-mx.expm1(log_p), 1e-7) ** gamma


def _binary_terms(
    logits: mx.array, labels: mx.array, label_smoothing: float, ignore_index: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Float logits, smoothed targets y (1 - e) + e/2 (NaN for a y that is none), and which places count."""
    labels = align_targets(logits, labels)
    counted = labels != ignore_index
    targets = mx.where(counted, labels, 0).astype(mx.float32)
    targets = mx.where((targets >= 0) & (targets <= 1), targets, mx.nan)
    return logits.astype(mx.float32), targets * (1 - label_smoothing) + label_smoothing / 2, counted


def binary_cross_entropy(
    logits: mx.array,
    labels: mx.array,
    pos_weight: mx.array | float | None = None,
    weight: mx.array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> mx.array:
    """Binary cross-entropy from logits, as ``torch.nn.functional.binary_cross_entropy_with_logits``.

    ``-w (pos_weight y log s(z) + (1 - y) log(1 - s(z)))``; the mean runs over all places that count.

    Args:
        logits: (...), for instance (B, C) of a multi-label task or (B, 1).
        labels: 0 to 1, or ``ignore_index``; the shape of ``logits`` up to a last axis of 1.
        pos_weight: Factor on positive labels, scalar or (C,).
        weight: Factor on every place, broadcast against ``logits``.
        label_smoothing: ``e``: the target is ``y (1 - e) + e/2``.
        ignore_index: Label that does not count.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """
    logits, targets, counted = _binary_terms(logits, labels, label_smoothing, ignore_index)
    losses = _weighted_bce(logits, targets, pos_weight)
    if weight is not None:
        losses = losses * weight
    return reduce_loss(mx.where(counted, losses, 0.0), reduction, counted)


def _weighted_bce(logits: mx.array, targets: mx.array, pos_weight: mx.array | float | None) -> mx.array:
    factor = 1.0 if pos_weight is None else 1 + (pos_weight - 1) * targets
    return (1 - targets) * logits + factor * nn.softplus(-logits)


def binary_focal_loss(
    logits: mx.array,
    labels: mx.array,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    pos_weight: mx.array | float | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> mx.array:
    """Binary focal loss ``a_t (1 - p_t)^gamma BCE`` (Lin et al. 2017); p_t is the true probability of the label.

    Args:
        logits: (...).
        labels: 0 or 1, as in `binary_cross_entropy`.
        gamma: Focusing exponent, at least 0.
        alpha: Weight of positives; negatives get ``1 - alpha``. None: no such weights.
        pos_weight: Factor on positive labels inside the BCE.
        label_smoothing: Smoothing of the targets inside the BCE.
        ignore_index: Label that does not count.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """
    hard = align_targets(logits, labels) > 0.5
    logits, targets, counted = _binary_terms(logits, labels, label_smoothing, ignore_index)
    losses = _weighted_bce(logits, targets, pos_weight) * _focus(-nn.softplus(mx.where(hard, -logits, logits)), gamma)
    if alpha is not None:
        losses = losses * mx.where(hard, alpha, 1 - alpha)
    return reduce_loss(mx.where(counted, losses, 0.0), reduction, counted)
