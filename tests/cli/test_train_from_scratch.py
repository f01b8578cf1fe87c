"""``mlx-bert train`` without a model to start from: a tokenizer, and a small encoder that reads with it."""

import numpy as np
import pytest
from cli_cases import THINGS, lines

from mlx_bert.__main__ import main
from mlx_bert.bpe import ByteLevelBPE
from mlx_bert.checkpoint import read_json, read_weights
from mlx_bert.core import BertCore
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.tokenizer import Tokenizer

TEXTS = [f"the {thing} is near the other {thing}." for thing in THINGS]


def train(*argv, code=0):
    assert main(["train", *map(str, argv), "--no-progress"]) == code


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch")
    (folder / "corpus.txt").write_text("\n".join(TEXTS))
    train("--task", "tokenizer", "--train", folder / "corpus.txt", "--vocab-size", "300", "--output", folder / "bpe")
    return folder / "bpe"


def test_a_tokenizer_from_a_file_and_from_rows(tokenizer, tmp_path, capsys):
    found = ByteLevelBPE.from_file(tokenizer)
    assert found.merges == ByteLevelBPE.train(["\n".join(TEXTS)], 300).merges
    assert Tokenizer.from_pretrained(tokenizer)(["the dog"]).input_ids[0, 0].item() == found.cls_id
    rows = lines(tmp_path / "d.jsonl", [{"sentence": text} for text in TEXTS])
    output = tmp_path / "rows"
    train("--task", "tokenizer", "--train", rows, "--output", output, "--max-length", "64", "--vocab-size", "280")
    assert "vocabulary  280 ids, 22 of them merges" in capsys.readouterr().out
    assert ByteLevelBPE.from_file(output).merges == ByteLevelBPE.train(TEXTS, 280).merges
    assert Tokenizer.from_pretrained(output).max_length == 64
    saved = read_json(output / "train_config.json")
    assert (saved["task"], saved["vocab-size"], saved["train"]) == ("tokenizer", 280, rows)
    assert main(["train", "--config", str(output / "train_config.json"), "--output", str(tmp_path / "two")]) == 0
    assert (tmp_path / "two/bpe_merged.json").read_bytes() == (output / "bpe_merged.json").read_bytes()


def test_what_a_tokenizer_does_not_take(tokenizer, tmp_path, capsys):
    base = ("--task", "tokenizer", "--train", tokenizer.parent / "corpus.txt", "--output", tmp_path / "x")
    for options, message in (
        (("--epochs", "3", "--resume"), "expected no --resume, --epochs with --task tokenizer"),
        (("--model", "minilm"), "expected no --model with --task tokenizer"),
        (("--eval-size", "0.3"), "expected no --eval-size with --task tokenizer"),
        (("--vocab-size", "20"), "expected vocab_size of at least 258 but got 20"),
        (("--output", tokenizer), "has a tokenizer already"),
        (("--train", tmp_path / "none.txt"), "does not exist"),
    ):
        train(*base, *options, code=2)
        assert message in capsys.readouterr().err
    train("--vocab-size", "300", "--train", "a.csv", "--model", "b", code=2)
    assert "expected no --vocab-size with --task None" in capsys.readouterr().err


SIZES = [f"--head-option={name}={size}" for name, size in (("hidden_size", 16), ("num_hidden_layers", 1),
         ("num_attention_heads", 2), ("intermediate_size", 16), ("projection_size", 8))]  # fmt: skip


def test_a_compact_encoder_from_triplets(tokenizer, tmp_path, capsys):
    rows = [{"query": f"the {a}", "pos": f"a {a}", "neg": [f"a {b}" for b in THINGS if b != a][:3]} for a in THINGS]
    data, output = lines(tmp_path / "d.jsonl", rows), tmp_path / "run"
    base = ("--task", "compact", "--model", tokenizer, "--train", data, "--epochs", "3", "--save-every", "no", *SIZES)
    train(*base, "--eval-size", "0.25", "--output", output)
    printed = capsys.readouterr().out
    assert "training    18 triplets" in printed  # of six anchors: none is in both parts
    assert "evaluation  6 triplets" in printed
    assert read_json(output / "best_model/config.json")["projection_size"] == 8
    found = SentenceEncoder.from_pretrained(output / "best_model").encode(["the dog", "a cat is near"])
    core, reads = (kind.from_pretrained(output / "best_model") for kind in (BertCore, Tokenizer))
    assert np.allclose(found, np.array(core(*reads(["the dog", "a cat is near"])).pooler_output), atol=1e-5)
    assert found.shape == (2, 8)
    assert main(["evaluate", "--model", str(output), "--data", data, "--json"]) == 0
    assert "cosine_accuracy" in capsys.readouterr().out
    assert main(["predict", "--model", str(output), "a"]) == 2
    assert "is an embedding model. Use: mlx-bert embed" in capsys.readouterr().err
    saved = read_json(output / "train_config.json")
    assert (saved["optimizer"], saved["patience"], saved["head-option"]["hidden_size"]) == ("adam", 3, 16)
    assert main(["train", "--config", str(output / "train_config.json"), "--output", str(tmp_path / "two")]) == 0
    one, two = (read_weights(path / "best_model") for path in (output, tmp_path / "two"))
    assert all(np.array_equal(np.array(one[name]), np.array(two[name])) for name in one)


def test_a_compact_encoder_from_scores(tokenizer, tmp_path, capsys):
    rows = [{"text": f"the {a}", "text_pair": f"a {b}", "score": 5 * (a == b)} for a in THINGS[:4]
            for b in THINGS[:4]]  # fmt: skip
    data = lines(tmp_path / "d.jsonl", rows)
    base = ("--task", "compact", "--model", tokenizer, "--output", tmp_path / "run", "--epochs", "1", *SIZES)
    train(*base, "--train", data, "--largest-score", "5", "--eval-size", "0")
    assert "evaluation  none" in capsys.readouterr().out
    assert (tmp_path / "run/final_model/model.safetensors").is_file()
    low = lines(tmp_path / "low.jsonl", [{**row, "score": 0.1} for row in rows])
    train(*base, "--train", low, code=2)
    assert "give no triplet" in capsys.readouterr().err
    train(*base, "--train", lines(tmp_path / "p.jsonl", [{"anchor": "a", "positive": "b"}]), code=2)
    assert "expected triplets, or pairs with a score" in capsys.readouterr().err
    train(*base, "--train", low, "--largest-score", "0.1", "--head-option", "size=3", code=2)
    assert "expected sizes of hidden_size, num_hidden_layers" in capsys.readouterr().err
