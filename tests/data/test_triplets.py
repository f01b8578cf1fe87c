"""Triplets of texts and their splits."""

import random
from collections import Counter

import pytest

from mlx_bert.data.triplets import Triplet, query_triplets, scored_triplets, split_by_anchor

PAIRS = [
    {"text_a": "a", "text_b": "b", "score": 5.0},
    {"text_a": "a", "text_b": "c", "score": 3.0},
    {"text_a": "a", "text_b": "d", "score": 2.7},
    {"text_a": "e", "text_b": "a", "score": 2.5},
    {"text_a": "f", "text_b": "g", "score": 0.0},
    {"text_a": "f", "text_b": "f", "score": 5.0},
]


def test_scores():
    made = scored_triplets(PAIRS, largest=5.0)
    assert made == scored_triplets(PAIRS[::-1], largest=5.0) == sorted(set(made))
    assert {(t.anchor, t.positive) for t in made} == {("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")}
    counts = Counter((t.anchor, t.positive) for t in made)
    assert set(counts.values()) == {3}
    for triplet in made:
        assert len(set(triplet)) == 3
        if triplet.anchor == "a":  # d scores 0.54 with a: neither like it nor unlike
            assert triplet.negative in "efg"
    assert Triplet("a", "b", "e") in made  # what is known to be unlike comes first
    assert len(scored_triplets(PAIRS, largest=5.0, per_positive=100)) == len(
        {(t.anchor, t.positive, n) for t in made for n in ("efg" if t.anchor == "a" else "abcdefg") if n not in t[:2]}
    )
    with pytest.raises(ValueError, match=r"expected scores from 0 to 1\.0 but got 5\.0 in pair 0"):
        scored_triplets(PAIRS)


def test_queries():
    rows = [{"query": "q", "pos": ["p", "r"], "neg": ["m", "n"]}, {"query": "q", "pos": "p", "neg": "n"}]
    assert query_triplets(rows) == [("q", "p", "m"), ("q", "p", "n"), ("q", "r", "m"), ("q", "r", "n")]


def test_no_anchor_is_in_two_parts():
    triplets = [Triplet(f"a{n // 3}", f"p{n}", f"n{n}") for n in range(300)]
    parts = split_by_anchor(triplets)
    assert [len(part) for part in parts] == [210, 60, 30]
    assert sorted(triplet for part in parts for triplet in part) == sorted(triplets)
    anchors = [{t.anchor for t in part} for part in parts]
    assert len(set.union(*anchors)) == sum(map(len, anchors)) == 100
    shuffled = random.Random(1).sample(triplets, 300)
    assert split_by_anchor(shuffled + shuffled[:5]) == parts
    assert split_by_anchor(triplets, seed=1) != parts
    assert parts[0] != sorted(parts[0])
    with pytest.raises(ValueError, match="expected parts that sum to 1"):
        split_by_anchor(triplets, (0.5, 0.6))
    with pytest.raises(ValueError, match="expected at least 3 anchors but got 2"):
        split_by_anchor(triplets[:6])
