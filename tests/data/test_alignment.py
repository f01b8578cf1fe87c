"""Labels of words on the tokens of texts."""

import numpy as np
import pytest

from mlx_bert.bpe import ByteLevelBPE
from mlx_bert.data.alignment import (
    align_labels,
    first_tokens,
    tag_examples,
    tag_windows,
    word_spans,
    words_of_tokens,
)
from mlx_bert.tokenizer import Tokenizer

TAGS = ["O", "time", "city"]


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    ByteLevelBPE.train(["don't wake me at 6pm in são paulo, please"] * 3, 280).save_pretrained(folder)
    return Tokenizer.from_pretrained(folder)


def test_words():
    assert word_spans(" don't  go\t6pm\n") == [(1, 6), (8, 10), (11, 14)]
    assert word_spans(" \n") == []


def test_tokens_belong_to_the_word_they_begin_in():
    spans = [(1, 6), (8, 10)]
    offsets = [(0, 0), (0, 1), (1, 4), (4, 6), (6, 8), (8, 10), (0, 0)]
    words = words_of_tokens(offsets, [1, 0, 0, 0, 0, 0, 1], spans)
    assert words.tolist() == [-1, -1, 0, 0, -1, 1, -1]
    assert align_labels(words, [7, 9]).tolist() == [-100, -100, 7, 7, -100, 9, -100]
    assert first_tokens(words).tolist() == [False, False, True, False, False, True, False]


def test_bytes_inherit_the_label_of_their_word(byte_tokenizer):
    text, tags = "don't wake me at  6pm in são", ["O", "O", "O", "O", "time", "O", "city"]
    (row,) = tag_examples([{"text": text, "tags": tags}], byte_tokenizer, TAGS)
    tokens = [byte_tokenizer.fast.decode([number]) for number in row["input_ids"]]
    assert len(row["input_ids"]) == len(row["tag_ids"]) == len(row["starts"])
    assert row["tag_ids"][0] == -100
    assert all(tag == -100 for tag, token in zip(row["tag_ids"], tokens, strict=True) if token.isspace())
    ids = {tag: row["input_ids"][row["tag_ids"] == n].tolist() for n, tag in enumerate(TAGS)}
    assert byte_tokenizer.fast.decode(ids["O"]) == "don'twakemeatin"
    assert byte_tokenizer.fast.decode(ids["time"]) == "6pm"
    assert len(ids["time"]) >= 2  # digits and letters are pieces of their own
    assert byte_tokenizer.fast.decode(ids["city"]) == "são"
    assert row["starts"].sum() == 7
    assert row["tag_ids"][row["starts"]].tolist() == [TAGS.index(tag) for tag in tags]


def test_word_pieces_too(tiny_bert_folder):
    tokenizer = Tokenizer.from_pretrained(tiny_bert_folder)
    (row,) = tag_examples([{"text": "walking today, rome", "tags": ["O", "time", "city"]}], tokenizer, TAGS)
    tokens = [tokenizer.fast.id_to_token(number) for number in row["input_ids"]]
    assert tokens[:5] == ["[CLS]", "walk", "##ing", "today", ","]
    assert row["tag_ids"][:5].tolist() == [-100, 0, 0, 1, 1]
    assert row["starts"][:5].tolist() == [False, True, False, True, False]
    (cut,) = tag_examples([{"text": "walking today, rome", "tags": ["O", "time", "city"]}], tokenizer, TAGS, 4)
    assert np.array_equal(cut["tag_ids"], [-100, 0, 0, -100])


@pytest.mark.parametrize(
    ("tags", "message"),
    [(["O"], "expected 2 tags, one per word, in row 0 but got 1"), (["O", "x"], "unknown tag 'x' in row 0; known: O")],
)
def test_wrong_tags(tags, message, byte_tokenizer):
    with pytest.raises(ValueError, match=message):
        tag_examples([{"text": "two words", "tags": tags}], byte_tokenizer, TAGS)


def test_windows_of_tagged_texts(tiny_bert_folder):
    tokenizer = Tokenizer.from_pretrained(tiny_bert_folder)
    names = ["O", "B-X", "I-X"]
    rows = [{"text": "the zq dog is xyz", "tags": ["O", "B-X", "I-X", "O", "B-X"], "line": 3, "weight": 2.0}]
    (whole,) = tag_windows(rows, tokenizer, names)
    assert [tokenizer.fast.id_to_token(int(token)) for token in whole["input_ids"]] == [
        "[CLS]", "the", "z", "##q", "dog", "is", "x", "##y", "##z", "[SEP]",
    ]  # fmt: skip
    assert whole["labels"].tolist() == [-100, 0, 1, -100, 2, 0, 1, -100, -100, -100]
    assert (whole["line"], whole["weight"], whole["row"]) == (3, 2.0, 0)
    assert whole["words"] == [(0, 1), (1, 2), (2, 4), (3, 5), (4, 6)]
    (every,) = tag_windows(rows, tokenizer, names, every_token=True)
    assert every["labels"].tolist() == [-100, 0, 1, 2, 2, 0, 1, 2, 2, -100]
    (plain,) = tag_windows([{"text": rows[0]["text"]}], tokenizer, names)
    assert set(plain["labels"].tolist()) == {-100}
    # a window that begins within a word does not take its rest for its first token
    windows = tag_windows(rows, tokenizer, names, max_length=6, stride=1)
    assert [window["labels"].tolist() for window in windows] == [
        [-100, 0, 1, -100, 2, -100], [-100, 2, 0, 1, -100, -100], [-100, -100, -100, -100],
    ]  # fmt: skip
    assert sorted(word for window in windows for word, _ in window["words"]) == [0, 1, 2, 3, 4]


def test_every_wrongly_tagged_text_is_reported(tiny_bert_folder):
    tokenizer = Tokenizer.from_pretrained(tiny_bert_folder)
    rows = [{"text": "a b", "tags": ["O"], "line": 3}, {"text": "a", "tags": ["B-Z"], "line": 5}]
    with pytest.raises(ValueError, match="the tagged data has 2 bad rows") as caught:
        tag_windows(rows, tokenizer, ["O"])
    assert "line 3: expected 2 tags, one per word, but got 1" in str(caught.value)
    assert "line 5: unknown tag 'B-Z'; known: O" in str(caught.value)
