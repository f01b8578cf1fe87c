import numpy as np
import pytest

from mlx_bert.data.samplers import LengthBucketSampler, TaskSampler, balanced_weights, task_quotas


def indices(batches):
    return np.concatenate([batch.indices for batch in batches])


def test_each_epoch_has_every_example_once_in_its_own_order():
    sampler = LengthBucketSampler(np.arange(103) % 17, 8)
    first, second = sampler.batches(0), sampler.batches(1)
    assert len(first) == len(sampler) == 13
    for batches in (first, second):
        assert sorted(indices(batches)) == list(range(103))
    assert not np.array_equal(indices(first), indices(second))
    assert np.array_equal(indices(first), indices(LengthBucketSampler(np.arange(103) % 17, 8).batches(0)))
    assert not np.array_equal(indices(first), indices(LengthBucketSampler(np.arange(103) % 17, 8, seed=1).batches(0)))


def test_batches_hold_similar_lengths():
    lengths = np.random.default_rng(0).integers(1, 200, 2000)
    batches = LengthBucketSampler(lengths, 16).batches(0)
    padded = sum(len(batch.indices) * lengths[batch.indices].max() for batch in batches)
    shuffled = np.random.default_rng(1).permutation(lengths).reshape(-1, 16)
    assert padded < 1.1 * lengths.sum() < 1.5 * lengths.sum() < 16 * shuffled.max(axis=1).sum()


def test_evaluation_is_sorted_by_length():
    sampler = LengthBucketSampler([5, 1, 3, 2], 3, shuffle=False)
    assert [list(batch.indices) for batch in sampler.batches()] == [[1, 3, 2], [0]]


def test_balanced_weights_draw_classes_equally():
    labels = [0] * 900 + [1] * 100
    sampler = LengthBucketSampler([1] * 1000, 10, weights=balanced_weights(labels))
    drawn = np.concatenate([indices(sampler.batches(epoch)) for epoch in range(5)])
    assert 0.45 < np.mean(np.array(labels)[drawn]) < 0.55


def test_bad_sampler_arguments():
    with pytest.raises(ValueError, match="expected at least one example"):
        LengthBucketSampler([], 4)
    with pytest.raises(ValueError, match="expected a positive batch_size"):
        LengthBucketSampler([1], 0)
    with pytest.raises(ValueError, match="expected task sampling to be one of"):
        TaskSampler({"a": [1]}, 4, "some")
    with pytest.raises(ValueError, match="expected examples for every task"):
        TaskSampler({"a": [1], "b": []}, 4)


def test_quotas():
    counts = {"big": 10000, "small": 500}
    assert task_quotas(counts, 1.0) == {"big": 10000, "small": 500}
    assert task_quotas(counts, 0.5) == {"big": 10000, "small": 2236}
    assert task_quotas(counts, 0.0) == {"big": 10000, "small": 10000}


@pytest.mark.parametrize("strategy", ["proportional", "sqrt", "equal"])
def test_task_batches(strategy):
    sampler = TaskSampler({"big": [3] * 90, "small": [3] * 10}, 8, strategy)
    batches = sampler.batches(0)
    assert len(batches) == len(sampler)
    drawn = {task: indices([b for b in batches if b.task == task]) for task in ("big", "small")}
    assert {task: len(rows) for task, rows in drawn.items()} == sampler.quotas
    assert sorted(drawn["big"]) == list(range(90))  # nothing is lost, nothing comes twice
    counts = np.bincount(drawn["small"], minlength=10)
    assert counts.max() - counts.min() <= 1  # a small task wraps evenly


def test_what_an_epoch_leaves_out_comes_later():
    sampler = TaskSampler({"a": [1] * 10, "b": [1] * 10}, 4)
    sampler.quotas = {"a": 4, "b": 10}
    drawn = np.concatenate([indices([b for b in sampler.batches(e) if b.task == "a"]) for e in range(5)])
    assert sorted(drawn) == sorted([*range(10), *range(10)])
