"""Attention for training on a CPU: result and gradients are torch's in float64, dropout included."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_bert.encoders import cpu
from mlx_bert.encoders.base import attend
from mlx_bert.encoders.cpu_attention import trained_attention
from mlx_bert.encoders.cpu_trace import gradients_traced

B, H, L, D = 2, 4, 7, 8
SCALE = 0.3
MASKS = {
    "none": lambda: None,
    "padding": lambda: mx.arange(L)[None, None, None] < mx.array([7, 3])[:, None, None, None],
    "window": lambda: mx.abs(mx.arange(L)[:, None] - mx.arange(L))[None, None] <= 2,
    "added": lambda: mx.random.normal((B, H, L, L), key=mx.random.key(9)),
    "added to all rows": lambda: mx.random.normal((H, L, L), key=mx.random.key(9)),
    "added to all heads": lambda: mx.random.normal((B, 1, 1, L), key=mx.random.key(9)),
}


def drawn(key_heads: int = H) -> list[mx.array]:
    keys = mx.random.split(mx.random.key(0), 3)
    return [
        mx.random.normal((B, heads, L, D), key=key) for key, heads in zip(keys, (H, key_heads, key_heads), strict=True)
    ]


def torch_gradients(inputs, mask, keep, cotangent):
    query, key, value, *added = [torch.tensor(np.array(x), dtype=torch.float64, requires_grad=True) for x in inputs]
    shared_by = H // key.shape[1]
    scores = query @ key.repeat_interleave(shared_by, 1).mT * SCALE
    if added:
        scores = scores + added[0]
    elif mask is not None:
        scores = scores.masked_fill(~torch.tensor(np.array(mask)), -torch.inf)
    result = (torch.softmax(scores, -1) * torch.tensor(keep)) @ value.repeat_interleave(shared_by, 1)
    result.backward(torch.tensor(np.array(cotangent), dtype=torch.float64))
    return result.detach().numpy(), [x.grad.numpy() for x in (query, key, value, *added)]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("key_heads", [H, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("tile", [1 << 19, 3 * L * L, 2 * L])  # all at once; three heads; two queries
def test_result_and_gradients_are_those_of_torch(kind, key_heads, dropout, tile, monkeypatch):
    monkeypatch.setattr(cpu, "TILE", tile)
    mask = MASKS[kind]()
    inputs = [*drawn(key_heads), *([mask] if kind.startswith("added") else [])]
    cotangent = mx.random.normal((B, H, L, D), key=mx.random.key(3))
    mx.random.seed(4)
    keep = np.array(mx.random.bernoulli(1 - dropout, (B, H, L, L))) / (1 - dropout) if dropout else np.ones(1)
    wanted, gradients = torch_gradients(inputs, mask, keep, cotangent)
    mx.random.seed(4)
    with gradients_traced():
        (result,), found = mx.vjp(
            lambda q, k, v, *added: trained_attention(q, k, v, added[0] if added else mask, SCALE, dropout),
            inputs,
            [cotangent],
        )
    np.testing.assert_allclose(np.array(result), wanted, atol=2e-6)
    for got, gradient in zip(found, gradients, strict=True):
        np.testing.assert_allclose(np.array(got), gradient, rtol=1e-5, atol=1e-6 * np.abs(gradient).max())


def test_rows_that_see_nothing_stay_finite():
    mask = mx.zeros((B, 1, L, L), mx.bool_).at[0].add(True)
    with gradients_traced():
        outputs, gradients = mx.vjp(
            lambda q, k, v: trained_attention(q * 1e3, k, v, mask, SCALE, 0.2), drawn(), [mx.ones((B, H, L, D))]
        )
    assert all(np.isfinite(np.array(array)).all() for array in (*outputs, *gradients))


def test_second_derivatives_are_those_of_plain_attention():
    mask = MASKS["padding"]()

    def slope(attention):
        def length(query, key, value):
            def total(query):
                return mx.sum(mx.square(attention(query, key, value)))

            return mx.sum(mx.square(mx.grad(total)(query)))

        return mx.grad(length, argnums=(0, 1, 2))(*drawn())

    wanted = slope(lambda q, k, v: mx.softmax(mx.where(mask, SCALE * q @ k.swapaxes(-1, -2), -1e30), axis=-1) @ v)
    with gradients_traced():
        found = slope(lambda *x: trained_attention(*x, mask, SCALE, 0.0))
    for got, gradient in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.array(got), np.array(gradient), atol=1e-5 * float(mx.max(mx.abs(gradient))))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attend_takes_it_while_gradients_are_traced(dropout):
    """With the same dropout, so that training from a seed gives what it gives elsewhere."""

    def loss(query, key, value):
        return mx.sum(mx.square(attend(query, key, value, MASKS["padding"](), dropout)[0]))

    mx.random.seed(1)
    wanted = mx.grad(loss, argnums=(0, 1, 2))(*drawn())
    mx.random.seed(1)
    with gradients_traced():
        found = mx.grad(loss, argnums=(0, 1, 2))(*drawn())
    for got, gradient in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.array(got), np.array(gradient), atol=2e-5)
    assert not np.array_equal(np.array(found[0]), np.array(wanted[0]))  # another order of the same sums
