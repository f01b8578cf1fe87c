"""Losses of ranked lists do not see what is masked, and take flat lists with group ids as they take padded ones."""

import mlx.core as mx
import numpy as np
import pytest

from heads.losses import (
    lambda_loss,
    lambdarank_loss,
    listmle_loss,
    listnet_loss,
    pairwise_hinge_loss,
    ranknet_loss,
    score_margin_mse_loss,
)
from heads.ranking_losses import LAMBDA_WEIGHTINGS, count_of_lists, lambda_pairs

SIZES = (3, 5, 2)
LOSSES = {
    "lambda": lambda_loss,
    "lambda@2": lambda *a: lambda_loss(*a, k=2),
    **{name: lambda *a, name=name: lambda_loss(*a, weighting=name) for name in LAMBDA_WEIGHTINGS},
    "listmle": listmle_loss,
    "plistmle": lambda *a: listmle_loss(*a, position_aware=True),
    "listnet": listnet_loss,
    "ranknet": ranknet_loss,
    "lambdarank head": lambdarank_loss,
    "hinge": pairwise_hinge_loss,
    "margin_mse": score_margin_mse_loss,
}


def padded_and_flat():
    random = np.random.default_rng(3)
    scores = random.normal(size=(len(SIZES), max(SIZES))).astype(np.float32)
    relevance = random.integers(0, 4, scores.shape).astype(np.float32)
    mask = np.arange(max(SIZES)) < np.array(SIZES)[:, None]
    groups = np.repeat(np.arange(len(SIZES)), SIZES)
    return scores, relevance, mask, groups


@pytest.mark.parametrize("name", LOSSES)
def test_flat_lists_equal_padded_ones_whatever_stands_at_padding(name):
    scores, relevance, mask, groups = padded_and_flat()
    loss = LOSSES[name]
    values, gradients = [], []
    for junk in (0.0, 1e4):
        filled = mx.array(np.where(mask, scores, junk))
        value, gradient = mx.value_and_grad(lambda s, f=filled: loss(s, mx.array(relevance), mx.array(mask)))(filled)
        values.append(value.item())
        gradients.append(np.array(gradient))
    flat, tail = mx.array(np.append(scores[mask], [9.0, 9.0])), [False, False]
    real = mx.array(np.append(np.ones(mask.sum(), bool), tail))
    target, ids = mx.array(np.append(relevance[mask], [-100.0, -100.0])), mx.array(np.append(groups, [-1, -1]))
    value, gradient = mx.value_and_grad(lambda s: loss(s, target, real, ids))(flat)
    assert values[0] == values[1] != 0
    np.testing.assert_array_equal(gradients[0], gradients[1])
    assert (gradients[0][~mask] == 0).all()
    assert np.abs(gradients[0][mask]).max() > 1e-3
    assert value.item() == pytest.approx(values[0], rel=1e-5)
    np.testing.assert_allclose(np.array(gradient)[:-2], gradients[0][mask], atol=1e-6)
    assert (np.array(gradient)[-2:] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_real_is_zero_with_a_zero_gradient(name):
    none = mx.zeros((2, 3), mx.bool_)
    scores = mx.array([[1.0, 2, 3], [0, 0, 0]])
    value, gradient = mx.value_and_grad(lambda s: LOSSES[name](s, mx.ones((2, 3)), none))(scores)
    assert value.item() == 0
    assert (np.array(gradient) == 0).all()


def test_worked_examples():
    # one pair, the worse one ahead by 1: ranks 2 and 1, gains 1 and 0, discounts log2(3) and 1
    scores, relevance = mx.array([0.0, 1.0]), mx.array([1.0, 0.0])
    surprise = np.log2(1 + np.e)
    by_rank = 1 - 1 / np.log2(3)
    assert lambda_loss(scores, relevance, weighting="none").item() == pytest.approx(surprise, rel=1e-5)
    assert lambda_loss(scores, relevance).item() == pytest.approx(11 * by_rank * surprise, rel=1e-5)
    assert listmle_loss(scores, relevance).item() == pytest.approx(np.log(1 + np.e), rel=1e-5)
    margins = score_margin_mse_loss(mx.array([2.0, 1.0, -1.0]), mx.array([5.0, 5.0, 1.0]))
    assert margins.item() == pytest.approx((1 + 1) / 2)


def test_counts():
    scores, relevance, mask, _ = (mx.array(x) for x in padded_and_flat())
    assert count_of_lists(scores, relevance, mask).item() == pytest.approx(3)
    assert count_of_lists(scores, relevance, mx.array([[True] * 5, [False] * 5, [False] * 5])).item() == 1
    pairs = np.array(lambda_pairs(scores, relevance, mask))
    y = np.where(np.array(mask), np.array(relevance), np.nan)
    np.testing.assert_array_equal(pairs, y[:, :, None] > y[:, None, :])
    assert np.array(lambda_pairs(scores, relevance, mask, k=1)).sum() < pairs.sum()
