"""Start values: ranges, spread, orthonormality."""

import math

import mlx.core as mx
import numpy as np
import pytest

from heads.initialization import (
    glorot_linear,
    he_linear,
    orthogonal_linear,
    orthonormality_loss,
    truncated_normal,
    truncated_normal_linear,
)


def test_truncated_normal():
    values = np.array(truncated_normal((20000,), 0.02))
    assert np.abs(values).max() <= 0.04
    assert values.std() == pytest.approx(0.02 * 0.88, rel=0.03)  # the spread of a normal cut at two deviations


def test_linear_layers():
    glorot, bound = glorot_linear(30, 50), math.sqrt(6 / 80)
    assert np.abs(np.array(glorot.weight)).max() <= bound
    assert np.array(glorot.weight).std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert np.array(he_linear(100, 80).weight).std() == pytest.approx(math.sqrt(2 / 100), rel=0.05)
    assert np.abs(np.array(truncated_normal_linear(30, 50, std=0.1).weight)).max() <= 0.2
    for layer in (glorot, he_linear(3, 4), orthogonal_linear(3, 4), truncated_normal_linear(3, 4)):
        np.testing.assert_array_equal(np.array(layer.bias), 0)
    assert "bias" not in glorot_linear(3, 4, bias=False)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_orthogonal(shape):
    weight = np.array(orthogonal_linear(*shape).weight)
    assert weight.shape == shape[::-1]
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    np.testing.assert_allclose(gram, np.eye(min(shape)), atol=1e-5)
    assert orthonormality_loss(mx.array(weight)).item() < 1e-10
    assert orthonormality_loss(2 * mx.array(weight)).item() == pytest.approx(9 / min(shape), rel=1e-4)
