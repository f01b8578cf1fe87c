"""Learning-to-rank losses from scores.

Dimension key: B lists, N items; ``scores`` and ``relevance`` are (B, N), or (N,) for one list.

``mask (B, N)`` says which items are real. With ``group_ids``, of the shape of the scores, the items of a row form
several lists, one per id. Only items of one list are compared. All arithmetic is float32; a mean over nothing is 0.
"""

import mlx.core as mx
import mlx.nn as nn

from heads.loss_reduction import align_targets, reduce_loss


def listnet_loss(
    scores: mx.array, relevance: mx.array, mask: mx.array | None = None, group_ids: mx.array | None = None
) -> mx.array:
    """``-sum_i softmax(y)_i log softmax(s)_i``, mean over the lists (Cao et al. 2007, top-one probabilities)."""
    scores, relevance, real, together = _comparable(scores, relevance, mask, group_ids)

    def log_share(values: mx.array) -> mx.array:
        others = mx.where(together, mx.expand_dims(values, -2), mx.finfo(mx.float32).min)
        return values - mx.logsumexp(others, axis=-1)

    losses = mx.where(real, -mx.exp(log_share(relevance)) * log_share(scores), 0.0)
    # Each of a list's n items carries 1/n of it, so these weights count the lists.
    return reduce_loss(losses, "mean", mx.where(real, 1 / mx.maximum(mx.sum(together, axis=-1), 1), 0.0))


def ranknet_loss(
    scores: mx.array, relevance: mx.array, mask: mx.array | None = None, group_ids: mx.array | None = None
) -> mx.array:
    """``log(1 + exp(-(s_i - s_j)))``, mean over all pairs with ``y_i > y_j`` (Burges et al. 2005)."""
    scores, relevance, _, together = _comparable(scores, relevance, mask, group_ids)
    return _mean_over_pairs(nn.softplus(-_differences(scores)), relevance, together)


def pairwise_hinge_loss(
    scores: mx.array,
    relevance: mx.array,
    mask: mx.array | None = None,
    group_ids: mx.array | None = None,
    margin: float = 1.0,
) -> mx.array:
    """``max(0, margin - (s_i - s_j))``, mean over all pairs with ``y_i > y_j``."""
    scores, relevance, _, together = _comparable(scores, relevance, mask, group_ids)
    return _mean_over_pairs(mx.maximum(margin - _differences(scores), 0), relevance, together)


def lambdarank_loss(
    scores: mx.array, relevance: mx.array, mask: mx.array | None = None, group_ids: mx.array | None = None
) -> mx.array:
    """`ranknet_loss` with each pair weighted by ``|delta NDCG|`` of swapping it (Burges et al. 2006).

    Gains are ``2^y - 1``, discounts ``1 / log2(1 + rank)`` at the ranks that the scores give now.
    """
    scores, relevance, _, together = _comparable(scores, relevance, mask, group_ids)
    gains = 2**relevance - 1
    discounts = 1 / mx.log2(1 + _ranks(scores, together))
    ideal = mx.expand_dims(gains / mx.log2(1 + _ranks(relevance, together)), -2)
    ideal = mx.sum(mx.where(together, ideal, 0.0), axis=-1, keepdims=True)
    change = mx.abs(_differences(gains) * _differences(discounts)) / mx.where(ideal > 0, ideal, 1.0)
    return _mean_over_pairs(change * nn.softplus(-_differences(scores)), relevance, together)


def pointwise_ranking_loss(
    scores: mx.array, relevance: mx.array, mask: mx.array | None = None, group_ids: mx.array | None = None
) -> mx.array:
    """Mean squared error of each score against its relevance; lists do not matter, so neither do ``group_ids``."""
    scores, relevance, real, _ = _comparable(scores, relevance, mask, group_ids)
    return reduce_loss(mx.where(real, mx.square(scores - relevance), 0.0), "mean", real)


def _comparable(
    scores: mx.array, relevance: mx.array, mask: mx.array | None, group_ids: mx.array | None
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Scores and relevance with zeros for what is not real, which items are real, which pairs share a list."""
    relevance = align_targets(scores, relevance)
    real = mx.ones(scores.shape, dtype=mx.bool_) if mask is None else align_targets(scores, mask).astype(mx.bool_)
    together = mx.expand_dims(real, -1) & mx.expand_dims(real, -2)
    if group_ids is not None:
        group_ids = align_targets(scores, group_ids)
        together = together & (mx.expand_dims(group_ids, -1) == mx.expand_dims(group_ids, -2))
    scores, relevance = (mx.where(real, x, 0).astype(mx.float32) for x in (scores, relevance))
    return scores, relevance, real, together


def _differences(x: mx.array) -> mx.array:
    """``x_i - x_j`` at [..., i, j]."""
    return mx.expand_dims(x, -1) - mx.expand_dims(x, -2)


def _mean_over_pairs(losses: mx.array, relevance: mx.array, together: mx.array) -> mx.array:
    pairs = together & (_differences(relevance) > 0)
    return reduce_loss(mx.where(pairs, losses, 0.0), "mean", pairs)


def _ranks(x: mx.array, together: mx.array) -> mx.array:
    """Rank from 1 of each item within its list, the largest first, ties by position."""
    ahead = -_differences(x)
    position = mx.arange(x.shape[-1])
    earlier = position[None, :] < position[:, None]
    return 1 + mx.sum(together & ((ahead > 0) | ((ahead == 0) & earlier)), axis=-1)
