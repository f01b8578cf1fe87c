"""The examples of rerankers, few-shot classifiers and continued pre-training run from end to end on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from mlx_bert.core import BertCore
from mlx_bert.inference.cross_encoder import CrossEncoder
from mlx_bert.multihead import MultiheadClassifier
from mlx_bert.training.few_shot import FewShotClassifier

ROOT = Path(__file__).parent.parent
DATA = ROOT / "examples" / "data"


def call(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> int:
    """Run an example in this process, which is faster than another one."""
    spec = importlib.util.spec_from_file_location(f"{name}_under_test", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return module.main()


def test_a_reranker(tiny_bert_folder, tmp_path, monkeypatch, capsys):
    options = ("--output", tmp_path / "out", "--epochs", 1, "--max-query-length", 8)
    assert call(monkeypatch, "train_reranker", tiny_bert_folder, *options) == 0
    shown = capsys.readouterr().out
    assert "mrr@10" in shown
    assert "how do I mend a flat tyre" in shown
    assert CrossEncoder.from_pretrained(tmp_path / "out" / "best_model").num_labels == 1
    assert call(monkeypatch, "train_reranker", tiny_bert_folder, *options) == 2
    assert "has results of another run" in capsys.readouterr().err


def test_continued_pretraining(tiny_bert_folder, tmp_path, monkeypatch, capsys):
    options = ("--output", tmp_path / "out", "--epochs", 1, "--packed", "--max-length", 64)
    assert call(monkeypatch, "continue_pretraining", tiny_bert_folder, *options) == 0
    assert "perplexity before" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "best_model" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
    assert BertCore.from_pretrained(tmp_path / "out" / "best_model").get_hidden_size() == 32
    assert call(monkeypatch, "continue_pretraining", tiny_bert_folder, "--test", tmp_path / "none") == 2
    assert "No such file" in capsys.readouterr().err


def test_few_examples(tiny_bert_folder, tmp_path, monkeypatch, capsys):
    options = ("--output", tmp_path / "out", "--per-class", 3, "--max-pairs", 16)
    assert call(monkeypatch, "train_few_shot", tiny_bert_folder, *options) == 0
    assert "frozen encoder 0." in capsys.readouterr().out
    assert len(FewShotClassifier.from_pretrained(tmp_path / "out").labels) == 6
    assert call(monkeypatch, "train_few_shot", tiny_bert_folder, *options) == 2
    assert "is there already" in capsys.readouterr().err


def test_several_tasks(tiny_bert_folder, tmp_path, monkeypatch, capsys):
    options = ("--output", tmp_path / "out", "--epochs", 1, "--tasks", "sentiment, emotion")
    assert call(monkeypatch, "train_tasks", tiny_bert_folder, *options) == 0
    shown = capsys.readouterr().out
    assert "emotion: accuracy 0." in shown
    assert "so happy!  sentiment: " in shown
    assert MultiheadClassifier().load(tmp_path / "out").tasks == ["sentiment", "emotion"]
    assert call(monkeypatch, "train_tasks", tiny_bert_folder, *options) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_data_hold_out_what_is_tested():
    train, held_out = ([json.loads(line) for line in (DATA / "reranking" / f"{part}.jsonl").read_text().splitlines()]
                       for part in ("train", "test"))  # fmt: skip
    assert (len(train), len(held_out)) == (30, 10)
    assert not {row["query"] for row in train} & {row["query"] for row in held_out}
    assert all(row["positive"] not in row["negative"] and len(set(row["negative"])) == 5 for row in train + held_out)
    lines = [(DATA / "texts" / f"{part}.txt").read_text().splitlines() for part in ("train", "test")]
    assert [len(part) for part in lines] == [32, 8]
    assert len({*lines[0], *lines[1]}) == 40
    for name in ("reranking", "texts"):
        assert "CC0" in (DATA / name / "README.md").read_text()
