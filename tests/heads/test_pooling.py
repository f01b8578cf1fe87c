"""Poolings: worked examples, the mask contract, float16, gradients."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from heads.pooling import POOLINGS, create_pooling, last_pool, max_pool, mean_pool

POOLED = sorted(set(POOLINGS) - {"none"})
VARIANTS = [(name, {}) for name in POOLED] + [
    ("attention", {"score_activation": None}),
    ("weighted_mean", {"position_based": True, "max_length": 16}),
    ("pooler", {"activation": "gelu"}),
    ("pooler", {"activation": "gelu", "tokens": "all"}),
]
# Rows: nothing padded, right, left, both sides and a hole, padding alone.
MASK = np.array(
    [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]], np.int32
)


def states(dtype=mx.float32, dim=8):
    return mx.random.normal((5, 6, dim), key=mx.random.key(1)).astype(dtype)


def redrawn(name, dim=8, **options):
    """A pooling with large random parameters, so that each of them matters."""
    pooling = create_pooling(name, dim, **options)
    keys = mx.random.split(mx.random.key(3), 8)
    flat = tree_flatten(pooling.parameters())
    pooling.load_weights(
        [(path, 0.3 * mx.random.normal(x.shape, key=key)) for (path, x), key in zip(flat, keys, strict=False)]
    )
    return pooling


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cls", [1, 2]),
        ("mean", [2, 3]),
        ("max", [3, 4]),
        ("last", [3, 4]),
        ("attention", [2, 3]),
        ("weighted_mean", [2, 3]),
    ],
)
def test_worked_example(name, expected):
    pooling = create_pooling(name, 2)
    pooling.update(
        {path: {k: mx.zeros_like(v) for k, v in layer.items()} for path, layer in pooling.parameters().items()}
    )
    pooled = pooling(mx.array([[[1.0, 2], [3, 4], [100, 100]]]), mx.array([[1, 1, 0]]))
    np.testing.assert_allclose(np.array(pooled), [expected], atol=1e-5)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_padding_never_changes_the_result(name, options):
    pooling, x, mask = redrawn(name, **options), states(), mx.array(MASK)
    real = mask[..., None] > 0
    expected = np.array(pooling(x, mask))
    for junk in (1e4, -1e4, mx.inf, mx.nan):
        np.testing.assert_array_equal(np.array(pooling(mx.where(real, x, junk), mask)), expected)
    assert np.isfinite(expected).all()


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_side_of_padding_does_not_matter(name, options):
    pooling, x = redrawn(name, **options), states()[:1, :4]
    padding = mx.zeros((1, 3, 8))
    alone = np.array(pooling(x))
    right = pooling(mx.concatenate([x, padding], axis=1), mx.array([[1] * 4 + [0] * 3]))
    left = pooling(mx.concatenate([padding, x], axis=1), mx.array([[0] * 3 + [1] * 4]))
    np.testing.assert_allclose(np.array(right), alone, atol=1e-6)
    np.testing.assert_allclose(np.array(left), alone, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_mask_types_and_no_mask_agree(name, options):
    pooling, x, mask = redrawn(name, **options), states(), mx.array(MASK)
    expected = np.array(pooling(x, mask))
    for dtype in (mx.bool_, mx.float32, mx.int8):
        np.testing.assert_array_equal(np.array(pooling(x, mask.astype(dtype))), expected)
    np.testing.assert_allclose(np.array(pooling(x)), np.array(pooling(x, mx.ones((5, 6)))), atol=1e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_half_precision_is_finite_and_keeps_its_type(name, options, dtype):
    # A sum of these values leaves the range of float16.
    x = mx.full((5, 6, 8), 30000.0).astype(dtype)
    pooling = create_pooling(name, 8, **options)
    pooling.set_dtype(dtype)
    pooled = pooling(x, mx.array(MASK))
    assert pooled.dtype == dtype
    assert mx.isfinite(pooled).all().item()
    # Content gates of such inputs may all be 0, and so may their mean.
    if name in ("mean", "max", "attention") or options.get("position_based"):
        np.testing.assert_allclose(np.array(pooled.astype(mx.float32))[:4], 30000, rtol=0.01)


@pytest.mark.parametrize("name", ["attention", "weighted_mean", "pooler"])
@pytest.mark.parametrize("position_based", [False, True])
def test_every_parameter_learns(name, position_based):
    if position_based and name != "weighted_mean":
        pytest.skip("only weighted_mean has positions")
    pooling = redrawn(name, **({"position_based": True, "max_length": 6} if position_based else {}))
    loss = lambda model: mx.sum(model(states(), mx.array(MASK)) * mx.arange(8))  # noqa: E731
    for path, gradient in tree_flatten(nn.value_and_grad(pooling, loss)(pooling)[1]):
        assert mx.isfinite(gradient).all().item(), path
        assert mx.abs(gradient).max().item() > 1e-6, path


def test_gradient_ignores_padding_even_if_it_is_nan():
    mask = mx.array(MASK)
    x = mx.where(mask[..., None] > 0, states(), mx.nan)
    for name in POOLED:
        pooling = redrawn(name)
        gradient = np.array(mx.grad(lambda h, p=pooling: mx.sum(p(h, mask)))(x))
        np.testing.assert_array_equal(gradient[MASK == 0], 0, err_msg=name)
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


def test_mean_and_max_are_those_of_numpy():
    x, mask = states(), mx.array(MASK)
    rows = [(np.array(x)[i], MASK[i].astype(bool)) for i in range(4)]
    np.testing.assert_allclose(np.array(mean_pool(x, mask))[:4], [h[m].mean(0) for h, m in rows], atol=1e-6)
    np.testing.assert_allclose(np.array(max_pool(x, mask))[:4], [h[m].max(0) for h, m in rows], atol=1e-6)
    np.testing.assert_allclose(np.array(last_pool(x, mask))[:4], [h[m][-1] for h, m in rows], atol=1e-6)


def test_attention_pooling_is_the_formula():
    for activation, bound in (("tanh", np.tanh), (None, lambda s: s)):
        pooling = redrawn("attention", score_activation=activation)
        h = np.array(states())
        scores = bound(h @ np.array(pooling.score.weight)[0] + np.array(pooling.score.bias))
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        np.testing.assert_allclose(np.array(pooling(states())), (weights[..., None] * h).sum(1), atol=1e-5)


def test_attention_pooling_has_d_plus_one_parameters():
    pooling = create_pooling("attention", 8)
    assert sum(x.size for _, x in tree_flatten(pooling.parameters())) == 9


def test_position_weights_start_as_the_mean_and_follow_positions():
    pooling = create_pooling("weighted_mean", 8, position_based=True, max_length=6)
    np.testing.assert_allclose(np.array(pooling(states())), np.array(mean_pool(states())), atol=1e-6)
    pooling.position_scores = mx.array([0.0, 50.0, 0.0, 0.0, 0.0, 0.0])
    weights = np.log1p(np.exp([0, 50, 0, 0, 0, 0]))
    expected = np.einsum("l,bld->bd", weights / weights.sum(), np.array(states()))
    np.testing.assert_allclose(np.array(pooling(states())), expected, rtol=1e-4, atol=1e-5)


def test_pooler_is_that_of_bert():
    ours = redrawn("pooler")
    weight, bias = (torch.tensor(np.array(x)) for x in (ours.dense.weight, ours.dense.bias))
    expected = torch.tanh(torch.nn.functional.linear(torch.tensor(np.array(states()))[:, 0], weight, bias))
    np.testing.assert_allclose(np.array(ours(states())), expected.numpy(), atol=1e-5)


def test_pooler_of_all_tokens_is_the_mean_behind_the_activation():
    ours = redrawn("pooler", tokens="all")
    real = np.array(states())[1, :3]
    expected = np.tanh(real @ np.array(ours.dense.weight).T + np.array(ours.dense.bias)).mean(axis=0)
    np.testing.assert_allclose(np.array(ours(states(), mx.array(MASK)))[1], expected, atol=1e-5)


def test_none_returns_its_input():
    x = states()
    assert create_pooling("none", 8)(x) is x


@pytest.mark.parametrize("name", ["CLS", " Mean ", "weighted-mean"])
def test_names_are_forgiving(name):
    assert create_pooling(name, 8)(states()).shape == (5, 8)


def test_errors():
    with pytest.raises(
        ValueError, match=r"\[pooling_type\] expected an available name but got 'median'.*weighted_mean"
    ):
        create_pooling("median", 8)
    with pytest.raises(ValueError, match=r"\[pooling_type\] expected a name but got 3"):
        create_pooling(3, 8)
    with pytest.raises(ValueError, match=r"expected options of 'mean' but got power. It accepts: no options"):
        create_pooling("mean", 8, power=2)
    with pytest.raises(ValueError, match=r"expected score_activation 'tanh' or None but got 'relu'"):
        create_pooling("attention", 8, score_activation="relu")
    with pytest.raises(ValueError, match=r"expected tokens 'first' or 'all' but got 'last'"):
        create_pooling("pooler", 8, tokens="last")
    with pytest.raises(ValueError, match=r"expected at most max_length=4 tokens but got 6"):
        create_pooling("weighted_mean", 8, position_based=True, max_length=4)(states())
    with pytest.raises(ValueError, match=r"\[attention_mask\] expected shape \(5, 6\) but got \(5, 5\)"):
        create_pooling("mean", 8)(states(), mx.ones((5, 5)))
    with pytest.raises(ValueError, match=r"\[pooling\] expected hidden states of shape \(B, L, D\) but got \(5, 8\)"):
        create_pooling("mean", 8)(states()[:, 0])
