"""Terms that join another loss: distillation, ensemble diversity, consistency of a hierarchy, uncertainty weights.

Dimension key: B batch, C classes, n members. All arithmetic is float32.
"""

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from heads.classification_losses import cross_entropy
from heads.contrastive_losses import unit_vectors
from heads.loss_reduction import IGNORE_INDEX, reduce_loss


def distillation_kl(
    student_logits: mx.array, teacher_logits: mx.array, temperature: float = 3.0, mask: mx.array | None = None
) -> mx.array:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))``, mean over samples (Hinton et al. 2015).

    Args:
        student_logits: (..., C).
        teacher_logits: (..., C); no gradient flows into them.
        temperature: T.
        mask: (...), which samples count; None: all.
    """
    teacher = nn.log_softmax(mx.stop_gradient(teacher_logits).astype(mx.float32) / temperature, axis=-1)
    student = nn.log_softmax(student_logits.astype(mx.float32) / temperature, axis=-1)
    losses = temperature**2 * mx.sum(mx.exp(teacher) * (teacher - student), axis=-1)
    if mask is None:
        return reduce_loss(losses, "mean")
    mask = mask.astype(mx.bool_)
    return reduce_loss(mx.where(mask, losses, 0.0), "mean", mask)


def distillation_loss(
    student_logits: mx.array,
    teacher_logits: mx.array,
    labels: mx.array,
    alpha: float = 0.7,
    temperature: float = 3.0,
    ignore_index: int = IGNORE_INDEX,
) -> mx.array:
    """``(1 - alpha) cross-entropy + alpha T^2 KL(teacher || student)``.

    Args:
        student_logits: (..., C).
        teacher_logits: (..., C).
        labels: (...), classes or ``ignore_index``, which counts in neither term.
        alpha: Share of the teacher, 0 to 1.
        temperature: T.
        ignore_index: Label that does not count.
    """
    soft = distillation_kl(student_logits, teacher_logits, temperature, labels != ignore_index)
    return (1 - alpha) * cross_entropy(student_logits, labels, ignore_index=ignore_index) + alpha * soft


def ensemble_diversity_loss(member_probabilities: mx.array) -> mx.array:
    """Mean cosine similarity of all pairs of members: low when they disagree. (B, n, C) -> scalar; 0 for n = 1."""
    members = member_probabilities.shape[1]
    if members < 2:
        return mx.array(0.0)
    vectors = unit_vectors(member_probabilities)
    similarity = mx.mean(vectors @ vectors.swapaxes(1, 2), axis=0)
    return mx.sum(mx.triu(similarity, k=1)) / (members * (members - 1) / 2)


def hierarchical_consistency_loss(
    parent_probabilities: mx.array, child_probabilities: mx.array, membership: mx.array
) -> mx.array:
    """``(P(parent) - sum P(children))^2``, mean over the batch and the parents that have children.

    Args:
        parent_probabilities: (B, P).
        child_probabilities: (B, C).
        membership: (P, C), 1 where a class of the lower level is a child of the parent.
    """
    membership = membership.astype(mx.float32)
    gaps = parent_probabilities.astype(mx.float32) - child_probabilities.astype(mx.float32) @ membership.T
    has_children = mx.any(membership > 0, axis=1)
    return reduce_loss(mx.where(has_children, mx.mean(mx.square(gaps), axis=0), 0.0), "mean", has_children)


def uncertainty_weighted_loss(losses: Mapping[str, mx.array], log_variances: Mapping[str, mx.array]) -> mx.array:
    """``sum_t exp(-s_t) L_t / 2 + s_t / 2`` with a trainable ``s_t`` per task (Kendall et al. 2018).

    Args:
        losses: Scalar loss of each task that takes part.
        log_variances: ``s_t`` of at least those tasks, any shape of one element.
    """
    if missing := sorted(set(losses) - set(log_variances)):
        raise ValueError(
            f"[uncertainty_weighted_loss] expected a log variance per task but got none for {', '.join(missing)}. "
            "Add them."
        )
    total = mx.array(0.0)
    for task, loss in losses.items():
        log_variance = mx.sum(log_variances[task])
        total = total + (mx.exp(-log_variance) * loss + log_variance) / 2
    return total
