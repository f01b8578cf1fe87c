from collections import Counter

import pytest

from mlx_bert.data.splits import split_examples


def test_sizes_and_strata():
    labels = ["a"] * 500 + ["b"] * 300 + ["c"] * 200
    train, validation, test = split_examples(labels)
    assert (len(train), len(validation), len(test)) == (810, 90, 100)
    assert sorted(train + validation + test) == list(range(1000))
    assert Counter(labels[index] for index in test) == {"a": 50, "b": 30, "c": 20}
    assert Counter(labels[index] for index in validation) == {"a": 45, "b": 27, "c": 18}


def test_the_seed_decides():
    labels = ["a", "b"] * 50
    assert split_examples(labels) == split_examples(labels)
    assert split_examples(labels) != split_examples(labels, seed=1)


def test_a_rare_label_keeps_a_training_example():
    labels = ["a"] * 30 + ["only"]
    for seed in range(20):
        train, validation, test = split_examples(labels, seed=seed)
        assert 30 in train
        assert len(train) + len(validation) + len(test) == 31


def test_rare_labels_fall_back_to_groups():
    # every label is unique, so only the groups can be kept in proportion
    groups = ["x"] * 80 + ["y"] * 20
    split = split_examples([str(n) for n in range(100)], validation_size=0.0, test_size=0.2, groups=groups)
    assert split.train == list(range(100))  # each label must keep its one example
    labels = [str(n // 2) for n in range(100)]
    test = split_examples(labels, validation_size=0.0, test_size=0.2, groups=groups).test
    assert Counter(groups[index] for index in test)["y"] in range(2, 6)
    assert len(test) >= 15


def test_tiny_data_stay_whole_with_a_warning(caplog):
    split = split_examples(["a", "b"])
    assert split.train == split.validation == split.test == [0, 1]
    assert "too few to set some aside" in caplog.text


def test_no_part_asked_for():
    assert split_examples(["a", "b", "c"], 0.0, 0.0) == ([0, 1, 2], [], [])


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"expected test_size in \[0, 1\)"):
        split_examples(["a"], test_size=1.0)
    with pytest.raises(ValueError, match="expected at least one example"):
        split_examples([])
