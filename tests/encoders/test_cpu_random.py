"""Dropout masks drawn on a CPU: as many as asked for, independent, and always the same from a seed."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_bert.encoders.cpu_random import bernoulli, fast_dropout

COUNT = 1 << 20


def centred(p, key):
    return (np.array(bernoulli(p, (COUNT,), key)) - p) / (p * (1 - p)) ** 0.5


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_frequency_and_independence(p):
    """Each figure is a standard normal variable if the values are independent and of the right frequency."""
    one, other = (centred(p, key) for key in (mx.random.key(1), mx.random.key(2)))
    figures = [one.sum(), other.sum(), one @ other]
    figures += [one[:-lag] @ one[lag:] for lag in (1, 2, 3, 4, 7, 16, 64, 128, 384, 1536, 65536)]
    assert np.abs(figures).max() / COUNT**0.5 < 4.5
    rows = one.reshape(1024, 1024).sum(axis=1) / 32
    assert 0.8 < rows.var() < 1.2


def test_seed_and_key_decide():
    mx.random.seed(3)
    first, second = (np.array(bernoulli(0.5, (3, 5, 7))) for _ in range(2))
    mx.random.seed(3)
    np.testing.assert_array_equal(np.array(bernoulli(0.5, (3, 5, 7))), first)
    assert (first != second).any()
    keyed = [np.array(bernoulli(0.5, (99,), mx.random.key(n))) for n in (0, 0, 1)]
    np.testing.assert_array_equal(keyed[0], keyed[1])
    assert (keyed[0] != keyed[2]).any()


def test_it_stands_in_for_dropout_alone():
    before = mx.random.bernoulli
    with fast_dropout():
        for shape in ((4, 4), (3,)):
            np.testing.assert_array_equal(
                np.array(mx.random.bernoulli(0.9, shape, key=mx.random.key(5))),
                np.array(bernoulli(0.9, shape, mx.random.key(5))),
            )
        given = mx.array([0.0, 1.0])
        np.testing.assert_array_equal(np.array(mx.random.bernoulli(given)), [False, True])
        assert np.array(mx.random.bernoulli(1.0, (50,))).all()
        assert mx.random.bernoulli().shape == ()
    assert mx.random.bernoulli is before
