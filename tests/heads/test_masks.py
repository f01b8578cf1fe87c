"""Masks of heads: types, softmax over real places, rotation to the left."""

import mlx.core as mx
import numpy as np
import pytest

from heads.masks import as_boolean_mask, left_alignment, masked_softmax, zero_padding

MASK = mx.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]])


def test_boolean_masks():
    assert as_boolean_mask(None, (4, 4)) is None
    for dtype in (mx.bool_, mx.int32, mx.float16):
        found = as_boolean_mask(MASK.astype(dtype), (4, 4))
        assert found.dtype == mx.bool_
        np.testing.assert_array_equal(np.array(found), np.array(MASK) == 1)
    with pytest.raises(ValueError, match=r"\[attention_mask\] expected shape \(4, 5\) but got \(4, 4\)"):
        as_boolean_mask(MASK, (4, 5))


def test_zero_padding_removes_even_nan():
    found = zero_padding(mx.full((4, 4, 2), mx.nan), MASK == 2)
    np.testing.assert_array_equal(np.array(found), 0)
    assert zero_padding(found, None) is found


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_masked_softmax(dtype):
    scores = mx.random.normal((4, 4), key=mx.random.key(0)).astype(dtype)
    found = np.array(masked_softmax(scores, MASK == 1))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[np.array(MASK) == 0], 0)
    np.testing.assert_allclose(found.sum(axis=1), [1, 1, 1, 0], atol=1e-6)
    shares = np.exp(np.array(scores[0, :2]).astype(np.float64))
    np.testing.assert_allclose(found[0, :2], shares / shares.sum(), atol=1e-6)


def test_left_alignment_and_back():
    there, back = left_alignment(MASK == 1)
    aligned = mx.take_along_axis(MASK, there, axis=1)
    np.testing.assert_array_equal(np.array(aligned), [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(np.array(mx.take_along_axis(aligned, back, axis=1)), np.array(MASK))
