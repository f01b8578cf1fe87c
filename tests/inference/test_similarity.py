"""Similarities against sentence-transformers, for all pairs and row by row."""

import mlx.core as mx
import numpy as np
import pytest
from sentence_transformers.util import (
    cos_sim,
    dot_score,
    euclidean_sim,
    manhattan_sim,
    pairwise_cos_sim,
    pairwise_dot_score,
    pairwise_euclidean_sim,
    pairwise_manhattan_sim,
)

from mlx_bert.inference import similarity as ours

THEIRS = {
    "cosine": (cos_sim, pairwise_cos_sim),
    "dot": (dot_score, pairwise_dot_score),
    "euclidean": (euclidean_sim, pairwise_euclidean_sim),
    "manhattan": (manhattan_sim, pairwise_manhattan_sim),
}
RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(size=(7, 5)).astype(np.float32), RANDOM.normal(size=(4, 5)).astype(np.float32)


@pytest.mark.parametrize("name", THEIRS)
def test_matrix(name):
    np.testing.assert_allclose(np.asarray(ours.similarity(A, B, name)), THEIRS[name][0](A, B).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", THEIRS)
def test_pairwise(name):
    result = ours.similarity_pairwise(A[:4], B, name)
    np.testing.assert_allclose(np.asarray(result), THEIRS[name][1](A[:4], B).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["euclidean", "manhattan"])
def test_chunks_change_nothing(name, monkeypatch):
    whole = np.asarray(ours.similarity(A, B, name))
    monkeypatch.setattr(ours, "CHUNK_VALUES", 41)
    np.testing.assert_allclose(np.asarray(ours.similarity(A, B, name)), whole, atol=1e-6)


def test_inputs_of_every_kind():
    expected = np.asarray(ours.similarity(A, B))
    for a in (mx.array(A), list(A), [mx.array(row) for row in A], A.tolist(), A.astype(np.float64)):
        np.testing.assert_allclose(np.asarray(ours.similarity(a, B)), expected, atol=1e-6)
    assert ours.similarity(A[0], B[0]).shape == (1, 1)
    assert ours.similarity(np.zeros((0, 5)), B, "manhattan").shape == (0, 4)


def test_zero_vectors_are_finite():
    assert np.asarray(ours.similarity(np.zeros((1, 5)), B)).tolist() == [[0, 0, 0, 0]]


def test_errors():
    with pytest.raises(ValueError, match="expected one of cosine, dot, euclidean, manhattan but got 'jaccard'"):
        ours.similarity(A, B, "jaccard")
    with pytest.raises(ValueError, match="equal width but got 5 and 3"):
        ours.similarity(A, B[:, :3])
    with pytest.raises(ValueError, match="as many rows on both sides but got 7 and 4"):
        ours.similarity_pairwise(A, B)
    with pytest.raises(ValueError, match=r"shape \(N, D\) or \(D,\) but got \(1, 7, 5\)"):
        ours.similarity(A[None], B)
