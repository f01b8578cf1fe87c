"""Pairs by the three samplings, against SetFit's counts."""

from collections import Counter

import pytest

from mlx_bert.data.contrastive_pairs import contrastive_pairs, take_per_class

TEXTS = ["a1", "a2", "a3", "b1", "b2", "c1"]
LABELS = ["a", "a", "a", "b", "b", "c"]
TOGETHER = 3 + 1  # pairs within a, and within b
APART = 15 - TOGETHER


def kinds(pairs):
    counts = Counter(pair["score"] for pair in pairs)
    return counts[1.0], counts[0.0]


def test_every_pair_is_scored_by_its_labels():
    pairs = contrastive_pairs(TEXTS, LABELS, "unique")
    assert kinds(pairs) == (TOGETHER, APART)
    assert len({frozenset((pair["text_a"], pair["text_b"])) for pair in pairs}) == 15
    assert all((pair["text_a"][0] == pair["text_b"][0]) == pair["score"] for pair in pairs)
    assert [pair["score"] for pair in pairs[:4]] == [1, 0, 1, 0]


def test_sampling_evens_out():
    over = contrastive_pairs(TEXTS, LABELS)
    assert kinds(over) == (APART, APART)
    repeats = Counter(frozenset((pair["text_a"], pair["text_b"])) for pair in over if pair["score"])
    assert sorted(repeats.values()) == [2, 3, 3, 3]
    assert kinds(contrastive_pairs(TEXTS, LABELS, "undersampling")) == (TOGETHER, TOGETHER)
    assert kinds(contrastive_pairs(TEXTS, LABELS, num_iterations=4)) == (24, 24)
    assert kinds(contrastive_pairs(TEXTS, LABELS, "unique", max_pairs=6)) == (3, 3)
    assert kinds(contrastive_pairs(["a", "b"], [0, 1])) == (0, 1)


def test_the_seed_decides():
    assert contrastive_pairs(TEXTS, LABELS, seed=1) == contrastive_pairs(TEXTS, LABELS, seed=1)
    assert contrastive_pairs(TEXTS, LABELS, seed=1) != contrastive_pairs(TEXTS, LABELS, seed=2)


def test_so_many_of_each_class():
    chosen = take_per_class(LABELS, 2, seed=3)
    assert Counter(LABELS[place] for place in chosen) == {"a": 2, "b": 2, "c": 1}
    assert chosen == sorted(chosen)
    assert len({tuple(take_per_class(LABELS * 5, 2, seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["a"], {}, "expected a label for each of 6 texts but got 1"),
        (["a"] * 6, {}, "expected at least 2 classes but got 1"),
        (LABELS, {"sampling": "all"}, "sampling to be one of oversampling, undersampling, unique but got 'all'"),
        (LABELS, {"num_iterations": 0}, "expected num_iterations of at least 1 but got 0"),
        (LABELS, {"max_pairs": 1}, "expected max_pairs of at least 2 but got 1"),
    ],
)
def test_errors(labels, options, message):
    with pytest.raises(ValueError, match=message):
        contrastive_pairs(TEXTS, labels, **options)
    with pytest.raises(ValueError, match="expected at least 1 example per class but got 0"):
        take_per_class(labels, 0)
