"""Rotary positions: the CPU's own form, MLX's fused one and given positions are the same turn."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_bert.encoders import rotary
from mlx_bert.encoders.rotary import Rotary, rotate


@pytest.mark.parametrize("length", [1, 7, 8, 33])
@pytest.mark.parametrize("rope", [Rotary(10_000.0), Rotary(9.0, 0.25)])
def test_three_forms_of_one_turn(rope, length):
    x = mx.random.normal((2, length, 3, 8), key=mx.random.key(0)).swapaxes(1, 2)
    own = np.array(rotate(x, rope, None))
    fused = mx.fast.rope(x, 8, traditional=False, base=rope.base, scale=rope.scale, offset=0)
    np.testing.assert_allclose(own, np.array(fused), atol=1e-5)
    np.testing.assert_allclose(own, np.array(rotate(x, rope, mx.arange(length)[None])), atol=1e-5)


@pytest.mark.parametrize("first", [mx.compile, lambda function: mx.grad(lambda x: mx.sum(function(x)))])
def test_the_kept_turns_do_not_belong_to_the_function_that_was_traced_first(first):
    rotary._turns.cache_clear()
    x, rope = mx.ones((1, 2, 5, 4)), Rotary(10.0)
    traced = first(lambda x: rotate(x, rope, None))(x)
    again = rotate(x, rope, None)
    mx.eval(traced, again)
    fused = mx.fast.rope(x, 4, traditional=False, base=10.0, scale=1.0, offset=0)
    np.testing.assert_allclose(np.array(again), np.array(fused), atol=1e-6)


def test_half_precision_stays_half():
    assert rotate(mx.ones((1, 1, 3, 4), dtype=mx.bfloat16), Rotary(10.0), None).dtype == mx.bfloat16
