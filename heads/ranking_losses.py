"""Learning-to-rank losses from scores.

Dimension key: B lists, N items; ``scores`` and ``relevance`` are (B, N), or (N,) for one list.

``mask (B, N)`` says which items are real. With ``group_ids``, of the shape of the scores, the items of a row form
several lists, one per id. Only items of one list are compared. All arithmetic is float32; a mean over nothing is 0.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from heads.loss_reduction import align_targets, reduce_loss


def listnet_loss(
    scores: mx.array, relevance: mx.array, mask: mx.array | None = None, group_ids: mx.array | None = None
) -> mx.array:
    """``-sum_i softmax(y)_i log softmax(s)_i``, mean over the lists (Cao et al. 2007, top-one probabilities)."""
    scores, relevance, real, together = _comparable(scores, relevance, mask, group_ids)
    # An item that is not real is alone with itself: without anything to sum, its gradient would be NaN.
    compared = together | mx.eye(scores.shape[-1], dtype=mx.bool_)

    def log_share(values: mx.array) -> mx.array:
        others = mx.where(compared, mx.expand_dims(values, -2), mx.finfo(mx.float32).min)
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


LAMBDA_WEIGHTINGS = ("none", "ndcg_loss1", "ndcg_loss2", "lambdarank", "ndcg_loss2++")


def lambda_loss(
    scores: mx.array,
    relevance: mx.array,
    mask: mx.array | None = None,
    group_ids: mx.array | None = None,
    weighting: str = "ndcg_loss2++",
    k: int | None = None,
    mu: float = 10.0,
    sigma: float = 1.0,
) -> mx.array:
    """LambdaLoss: ``-w_ij log2 sigmoid(sigma (s_i - s_j))``, mean over pairs with ``y_i > y_j`` (Wang et al. 2018).

    Values are those of sentence-transformers' ``LambdaLoss``. With gains ``G = (2^y - 1) / maxDCG`` and the ranks
    ``r`` that the scores give now: ``"lambdarank"`` weights by ``|G_i - G_j| |1 / D(r_i) - 1 / D(r_j)|``, with
    ``D(r) = log2(1 + r)``; ``"ndcg_loss2"`` by ``|G_i - G_j| |1 / D(|r_i - r_j|) - 1 / D(|r_i - r_j| + 1)|``;
    ``"ndcg_loss2++"`` by ``mu`` times the latter and the former; ``"ndcg_loss1"`` by ``G_i / D(r_i)``, over all pairs
    of real items; ``"none"`` by 1, which is RankNet.

    Args:
        scores, relevance, mask, group_ids: As above. Relevance below 0 gains as 0.
        weighting: As above.
        k: Only pairs of which one stands among the first k; None for all.
        mu: Weight of ``"ndcg_loss2"`` in ``"ndcg_loss2++"``.
        sigma: Factor on score differences.

    Raises:
        ValueError: for another weighting.
    """
    pairs = lambda_pairs(scores, relevance, mask, group_ids, weighting, k)
    scores, relevance, _, together = _comparable(scores, relevance, mask, group_ids)
    ranks = _ranks(scores, together)
    discounts = mx.log2(1 + ranks)
    gains = 2 ** mx.maximum(relevance, 0) - 1
    ideal_ranks = _ranks(relevance, together)
    ideal = gains / mx.log2(1 + ideal_ranks)
    ideal = ideal if k is None else mx.where(ideal_ranks <= k, ideal, 0.0)
    ideal = mx.sum(mx.where(together, mx.expand_dims(ideal, -2), 0.0), axis=-1)
    gains = gains / mx.maximum(ideal, 1e-10)
    change = mx.abs(_differences(gains))
    apart = mx.abs(_differences(ranks))
    by_distance = mx.abs(1 / mx.log2(1 + mx.maximum(apart, 1)) - 1 / mx.log2(2 + mx.maximum(apart, 1)))
    by_rank = mx.abs(_differences(1 / discounts))
    weights = {
        "none": mx.ones_like(change),
        "ndcg_loss1": mx.broadcast_to(mx.expand_dims(gains / discounts, -1), change.shape),
        "ndcg_loss2": change * by_distance,
        "lambdarank": change * by_rank,
        "ndcg_loss2++": change * (mu * by_distance + by_rank),
    }[weighting]
    losses = weights * nn.softplus(-sigma * _differences(scores)) / math.log(2)
    return reduce_loss(mx.where(pairs, losses, 0.0), "mean", pairs)


def lambda_pairs(
    scores: mx.array,
    relevance: mx.array,
    mask: mx.array | None = None,
    group_ids: mx.array | None = None,
    weighting: str = "ndcg_loss2++",
    k: int | None = None,
) -> mx.array:
    """The pairs that :func:`lambda_loss` is a mean over, a boolean ``(..., N, N)``."""
    if weighting not in LAMBDA_WEIGHTINGS:
        raise ValueError(
            f"[lambda_loss] expected weighting among {', '.join(LAMBDA_WEIGHTINGS)} but got {weighting!r}. "
            "Choose one of them."
        )
    scores, relevance, _, together = _comparable(scores, relevance, mask, group_ids)
    pairs = together if weighting == "ndcg_loss1" else together & (_differences(relevance) > 0)
    if k is None:
        return pairs
    first = _ranks(scores, together) <= k
    return pairs & (mx.expand_dims(first, -1) | mx.expand_dims(first, -2))


def listmle_loss(
    scores: mx.array,
    relevance: mx.array,
    mask: mx.array | None = None,
    group_ids: mx.array | None = None,
    position_aware: bool = False,
) -> mx.array:
    """``-sum_i log P(i is picked next)`` in the order of the relevance, mean over the lists (Xia et al. 2008).

    Among equally relevant items the order given counts. Values are those of sentence-transformers' ``ListMLELoss``
    with ``respect_input_order=False`` and, with ``position_aware``, of its ``PListMLELoss`` (Lan et al. 2014): the
    place ``r`` of a list of n items weighs ``2^(n - r) - 1``, the weights of a list adding up to 1.
    """
    scores, relevance, real, together = _comparable(scores, relevance, mask, group_ids)
    place = _ranks(relevance, together)
    left = together & (mx.expand_dims(place, -2) >= mx.expand_dims(place, -1))  # what is not picked before
    left = left | mx.eye(scores.shape[-1], dtype=mx.bool_)
    normalizers = mx.logsumexp(mx.where(left, mx.expand_dims(scores, -2), mx.finfo(mx.float32).min), axis=-1)
    losses = normalizers - scores
    count = mx.sum(together, axis=-1)
    if position_aware:
        weights = mx.where(real, 2.0**-place - 2.0**-count, 0.0)
        total = mx.sum(mx.where(together, mx.expand_dims(weights, -2), 0.0), axis=-1)
        losses = losses * weights / mx.maximum(total, 1e-30)
    losses = mx.where(real, losses, 0.0)
    return reduce_loss(losses, "mean", mx.where(real, 1 / mx.maximum(count, 1), 0.0))


def score_margin_mse_loss(
    scores: mx.array, teacher: mx.array, mask: mx.array | None = None, group_ids: mx.array | None = None
) -> mx.array:
    """Mean squared error of ``s_1 - s_i`` against a teacher's ``t_1 - t_i``, over the items behind a list's first.

    Hofstätter et al. 2020; values are those of sentence-transformers' ``MarginMSELoss`` for cross-encoders.
    """
    scores, teacher, real, together = _comparable(scores, teacher, mask, group_ids)
    first = _ranks(mx.zeros_like(scores), together) == 1
    ahead = together & mx.expand_dims(first & real, -2)

    def of_first(values: mx.array) -> mx.array:
        return mx.sum(mx.where(ahead, mx.expand_dims(values, -2), 0.0), axis=-1)

    errors = mx.square((of_first(scores) - scores) - (of_first(teacher) - teacher))
    counted = real & ~first
    return reduce_loss(mx.where(counted, errors, 0.0), "mean", counted)


def count_of_lists(
    scores: mx.array, relevance: mx.array, mask: mx.array | None = None, group_ids: mx.array | None = None
) -> mx.array:
    """How many lists have a real item: what the mean of the listwise losses is over; a float32 scalar."""
    _, _, real, together = _comparable(scores, relevance, mask, group_ids)
    return mx.sum(mx.where(real, 1 / mx.maximum(mx.sum(together, axis=-1), 1), 0.0))


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
