"""Masked words against transformers' pipeline."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from pipeline_cases import LONG, RELATIVE, assert_alike, assert_same_in_any_batch, save, theirs
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer

from mlx_bert.factory import create_bert_with_head
from mlx_bert.inference.pipelines import FillMask, pipeline
from mlx_bert.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("filler"), "ForMaskedLM")


@pytest.fixture
def pipes(folder):
    return pipeline("fill-mask", folder), theirs("fill-mask", folder)


MASKED = ["the [MASK] was good .", "a [MASK]", "[MASK] [MASK] slowly, isn't [MASK]", "[MASK]", f"[MASK] {LONG[:100]}"]


def test_words_for_masks(pipes):
    ours, reference = pipes
    for inputs in (MASKED[0], MASKED, [MASKED[0]], MASKED[2], [MASKED[2]]):
        for options in ({}, {"top_k": 2}, {"top_k": 130}, {"targets": ["good", "dog", "film", "##ing"], "top_k": 2},
                        {"targets": "dog"}, {"targets": ["dog", "good"]}):  # fmt: skip
            assert_alike(ours(inputs, **options), reference(inputs, **options))
    assert_same_in_any_batch(ours, MASKED, top_k=3)


def test_a_target_that_is_no_token_stands_for_its_first(pipes):
    ours, reference = pipes
    with pytest.warns(UserWarning, match="target 'quark' is no token of the vocabulary: 'q' stands for it"):
        found = ours(MASKED[0], targets=["quark", "dog"])
    assert_alike(found, reference(MASKED[0], targets=["quark", "dog"]))
    with pytest.warns(UserWarning, match="target ' ' is no token of the vocabulary: it is left out"):
        assert_alike(ours(MASKED[0], targets=[" ", "dog"]), reference(MASKED[0], targets=["dog"]))
    with pytest.raises(ValueError, match="expected targets with tokens of the vocabulary but got"):
        ours(MASKED[0], targets=[])


def test_long_texts_are_cut(pipes):
    ours, reference = pipes
    text = f"the [MASK] was good . {LONG}"
    assert_alike(ours(text), reference(text, tokenizer_kwargs={"truncation": True}))
    with pytest.raises(ValueError, match="mask token within the first 64 tokens but a text has it behind them"):
        ours(f"{LONG} [MASK]")


def test_the_mask_that_the_folder_names(folder, tmp_path):
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    named = {**settings, "mask_token": {"content": "film", "__type": "AddedToken"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    (best, *_) = pipeline("fill-mask", tmp_path)("the film")
    assert best["sequence"] == f"the {best['token_str']}"
    with pytest.raises(ValueError, match="expected the mask token film in 'the dog'"):
        pipeline("fill-mask", tmp_path)("the dog")


@pytest.mark.parametrize("listed", [False, True])
def test_the_file_that_names_the_mask(folder, tmp_path, listed):
    """Two may do so. transformers reads the older one where the newer does not list all tokens."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"mask_token": "film", **({"added_tokens_decoder": {}} if listed else {})}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": "dog"}}))
    wanted = AutoTokenizer.from_pretrained(tmp_path).mask_token
    assert wanted == ("film" if listed else "dog")
    pipe = pipeline("fill-mask", tmp_path)
    assert pipe.tokenizer.fast.id_to_token(pipe._mask_id) == wanted


def test_a_mask_that_no_file_names(pipes):
    ours, _ = pipes
    for words, wanted in ((["<mask>", "[MASK]"], "[MASK]"), (["<mask>"], "<mask>")):
        fast = FastTokenizer(WordLevel({word: number for number, word in enumerate(["[PAD]", *words])}))
        assert fast.id_to_token(FillMask(ours.model, Tokenizer(fast))._mask_id) == wanted


def test_padding_to_the_left_changes_nothing_where_positions_are_relative(tiny_bert_folder):
    mx.random.seed(5)
    model = create_bert_with_head(bert_config=RELATIVE, head_type="text_generation", num_labels=200)
    right, left = Tokenizer.from_pretrained(tiny_bert_folder), Tokenizer.from_pretrained(tiny_bert_folder)
    left.padding_side = "left"
    assert_alike(FillMask(model, left)(MASKED[:4]), FillMask(model, right)(MASKED[:4]))


def test_only_masked_places_are_scored(pipes):
    """The vocabulary's logits of every token would fill the memory."""
    ours, _ = pipes
    shapes = []
    ours._run(MASKED, ours._masked, then=lambda logits, _: shapes.append(logits.shape))
    assert {shape[0] for shape in shapes} <= {1, 3}
    assert all(np.shape(shape) == (2,) for shape in shapes)


def test_errors(pipes):
    ours, _ = pipes
    with pytest.raises(ValueError, match=r"expected the mask token \[MASK\] in 'no mask'"):
        ours(["a [MASK]", "no mask"])
    with pytest.raises(ValueError, match="expected the mask token"):
        ours("")
    with pytest.raises(ValueError, match="expected top_k of at least 1 but got 0"):
        ours("[MASK]", top_k=0)


def test_a_tokenizer_without_a_mask(pipes, monkeypatch):
    ours, _ = pipes
    monkeypatch.setattr(FillMask, "_special_id", lambda self, name: None)
    with pytest.raises(ValueError, match="expected a tokenizer with a mask token but this one has none"):
        FillMask(ours.model, ours.tokenizer)
