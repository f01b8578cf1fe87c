"""Batches without a text twice."""

import numpy as np
import pytest

from mlx_bert.data.unique_texts import NoDuplicatesSampler


def test_every_example_once_and_no_text_twice_in_a_batch():
    random = np.random.default_rng(0)
    texts = [(f"anchor {number}", f"positive {random.integers(40)}") for number in range(100)]
    sampler = NoDuplicatesSampler(texts, 8, seed=1)
    assert len(sampler) == 13
    orders = []
    for epoch in range(3):
        batches = sampler.batches(epoch)
        assert len(batches) == 13
        assert max(len(batch.indices) for batch in batches) == 8
        assert sorted(np.concatenate([batch.indices for batch in batches])) == list(range(100))
        for batch in batches:
            own = [text for index in batch.indices for text in texts[index]]
            assert len(own) == len(set(own))
        orders.append(np.concatenate([batch.indices for batch in batches]).tolist())
    assert orders[0] != orders[1] != orders[2]
    again = NoDuplicatesSampler(texts, 8, seed=1).batches(2)
    assert np.concatenate([batch.indices for batch in again]).tolist() == orders[2]


def test_an_example_may_repeat_its_own_text():
    sampler = NoDuplicatesSampler([("a", "a"), ("a", "b"), ("c", "c")], 2)
    batches = [set(batch.indices.tolist()) for batch in sampler.batches()]
    assert sorted(map(sorted, batches)) in ([[0, 2], [1]], [[0], [1, 2]])


def test_what_finds_no_place_is_left_to_other_epochs():
    sampler = NoDuplicatesSampler([("same", str(number)) for number in range(8)], 4)
    seen = set()
    for epoch in range(30):
        batches = sampler.batches(epoch)
        assert [len(batch.indices) for batch in batches] == [1, 1]
        seen |= {int(batch.indices[0]) for batch in batches}
    assert seen == set(range(8))


def test_errors():
    with pytest.raises(ValueError, match="expected at least one example"):
        NoDuplicatesSampler([], 4)
    with pytest.raises(ValueError, match="expected a positive batch_size but got 0"):
        NoDuplicatesSampler([("a",)], 0)
