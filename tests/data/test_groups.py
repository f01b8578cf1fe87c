"""Rows of every form become groups; groups become batches of pairs."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_bert.data.collate import Collator
from mlx_bert.data.groups import Group, GroupCollator, as_groups, cap_tokens, hard_negative_groups, tokenize_groups
from mlx_bert.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_bert_folder):
    return Tokenizer.from_pretrained(tiny_bert_folder)


def test_every_form():
    rows = [
        {"query": "q", "documents": ["a", "b"], "labels": [2, 0]},
        {"query": "q", "positive": "a", "negative": ["b", "c"], "line": 7},
        {"query": "q", "pos": ["a", "b"], "neg": "c"},
        {"query": "q", "positive": "a", "negative": "b", "score": 1.5},
        {"query": "q", "positive": "a", "negatives": ["b", "c"], "scores": [3.0, 2.0, 1.0]},
        {"text": "q", "text_pair": "a", "label": 1},
        {"query": "q", "document": "a", "score": 0.5},
        {"sentence1": "q", "sentence2": "a", "score": 0.5},
        {"anchor": "q", "positive": "a", "negative": "b"},
    ]
    assert as_groups(rows) == [
        Group("q", ["a", "b"], [2, 0]),
        Group("q", ["a", "b", "c"], [1, 0, 0], 7),
        Group("q", ["a", "b", "c"], [1, 1, 0]),
        Group("q", ["a", "b"], [0.0, -1.5]),
        Group("q", ["a", "b", "c"], [3.0, 2.0, 1.0]),
        Group("q", ["a"], [1]),
        Group("q", ["a"], [0.5]),
        Group("q", ["a"], [0.5]),
        Group("q", ["a", "b"], [1, 0]),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected at least one row in rows but got none"),
        ([{"text": "a", "label": 1}], r"expected query, documents and labels; or .* but row 0 of rows has"),
        ([{"query": "a", "documents": ["b", 3], "labels": [1, 0]}], "but row 0 of rows has"),
        ([{"query": "a", "documents": ["b"], "line": 4}], "a label for each of the 1 documents in line 4 of rows"),
        ([{"query": "a", "documents": ["b", "c", "d"], "labels": [1]}], "3 documents in row 0 of rows but got 1"),
    ],
)
def test_bad_rows(rows, message):
    with pytest.raises(ValueError, match=message):
        as_groups(rows)


def test_hard_negatives_become_groups():
    mined = [[{"corpus_id": 2, "score": 0.9}, {"corpus_id": 0, "score": 0.5}], []]
    rows = hard_negative_groups(["x", "y"], ["a", "b", "c"], [[1], [0]], mined)
    assert rows == [{"query": "x", "documents": ["b", "c", "a"], "labels": [1, 0, 0]}]
    with pytest.raises(ValueError, match="expected positives and negatives for 2 queries but got 1 and 2"):
        hard_negative_groups(["x", "y"], ["a"], [[0]], mined)


def test_a_cap_leaves_so_many_tokens(tokenizer):
    texts = ["the dog sleeps, the cat walks", "rain", "", "the dog sleeps, the cat walks"]
    capped = cap_tokens(tokenizer, texts, 3)
    assert capped == ["the dog sleep", "rain", "", "the dog sleep"]
    assert len(tokenizer.encode([capped[0]])[0]) == 3 + 2
    assert cap_tokens(tokenizer, texts, None) == texts
    with pytest.raises(ValueError, match="expected a limit of at least 1 token but got 0"):
        cap_tokens(tokenizer, texts, 0)


def test_a_capped_query_leaves_room_for_the_document(tokenizer):
    groups = [Group("the dog " * 40, ["red blue green " * 20], [1])]
    red = tokenizer.fast.token_to_id("red")
    free, capped = (tokenize_groups(groups, tokenizer, 24, limit)[0]["input_ids"][0] for limit in (None, 4))
    assert len(free) == len(capped) == 24
    assert (capped == red).sum() > (free == red).sum()
    assert len(capped) - 3 - 4 == (np.isin(capped, [red, red + 1, red + 2])).sum()


def test_batches_are_flat_and_filled_up(tokenizer):
    rows = [{"query": "the dog", "documents": ["a", "b", "c"], "labels": [2, 0, 1]},
            {"query": "rain", "documents": ["sun"], "labels": [1]}]  # fmt: skip
    examples = tokenize_groups(as_groups(rows), tokenizer)
    batch = GroupCollator(Collator(tokenizer.pad_id))(examples)
    assert batch["input_ids"].shape == (8, 16)
    labels = {name: np.array(array).tolist() for name, array in batch["labels"].items()}
    assert labels["relevance"] == [2, 0, 1, 1, *[-100] * 4]
    assert labels["group_ids"] == [0, 0, 0, 1, *[-1] * 4]
    assert labels["mask"] == [True] * 4 + [False] * 4
    assert batch["labels"]["relevance"].dtype == mx.int32
    (wanted,) = tokenizer.encode(["rain"], ["sun"])
    assert np.array(batch["input_ids"])[3, : len(wanted)].tolist() == wanted.ids
    assert np.array(batch["token_type_ids"])[3, : len(wanted)].tolist() == wanted.type_ids
