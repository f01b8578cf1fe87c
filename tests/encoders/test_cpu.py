"""The CPU's GELU and attention: the same functions as everywhere else."""

import io
import re

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch

from mlx_bert.encoders import cpu
from mlx_bert.encoders.cpu_trace import gradients_traced


def test_gelu_is_the_exact_one():
    x = np.linspace(-30, 30, 600_001, dtype=np.float32)
    expected = torch.nn.functional.gelu(torch.tensor(x, dtype=torch.float64)).numpy()
    error = np.abs(np.asarray(cpu.gelu(mx.array(x))) - expected)
    assert error.max() < 4e-7
    assert np.abs(np.asarray(nn.gelu_approx(mx.array(x))) - expected).max() > 1e-4  # the bound tells them apart


def test_gelu_of_special_values():
    result = np.asarray(cpu.gelu(mx.array([0.0, -0.0, 1e30, -1e30, float("nan")])))
    np.testing.assert_array_equal(result, np.array([0, 0, 1e30, 0, np.nan], np.float32))


def test_gelu_gradient():
    x = np.linspace(-8, 8, 2001, dtype=np.float32)
    reference = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.gelu(reference).sum().backward()
    gradient = mx.grad(lambda x: mx.sum(cpu.gelu(x)))(mx.array(x))
    np.testing.assert_allclose(np.asarray(gradient), reference.grad.numpy(), atol=6e-6)


def test_trained_gelu_and_its_gradient():
    x = np.linspace(-8, 8, 2001, dtype=np.float32)
    reference = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.gelu(reference).backward(torch.tensor(x.astype(np.float64) + 9))
    with gradients_traced():
        (result,), (gradient,) = mx.vjp(cpu.gelu, [mx.array(x)], [mx.array(x) + 9])
    np.testing.assert_array_equal(np.asarray(result), np.asarray(cpu.gelu(mx.array(x))))
    np.testing.assert_allclose(np.asarray(gradient), reference.grad.numpy(), rtol=1e-6, atol=1e-5)
    far = mx.array([0.0, -0.0, 40.0, -40.0, 1e30, -1e30])
    with gradients_traced():
        slope = mx.grad(lambda x: mx.sum(cpu.gelu(x)))(far)
    np.testing.assert_array_equal(np.asarray(slope), [0.5, 0.5, 1, 0, 1, 0])


def test_trained_gelu_is_compiled_both_ways():
    with gradients_traced():
        outputs = mx.vjp(cpu.gelu, [mx.ones((4, 4))], [mx.ones((4, 4))])
    kernels = [operation for operation in operations_of(outputs) if operation.startswith("Compiled")]
    assert len(kernels) == 5
    plain = mx.vjp(cpu.gelu, [mx.ones((4, 4))], [mx.ones((4, 4))])
    assert not any(operation.startswith("Compiled") for operation in operations_of(plain))


def test_trained_gelu_has_second_derivatives():
    x = mx.linspace(-3, 3, 12)
    with gradients_traced():
        second = mx.grad(lambda x: mx.sum(mx.grad(lambda x: mx.sum(cpu.gelu(x)))(x)))(x)
    phi = np.exp(-np.square(np.asarray(x)) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(np.asarray(second), (2 - np.square(np.asarray(x))) * phi, atol=1e-5)


def test_half_precision_goes_the_general_way():
    x = mx.array([0.5, -1.0], dtype=mx.float16)
    assert cpu.gelu(x).dtype == mx.float16
    assert not cpu.suits(x)


def test_exp():
    t = np.linspace(0, 200, 200_001, dtype=np.float32)
    result, expected = np.asarray(cpu.exp_negative(mx.array(t))), np.exp(-t.astype(np.float64))
    assert np.abs(result / expected - 1)[t <= 16].max() < 1.2e-6
    assert np.abs(result - expected)[t > 16].max() < 1e-12
    assert np.asarray(cpu.exp_negative(mx.array([float("inf"), 1e38]))).max() < 1e-12
    slope = mx.grad(lambda t: mx.sum(3 * cpu.exp_negative(t)))(mx.array([0.0, 1.0, 30.0, 1e38]))
    np.testing.assert_allclose(np.asarray(slope), -3 * np.exp([0.0, -1.0, -30.0, -1e38]), rtol=1e-4, atol=1e-12)


def test_gradients_are_finite_everywhere():
    far = mx.array([0.0, -25.0, 90.0, -1e6, 1e8, -1e8])
    assert np.isfinite(np.asarray(mx.grad(lambda x: mx.sum(cpu.gelu(x)))(far))).all()
    query = mx.random.normal((1, 1, 3, 4)) * 100
    mask = mx.array([True, True, False])[None, None, None]
    for gradient in mx.grad(lambda *x: mx.sum(cpu.attention(*x, mask, 1.0)), argnums=(0, 1, 2))(query, query, query):
        assert np.isfinite(np.asarray(gradient)).all()


def test_attention_gradient_is_the_fused_one():
    q, k, v = (mx.random.normal((2, 2, 5, 4), key=mx.random.key(n)) for n in range(3))
    mask = mx.arange(5)[None, None, None] < mx.array([5, 3])[:, None, None, None]
    weight = mx.random.normal((2, 2, 5, 4), key=mx.random.key(7))
    fused = lambda *x: mx.sum(weight * mx.fast.scaled_dot_product_attention(*x, scale=0.5, mask=mask))  # noqa: E731
    ours = lambda *x: mx.sum(weight * cpu.attention(*x, mask, 0.5))  # noqa: E731
    for got, wanted in zip(
        mx.grad(ours, argnums=(0, 1, 2))(q, k, v), mx.grad(fused, argnums=(0, 1, 2))(q, k, v), strict=True
    ):
        np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), atol=1e-5)


KERNELS = {
    "_inverse_root": 1,
    "_inverse_root_alone": 1,
    "_gelu": 2,
    "_gelu_slope": 4,
    "_exp_quarter": 1,
    "_exp_eighth_square": 1,
    "_inverse_fourth_power": 1,
}


def operations_of(arrays) -> list[str]:
    graph = io.StringIO()
    mx.export_to_dot(graph, arrays)
    return [label for label in re.findall(r'label ="(\w+)"', graph.getvalue()) if label not in ("Broadcast", "Full")]


@pytest.mark.parametrize("name", KERNELS)
def test_each_function_is_one_kernel(name):
    """Of several, the later ones would get constants as arrays without strides, which no compiler vectorises."""
    operations = operations_of(getattr(cpu, name)(*[mx.ones((4, 4))] * KERNELS[name]))
    assert len(operations) == 1
    assert operations.pop().startswith("Compiled")


MASKS = {
    "none": lambda: None,
    "padding": lambda: mx.arange(7)[None, None, None] < mx.array([7, 3])[:, None, None, None],
    "window": lambda: mx.abs(mx.arange(7)[:, None] - mx.arange(7))[None, None] <= 2,
    "added": lambda: mx.random.normal((2, 4, 7, 7), key=mx.random.key(9)),
    "blind": lambda: mx.zeros((2, 1, 7, 7), mx.bool_).at[0].add(True),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("tile", [1 << 19, 4 * 7 * 7, 3 * 7 * 7, 2 * 7, 1])
def test_attention_is_the_fused_one(kind, key_heads, spread, tile, monkeypatch):
    monkeypatch.setattr(cpu, "TILE", tile)  # all at once; a row, three heads, two queries, one query at a time
    monkeypatch.setattr(cpu, "MIN_QUERIES", 1)
    keys = mx.random.split(mx.random.key(0), 3)
    query = mx.random.normal((2, 4, 7, 8), key=keys[0]) * spread
    key, value = (mx.random.normal((2, key_heads, 7, 8), key=k) for k in keys[1:])
    mask = MASKS[kind]()
    result = np.asarray(cpu.attention(query, key, value, mask, 0.3))
    assert np.isfinite(result).all()
    expected = np.asarray(mx.fast.scaled_dot_product_attention(query, key, value, scale=0.3, mask=mask))
    rows = 1 if kind == "blind" else 2  # a row that sees nothing means nothing
    np.testing.assert_allclose(result[:rows], expected[:rows], atol=1e-5)


def test_closed_positions_do_not_count():
    query, value = mx.random.normal((1, 1, 3, 4)), mx.random.normal((1, 1, 3, 4))
    mask = mx.array([True, True, False])[None, None, None]
    far = mx.concatenate([value[:, :, :2], mx.full((1, 1, 1, 4), 1e4)], axis=2)
    changed = cpu.attention(query, mx.where(mask.swapaxes(-1, -2), value, 1e4), far, mask, 1.0)
    np.testing.assert_array_equal(np.asarray(changed), np.asarray(cpu.attention(query, value, value, mask, 1.0)))
