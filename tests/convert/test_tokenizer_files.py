"""Tokenizers end up as tokenizer.json, whatever they were, and give the same ids."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from tiny_checkpoints import TEXTS
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from convert.tokenizer_files import COMPANIONS, TOKENIZER, VOCABULARIES, write_tokenizer


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def test_built_from_vocab_txt(bert_folder, target):
    assert write_tokenizer(bert_folder, target) == "built from vocab.txt"
    expected = AutoTokenizer.from_pretrained(bert_folder)(TEXTS)["input_ids"]
    fast = Tokenizer.from_file(str(target / TOKENIZER))
    fast.no_padding()
    assert [encoding.ids for encoding in fast.encode_batch(TEXTS)] == expected
    assert (target / "vocab.txt").is_file()
    settings = json.loads((target / "tokenizer_config.json").read_text())
    assert (settings["pad_token"], settings["model_max_length"]) == ("[PAD]", 64)
    assert "is_local" not in settings


def test_rebuilt_minilm_equals_the_shipped_one(minilm, tmp_path, target):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        shutil.copy(minilm / name, bare)
    write_tokenizer(bare, target)
    shipped, built = (Tokenizer.from_file(str(folder / TOKENIZER)) for folder in (minilm, target))
    for tokenizer in (shipped, built):
        tokenizer.no_padding()
        tokenizer.no_truncation()
    for text in (*TEXTS, "Ünïcode, 中文 and numbers 12,345.67!", "", "don't  stop\n", "[MASK] is special"):
        assert built.encode(text).ids == shipped.encode(text).ids
        assert built.encode(text, "a pair").type_ids == shipped.encode(text, "a pair").type_ids


def test_copied(minilm, target):
    assert write_tokenizer(minilm, target) == "copied"
    assert (target / TOKENIZER).read_bytes() == (minilm / TOKENIZER).read_bytes()
    assert (target / "special_tokens_map.json").is_file()


def test_built_from_vocab_json_and_merges(tmp_path, target):
    source = tmp_path / "roberta"
    source.mkdir()
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab", "Ġab"]
    (source / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (source / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n")
    (source / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    assert write_tokenizer(source, target) == "built from vocab.json"
    fast = Tokenizer.from_file(str(target / TOKENIZER))
    assert fast.encode("ab ab").tokens == ["<s>", "ab", "Ġab", "</s>"]
    assert (target / "merges.txt").is_file()


def test_built_from_sentencepiece(tmp_path, target):
    sentencepiece = pytest.importorskip("sentencepiece")
    source = tmp_path / "xlmr"
    source.mkdir()
    (tmp_path / "corpus.txt").write_text("\n".join([*TEXTS, "more words to learn from", "and still more"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(source / "sentencepiece.bpe"),
        vocab_size=44,
        model_type="unigram",
        minloglevel=2,
    )
    (source / "sentencepiece.bpe.vocab").unlink()
    (source / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    assert write_tokenizer(source, target) == "built from sentencepiece.bpe.model"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(source / "sentencepiece.bpe.model"))
    fast = Tokenizer.from_file(str(target / TOKENIZER))
    for text in TEXTS:
        tokens = fast.encode(text).tokens
        assert (tokens[0], tokens[-1]) == ("<s>", "</s>")
        assert tokens[1:-1] == pieces.encode(text, out_type=str)
        # fairseq's order: <s> 0, <pad> 1, </s> 2, <unk> 3, then the pieces one further than in the file
        assert fast.encode(text).ids[1:-1] == [number + 1 for number in pieces.encode(text)]


def test_none(tmp_path, target):
    (tmp_path / "config.json").write_text("{}")
    assert write_tokenizer(tmp_path, target) == "none"
    assert list(target.iterdir()) == []


def test_broken(tmp_path, target, bert_folder):
    (bert_folder / TOKENIZER).write_text('{"version": "1.0", "model": {"type": "Nonsense"}}')
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be used"):
        write_tokenizer(bert_folder, target)


def test_cannot_be_built(tmp_path, target):
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(ValueError, match=r"no tokenizer\.json can be built from vocab\.json"):
        write_tokenizer(tmp_path, target)


def test_without_transformers(bert_folder, target, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'mlx-bert\[convert\]'"):
        write_tokenizer(bert_folder, target)


def test_vocabulary_that_links_outside(bert_folder, target, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (bert_folder / "vocab.txt").unlink()
    (bert_folder / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="is a link to a place outside"):
        write_tokenizer(bert_folder, target)


def test_same_files_as_the_tokenizer_keeps():
    from mlx_bert.tokenizer import TOKENIZER_FILES

    assert set(TOKENIZER_FILES) <= {TOKENIZER, *VOCABULARIES, *COMPANIONS}
