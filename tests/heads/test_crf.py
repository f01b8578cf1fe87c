"""The linear-chain CRF against the enumeration of every path."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from heads.decoding import crf_log_likelihood, crf_viterbi

B, L, C = 5, 5, 3
RNG = np.random.default_rng(0)
EMISSIONS = (2 * RNG.normal(size=(B, L, C))).astype(np.float32)
LABELS = RNG.integers(0, C, (B, L))
TRANSITIONS, START, END = (RNG.normal(size=shape).astype(np.float32) for shape in ((C, C), C, C))
# Nothing padded, right, left, holes, padding alone.
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]], bool)


def path_score(emissions, path):
    steps = sum(TRANSITIONS[a, b] for a, b in itertools.pairwise(path))
    return START[path[0]] + END[path[-1]] + steps + sum(emissions[t, c] for t, c in enumerate(path))


def every_path(row):
    """Scores of all paths over the real positions of a row."""
    emissions = EMISSIONS[row][MASK[row]]
    return {path: path_score(emissions, path) for path in itertools.product(range(C), repeat=len(emissions))}


def parameters():
    return mx.array(TRANSITIONS), mx.array(START), mx.array(END)


def test_likelihood_is_the_share_of_the_path():
    found = np.array(crf_log_likelihood(mx.array(EMISSIONS), mx.array(LABELS), mx.array(MASK), *parameters()))
    for row in range(B - 1):
        scores = every_path(row)
        total = np.log(sum(np.exp(score) for score in scores.values()))
        expected = scores[tuple(LABELS[row][MASK[row]])] - total
        assert found[row] == pytest.approx(expected, abs=1e-4)
    assert found[-1] == 0


def test_viterbi_finds_the_best_path():
    found = np.array(crf_viterbi(mx.array(EMISSIONS), mx.array(MASK), *parameters()))
    for row in range(B - 1):
        scores = every_path(row)
        assert tuple(found[row][MASK[row]]) == max(scores, key=scores.get)
    np.testing.assert_array_equal(found[~MASK], 0)


def test_the_likelihoods_of_all_paths_sum_to_one():
    paths = np.array(list(itertools.product(range(C), repeat=L)))
    emissions = mx.broadcast_to(mx.array(EMISSIONS[:1]), (len(paths), L, C))
    found = crf_log_likelihood(emissions, mx.array(paths), mx.ones((len(paths), L), dtype=mx.bool_), *parameters())
    assert mx.sum(mx.exp(found)).item() == pytest.approx(1, abs=1e-4)


def test_padding_changes_nothing():
    junk = np.where(MASK[..., None], EMISSIONS, 1e4).astype(np.float32)
    labels = np.where(MASK, LABELS, -100)
    clean = crf_log_likelihood(mx.array(EMISSIONS), mx.array(LABELS), mx.array(MASK), *parameters())
    found = crf_log_likelihood(mx.array(junk), mx.array(labels), mx.array(MASK), *parameters())
    np.testing.assert_array_equal(np.array(found), np.array(clean))
    paths = [crf_viterbi(mx.array(x), mx.array(MASK), *parameters()) for x in (EMISSIONS, junk)]
    np.testing.assert_array_equal(np.array(paths[0]), np.array(paths[1]))


def test_gradients_are_those_of_finite_differences():
    def loss(emissions, transitions, start, end):
        return -mx.sum(crf_log_likelihood(emissions, mx.array(LABELS), mx.array(MASK), transitions, start, end))

    arrays = [EMISSIONS, TRANSITIONS, START, END]
    gradients = mx.grad(loss, argnums=[0, 1, 2, 3])(*map(mx.array, arrays))
    for k, (array, gradient) in enumerate(zip(arrays, gradients, strict=True)):
        assert mx.isfinite(gradient).all().item()
        for index in list(np.ndindex(array.shape))[:: max(1, array.size // 6)]:
            values = []
            for step in (0.05, -0.05):
                moved = [x.copy() for x in arrays]
                moved[k][index] += step
                values.append(loss(*map(mx.array, moved)).item())
            assert np.array(gradient)[index] == pytest.approx((values[0] - values[1]) / 0.1, abs=5e-3)
    np.testing.assert_array_equal(np.array(gradients[0])[~MASK], 0)


def test_half_precision_emissions():
    emissions = mx.array(EMISSIONS).astype(mx.float16)
    found = crf_log_likelihood(emissions, mx.array(LABELS), mx.array(MASK), *parameters())
    expected = crf_log_likelihood(mx.array(EMISSIONS), mx.array(LABELS), mx.array(MASK), *parameters())
    assert found.dtype == mx.float32
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=0.02)
