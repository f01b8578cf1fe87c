"""examples/finetune_embeddings.py: from questions and answers to an encoder that finds more of them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_bert import SentenceEncoder

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "finetune_embeddings.py"
DATA = ROOT / "examples" / "data" / "pairs"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("finetune_embeddings_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_data_holds_out_questions_not_answers():
    train, test = ([json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]
                   for name in ("train", "test"))  # fmt: skip
    assert (len(train), len(test)) == (48, 24)
    assert {row["answer"] for row in train} == {row["answer"] for row in test}
    assert {row["question"] for row in train}.isdisjoint(row["question"] for row in test)


def test_a_run_on_a_tiny_model(tiny_bert_folder, tmp_path, script, capsys, monkeypatch):
    """The whole of main, on few rows."""
    train, test = ((DATA / f"{name}.jsonl").read_text().splitlines() for name in ("train", "test"))
    (tmp_path / "train.jsonl").write_text("\n".join(train[:8]))
    (tmp_path / "test.jsonl").write_text("\n".join(test[:4]))
    arguments = ["--train", tmp_path / "train.jsonl", "--test", tmp_path / "test.jsonl", "--output", tmp_path / "out"]
    arguments += ["--epochs", "1", "--batch-size", "4", "--chunk-size", "2"]
    monkeypatch.setattr(sys, "argv", ["finetune_embeddings", str(tiny_bert_folder), *map(str, arguments)])
    assert script.main() == 0
    printed = capsys.readouterr().out
    assert "cosine_ndcg@10" in printed
    assert f"written to {tmp_path / 'out' / 'best_model'}" in printed
    assert SentenceEncoder.from_pretrained(tmp_path / "out" / "best_model").encode(["a dog"]).shape == (1, 32)
    assert (tmp_path / "out" / "hard_negatives" / "epoch_0.json").is_file()


@pytest.mark.slow
def test_minilm_finds_more_answers_afterwards(minilm_source, tmp_path, script):
    import argparse

    options = {"model": str(minilm_source), "train": DATA / "train.jsonl", "test": DATA / "test.jsonl",
               "output": tmp_path / "out", "epochs": 3, "batch_size": 24, "chunk_size": 32, "learning_rate": 5e-5,
               "negatives": 1}  # fmt: skip
    before, after = script.run(argparse.Namespace(**options))
    assert after["cosine_ndcg@10"] > before["cosine_ndcg@10"] + 0.03


def test_errors_have_no_traceback(tmp_path):
    command = [sys.executable, str(SCRIPT), "./nowhere", "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("finetune_embeddings: error: ")
    assert "nowhere" in run.stderr
    assert "Traceback" not in run.stderr
