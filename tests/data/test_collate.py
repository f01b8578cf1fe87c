import numpy as np
import pytest

from mlx_bert.data.collate import Collator, PartsCollator, bucket_length, stack_labels, token_count, tokenize_examples
from mlx_bert.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_bert_folder):
    return Tokenizer.from_pretrained(tiny_bert_folder)


def test_few_lengths():
    assert [bucket_length(n) for n in (1, 16, 17, 64, 65, 256, 257, 8000)] == [16, 16, 32, 64, 96, 256, 384, 8064]
    assert len({bucket_length(n) for n in range(1, 513)}) == 12


def test_texts_become_ids_once(tokenizer):
    examples = tokenize_examples([{"text": "the good cat", "labels": 1}, {"input_ids": [5, 6]}], tokenizer)
    assert examples[0]["input_ids"].tolist() == tokenizer.encode(["the good cat"])[0].ids
    assert examples[0]["labels"] == 1
    assert examples[1] == {"input_ids": [5, 6]}


def test_truncation_and_pairs(tokenizer):
    (example,) = tokenize_examples([{"text": "the cat " * 20, "text_pair": "a dog"}], tokenizer, max_length=12)
    assert len(example["input_ids"]) == 12
    assert example["token_type_ids"].max() == 1


def test_examples_that_cannot_be_tokenised(tokenizer):
    with pytest.raises(ValueError, match="expected 'text' or 'input_ids' in every example but example 1"):
        tokenize_examples([{"text": "a"}, {"label": "x"}], tokenizer)
    with pytest.raises(ValueError, match="expected a text_pair in every example or in none"):
        tokenize_examples([{"text": "a", "text_pair": "b"}, {"text": "a"}], tokenizer)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_and_masks(side):
    batch = Collator(9, side)([{"input_ids": [1, 2, 3], "labels": 0}, {"input_ids": [4], "labels": 1}])
    ids, mask = np.array(batch["input_ids"]), np.array(batch["attention_mask"])
    assert ids.shape == mask.shape == (2, 16)
    assert ids[mask].tolist() == [1, 2, 3, 4]
    assert (ids[~mask] == 9).all()
    assert mask[0, :3].all() == (side == "right")
    assert batch["labels"].tolist() == [0, 1]
    assert "token_type_ids" not in batch


def test_exact_pads_to_the_longest_row():
    rows = [{"input_ids": [1] * 5}, {"input_ids": [2] * 18}]
    assert Collator(0, exact=True)(rows)["input_ids"].shape == (2, 18)
    assert Collator(0)(rows)["input_ids"].shape == (2, 32)


def test_nothing_padded_has_no_mask_and_the_bound_holds():
    batch = Collator(0, max_length=20)([{"input_ids": [1] * 20}, {"input_ids": [2] * 20}])
    assert batch["input_ids"].shape == (2, 20)
    assert "attention_mask" not in batch


def test_token_labels_are_padded_with_the_ignored_value():
    batch = Collator(0, token_labels=True)([{"input_ids": [1, 2], "labels": [3, 4]}, {"input_ids": [1], "labels": [5]}])
    assert batch["labels"][:, :2].tolist() == [[3, 4], [5, -100]]
    assert (np.array(batch["labels"])[:, 2:] == -100).all()


def test_groups_of_texts():
    groups = [{"input_ids": [[1, 2], [3]], "labels": 1}, {"input_ids": [[4], [5, 6, 7]], "labels": 0}]
    batch = Collator(0)(groups)
    assert batch["input_ids"].shape == (2, 2, 16)
    assert batch["input_ids"][1, 1, :4].tolist() == [5, 6, 7, 0]
    assert np.array(batch["attention_mask"]).sum() == 7
    assert token_count(groups[1]) == 3
    with pytest.raises(ValueError, match="expected the same number of items"):
        Collator(0)([{"input_ids": [[1], [2]]}, {"input_ids": [[1]]}])


def test_cached_states_replace_ids():
    states = np.ones((3, 4), np.float32)
    batch = Collator(0)([{"input_ids": [1, 2, 3], "hidden_states": states}])
    assert "input_ids" not in batch
    assert batch["hidden_states"].shape == (1, 16, 4)
    assert np.array(batch["hidden_states"]).sum() == 12


def test_labels_keep_their_kind():
    assert str(stack_labels([1, 0]).dtype) == "mlx.core.int32"
    assert str(stack_labels([1.0, 0.0]).dtype) == "mlx.core.float32"
    assert stack_labels([{"a": 1, "b": 0.5}, {"a": 2, "b": 1.5}])["b"].tolist() == [0.5, 1.5]
    with pytest.raises(ValueError, match="expected numbers as labels but got 'x'"):
        stack_labels(["x"])


def test_parts_are_padded_each_by_itself():
    rows = [{"input_ids": [[1], [2] * 20, [3, 3]]}, {"input_ids": [[1, 1], [2], [3] * 70]}]
    parts = PartsCollator(9)(rows)["parts"]
    assert [part["input_ids"].shape for part in parts] == [(2, 16), (2, 32), (2, 96)]
    assert [np.array(part["attention_mask"]).sum() for part in parts] == [3, 21, 72]
    assert PartsCollator(9)([{**row, "labels": 1.0} for row in rows])["labels"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"expected examples of the same number of texts, at least 2, but got \[1\]"):
        PartsCollator(9)([{"input_ids": [1, 2]}])


def test_choices_become_groups(tiny_bert_folder):
    tokenizer = Tokenizer.from_pretrained(tiny_bert_folder)
    examples = [
        {"text": "the dog", "choices": ["is good", "is bad"], "labels": 1},
        {"text": "the cat", "choices": ["is old", "is very new"], "labels": 0},
    ]
    tokenised = tokenize_examples(examples, tokenizer)
    for example, row in zip(examples, tokenised, strict=True):
        wanted = tokenizer.encode([example["text"]] * 2, example["choices"])
        assert [ids.tolist() for ids in row["input_ids"]] == [encoding.ids for encoding in wanted]
        assert [types.tolist() for types in row["token_type_ids"]] == [encoding.type_ids for encoding in wanted]
    batch = Collator(tokenizer.pad_id)(tokenised)
    assert batch["input_ids"].shape == (2, 2, 16)
    assert batch["labels"].tolist() == [1, 0]
    with pytest.raises(ValueError, match="expected choices in every example or in none but example 1 has none"):
        tokenize_examples([examples[0], {"text": "a"}], tokenizer)
