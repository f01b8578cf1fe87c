"""Activations: worked examples, torch, float16, gradients."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from heads.activations import ACTIVATIONS, create_activation

X = [-2.0, -1.0, 0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("gelu", {}, [-0.0455, -0.158655, 0, 0.841345, 1.9545]),
        ("silu", {}, [-0.238406, -0.268941, 0, 0.731059, 1.761594]),
        ("swish", {}, [-0.238406, -0.268941, 0, 0.731059, 1.761594]),
        ("basis_function", {}, [-0.238406, -0.268941, 0, 0.731059, 1.761594]),
        ("mish", {}, [-0.252501, -0.303401, 0, 0.865098, 1.943959]),
        ("hard_swish", {}, [-0.333333, -0.333333, 0, 0.666667, 1.666667]),
        ("golu", {}, [-0.001236, -0.065988, 0, 0.692201, 1.746846]),
        ("relu_k", {}, [0, 0, 0, 1, 8]),
        ("relu_k", {"k": 2}, [0, 0, 0, 1, 4]),
        ("saturated_mish", {}, [-0.252354, -0.302298, 0.007385, 0.903255, 2.068237]),
        ("xgelu", {"alpha": 0.5}, [0.908999, 0.182689, 0, 1.182689, 2.908999]),
        ("xatlu", {}, [-0.295167, -0.25, 0, 0.75, 1.704833]),
        ("xsilu", {}, [-0.238406, -0.268941, 0, 0.731059, 1.761594]),
        ("relu", {"max_value": 1.5, "negative_slope": 0.1, "threshold": 0.5}, [-0.25, -0.15, -0.05, 1, 1.5]),
        ("elu_plus_one", {}, [np.exp(-2), np.exp(-1), 1, 2, 3]),
        ("none", {}, X),
    ],
)
def test_worked_example(name, options, expected):
    np.testing.assert_allclose(np.array(create_activation(name, **options)(mx.array(X))), expected, atol=1e-5)


def test_worked_examples_over_the_last_axis():
    np.testing.assert_allclose(
        np.array(create_activation("squash")(mx.array([3.0, 4]))), [0.576923, 0.769231], atol=1e-5
    )
    found = np.array(create_activation("thresh_max")(mx.array([[1.0, 2, 3], [5, 5, 5]])))
    np.testing.assert_allclose(found, [[0.006638, 0.126154, 0.867207], [1 / 3] * 3], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "reference"),
    [
        ("gelu", {}, torch.nn.functional.gelu),
        ("relu", {}, torch.relu),
        ("silu", {}, torch.nn.functional.silu),
        ("mish", {}, torch.nn.functional.mish),
        ("hard_swish", {}, torch.nn.functional.hardswish),
        ("hard_sigmoid", {}, torch.nn.functional.hardsigmoid),
        ("tanh", {}, torch.tanh),
        ("sigmoid", {}, torch.sigmoid),
        ("elu", {"alpha": 0.7}, lambda x: torch.nn.functional.elu(x, 0.7)),
        ("leaky_relu", {}, torch.nn.functional.leaky_relu),
        ("leaky_relu", {"negative_slope": 0.2}, lambda x: torch.nn.functional.leaky_relu(x, 0.2)),
    ],
)
def test_values_and_gradients_are_those_of_torch(name, options, reference):
    x = np.random.default_rng(0).normal(size=50).astype(np.float32) * 4
    ours, theirs = mx.array(x), torch.tensor(x, requires_grad=True)
    function = create_activation(name, **options)
    reference(theirs).sum().backward()
    np.testing.assert_allclose(np.array(function(ours)), reference(theirs).detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(np.array(mx.grad(lambda v: function(v).sum())(ours)), theirs.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_finite_with_finite_gradients_far_out(name):
    function = create_activation(name)
    x = mx.array([[-30.0, -5.0, -0.1, 0.0, 0.1, 5.0, 30.0], [0.0] * 7])
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        y = function(x.astype(dtype))
        assert y.dtype == dtype
        assert y.shape == x.shape
        assert mx.isfinite(y).all().item()
        assert mx.isfinite(mx.grad(lambda v: function(v).sum())(x.astype(dtype))).all().item()
    far = mx.array([-1000.0, 1000.0])
    assert mx.isfinite(mx.grad(lambda v: function(v).sum())(far)).all().item()


@pytest.mark.parametrize("name", ["xatlu", "xgelu", "xsilu"])
def test_the_range_of_the_gate_is_trained(name):
    module = create_activation(name)
    assert [path for path, _ in tree_flatten(module.trainable_parameters())] == ["alpha"]
    gradient = nn.value_and_grad(module, lambda m: m(mx.array([1.0, 2.0])).sum())(module)[1]
    assert abs(gradient["alpha"].item()) > 0.1


def test_errors():
    with pytest.raises(
        ValueError, match=r"\[activation_type\] expected an available name but got 'gelo' .*saturated_mish"
    ):
        create_activation("gelo")
    with pytest.raises(ValueError, match=r"got 'adaptive_softmax' \(.*thresh_max"):
        create_activation("adaptive_softmax")
    with pytest.raises(ValueError, match=r"expected options of 'gelu' but got slope. It accepts: no options"):
        create_activation("gelu", slope=1)
    with pytest.raises(ValueError, match=r"expected options of 'xgelu' but got beta. It accepts: alpha"):
        create_activation("xgelu", beta=1)
