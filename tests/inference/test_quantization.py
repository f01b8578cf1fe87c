"""Quantised embeddings, bit for bit those of sentence-transformers."""

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings as reference

from mlx_bert.inference.quantization import quantize_embeddings

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(120, 21)).astype(np.float32)
CALIBRATION = RANDOM.normal(size=(50, 21)).astype(np.float32)
PRECISIONS = ["float32", "int8", "uint8", "binary", "ubinary"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_to_the_reference(precision):
    ours, theirs = quantize_embeddings(X, precision), reference(X, precision)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_calibration_and_ranges(precision):
    expected = reference(X, precision, calibration_embeddings=CALIBRATION)
    np.testing.assert_array_equal(quantize_embeddings(X, precision, calibration_embeddings=CALIBRATION), expected)
    ranges = np.stack([CALIBRATION.min(0), CALIBRATION.max(0)])
    np.testing.assert_array_equal(quantize_embeddings(X, precision, ranges=ranges), expected)
    np.testing.assert_array_equal(quantize_embeddings(X[0], precision, ranges=ranges), expected[0])


def test_a_constant_dimension():
    constant = np.concatenate([X, np.ones((120, 1), np.float32)], axis=1)
    np.testing.assert_array_equal(quantize_embeddings(constant, "uint8"), reference(constant, "uint8"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_none(precision):
    empty = np.zeros((0, 21), np.float32)
    assert quantize_embeddings(empty, precision).shape == reference(empty, precision).shape


def test_errors():
    with pytest.raises(ValueError, match=r"precision to be one of .* but got 'int4'"):
        quantize_embeddings(X, "int4")
    with pytest.raises(ValueError, match="floating embeddings to quantise but got int8"):
        quantize_embeddings(X.astype(np.int8), "binary")
    with pytest.raises(ValueError, match="quantise a single embedding to int8"):
        quantize_embeddings(X[:1], "int8")
    with pytest.raises(ValueError, match=r"ranges of shape \(2, 21\) but got \(2, 3\)"):
        quantize_embeddings(X, "int8", ranges=np.zeros((2, 3)))
