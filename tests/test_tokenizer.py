"""The tokenizer against transformers', and its limits."""

import json
import shutil

import numpy as np
import pytest
import transformers

from mlx_bert.tokenizer import Tokenizer
from reference import word_tokenizer

TEXTS = ["the dog run ##s", "", "I never liked this awful film, and you?", "good " * 100]


@pytest.fixture(scope="module")
def tokenizer(tiny_bert_folder) -> Tokenizer:
    return Tokenizer.from_pretrained(tiny_bert_folder)


@pytest.mark.parametrize("pairs", [None, ["it is red", "a day " * 60, "", "yes"]])
@pytest.mark.parametrize("max_length", [None, 16])
def test_ids_equal_those_of_transformers(tokenizer, tiny_bert_folder, pairs, max_length):
    reference = transformers.AutoTokenizer.from_pretrained(tiny_bert_folder)
    wanted = reference(
        TEXTS,
        pairs,
        truncation="longest_first",
        max_length=max_length or 64,
        padding=True,
        return_tensors="np",
        return_token_type_ids=True,
    )
    batch = tokenizer(TEXTS, pairs, max_length)
    assert np.array_equal(np.array(batch.input_ids), wanted["input_ids"])
    assert np.array_equal(np.array(batch.attention_mask), wanted["attention_mask"].astype(bool))
    if pairs is None:
        assert batch.token_type_ids is None
    else:
        assert np.array_equal(np.array(batch.token_type_ids), wanted["token_type_ids"])


def test_no_mask_where_nothing_is_padded(tokenizer):
    assert tokenizer(["the dog", "the cat"]).attention_mask is None


def test_lengths_go_to_the_next_multiple_but_not_past_the_bound(tokenizer):
    encodings = tokenizer.encode(["the dog run"])
    assert tokenizer.pad(encodings, multiple_of=32).input_ids.shape == (1, 32)
    long = tokenizer.encode(["good " * 100])
    assert tokenizer.pad(long, multiple_of=48).input_ids.shape == (1, 64)


def test_left_padding(tokenizer):
    left = Tokenizer(word_tokenizer(), padding_side="left")
    batch = left(["the dog", "the dog and the cat"])
    right = tokenizer(["the dog", "the dog and the cat"])
    assert np.array_equal(np.array(batch.attention_mask), np.array(right.attention_mask)[:, ::-1])


def test_the_pad_id_is_the_tokenizers_own(tiny_bert_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 7}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "[MASK]"}))
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.pad_id == 4
    assert np.array(tokenizer(["the dog", "the"]).input_ids)[1, -1] == 4


@pytest.mark.parametrize("listed", [False, True])
def test_the_file_that_names_the_pad(tiny_bert_folder, tmp_path, listed):
    shutil.copytree(tiny_bert_folder, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"pad_token": "[MASK]", **({"added_tokens_decoder": {}} if listed else {})}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "[SEP]"}}))
    wanted = transformers.AutoTokenizer.from_pretrained(tmp_path).pad_token
    assert Tokenizer.from_pretrained(tmp_path).pad_token == wanted == ("[MASK]" if listed else "[SEP]")


def test_the_bound_is_the_smaller_of_tokenizer_and_encoder(tiny_bert_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "roberta", "pad_token_id": 1}))
    assert Tokenizer.from_pretrained(folder).max_length == 62
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": int(1e30)}))
    assert Tokenizer.from_pretrained(folder).max_length == 62
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 20}))
    assert Tokenizer.from_pretrained(folder).max_length == 20


def test_no_call_exceeds_what_the_encoder_holds(tokenizer):
    assert len(tokenizer.encode(["good " * 100], max_length=200)[0]) == 64


@pytest.mark.parametrize(
    "names", [None, ["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]]
)
def test_segments_only_where_the_folder_wants_them(tiny_bert_folder, tmp_path, names):
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = names
    if names is None:
        del settings["model_input_names"]  # then by the tokenizer's class
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    wanted = transformers.AutoTokenizer.from_pretrained(folder)(["the dog"], ["a cat"], return_tensors="np")
    batch = Tokenizer.from_pretrained(folder)(["the dog"], ["a cat"])
    if "token_type_ids" in wanted:
        assert np.array_equal(np.array(batch.token_type_ids), wanted["token_type_ids"])
    else:
        assert batch.token_type_ids is None


def test_saving_and_loading(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert [e.ids for e in again.encode(TEXTS, max_length=9)] == [e.ids for e in tokenizer.encode(TEXTS, max_length=9)]
    fresh = Tokenizer(word_tokenizer())
    fresh.encode(["the"], max_length=3)
    fresh.save_pretrained(tmp_path / "fresh")
    assert Tokenizer.from_pretrained(tmp_path / "fresh").fast.truncation is None


def test_any_iterable_of_texts(tokenizer):
    wanted = [encoding.ids for encoding in tokenizer.encode(TEXTS, TEXTS[::-1])]
    given = tokenizer.encode((text for text in TEXTS), np.array(TEXTS[::-1]))
    assert [encoding.ids for encoding in given] == wanted


def test_clear_errors(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="expected a list of strings"):
        tokenizer("one text")
    with pytest.raises(ValueError, match="expected a list of strings"):
        tokenizer(["one", 2])
    with pytest.raises(ValueError, match=r"a list of strings but texts\[1\] is None"):
        tokenizer(["one", None])
    with pytest.raises(ValueError, match=r"a list of strings but pairs\[0\] is None"):
        tokenizer(["one"], [None])
    with pytest.raises(ValueError, match="expected 2 pairs but got 1"):
        tokenizer(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="expected max_length above 2"):
        tokenizer(["a"], max_length=2)
    with pytest.raises(ValueError, match="at least one encoding"):
        tokenizer.pad([])
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"padding token '<p>'"):
        Tokenizer(word_tokenizer(), pad_token="<p>")
    with pytest.raises(ValueError, match="padding_side"):
        Tokenizer(word_tokenizer(), padding_side="up")
