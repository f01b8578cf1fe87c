"""Distilling an embedding model from a teacher's embeddings, from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from mlx_bert.__main__ import main
from mlx_bert.core import BertCore
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.sentence_modules import Pooling
from mlx_bert.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
PAIRS = [{"english": f"the {a} is {b}", "non_english": f"{b} is a {a}"} for a in ("dog", "cat", "book", "city")
         for b in ("good", "bad", "happy", "sad")]  # fmt: skip
FIRST, SECOND = ([row[name] for row in PAIRS] for name in ("english", "non_english"))


@pytest.fixture(scope="module")
def models(tiny_bert_folder, tmp_path_factory):
    """Folders of a teacher and of a student, whose weights are noisy ones of the teacher."""
    core = BertCore.from_pretrained(tiny_bert_folder)
    pooling = Pooling({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    teacher = SentenceEncoder(core, Tokenizer.from_pretrained(tiny_bert_folder), [pooling])
    folder = tmp_path_factory.mktemp("models")
    teacher.save_pretrained(folder / "teacher")
    mx.random.seed(1)
    core.update(tree_map(lambda array: array + 0.05 * mx.random.normal(array.shape), core.parameters()))
    teacher.save_pretrained(folder / "student")
    return folder


def train(models, output, *options):
    base = ["train", "--task", "embedding", "--model", models / "student", "--output", output, "--epochs", "6"]
    fast = ["--no-progress", "--save-every", "no", "--batch-size", "4", "--learning-rate", "3e-3"]
    return [str(option) for option in (*base, *fast, *options)]


def distance(models, folder, texts=FIRST):
    """Mean squared error of a model's embeddings against the teacher's of the first texts."""
    wanted = SentenceEncoder.from_pretrained(models / "teacher").encode(FIRST)
    return float(np.mean((SentenceEncoder.from_pretrained(folder).encode(texts) - wanted) ** 2))


def write(path, rows):
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_teacher_is_run_and_learnt_in_a_process(models, tmp_path):
    data = write(tmp_path / "pairs.jsonl", PAIRS)
    options = train(models, tmp_path / "run", "--train", data, "--teacher", models / "teacher")
    done = subprocess.run(
        [sys.executable, "-m", "mlx_bert", *options], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "loss        embedding_mse" in done.stdout
    assert "evaluation  none" in done.stdout
    for texts in (FIRST, SECOND):  # of the translations, too
        assert distance(models, tmp_path / "run/final_model", texts) < 0.4 * distance(models, models / "student", texts)


@pytest.mark.parametrize(("name", "column"), [("a.jsonl", "label"), ("a.parquet", "embedding")])
def test_the_embeddings_stand_in_the_data(models, tmp_path, name, column):
    embeddings = SentenceEncoder.from_pretrained(models / "teacher").encode(FIRST)
    rows = [{"sentence": text, column: row.tolist()} for text, row in zip(FIRST, embeddings, strict=True)]
    data = write(tmp_path / name, rows)
    assert main(train(models, tmp_path / "run", "--train", data, "--loss", "embedding_mse")) == 0
    assert distance(models, tmp_path / "run/final_model") < 0.3 * distance(models, models / "student")


def test_what_does_not_fit_is_said(models, tmp_path, capsys, tiny_bert_folder):
    core = BertCore.from_pretrained(tiny_bert_folder)
    wide = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    SentenceEncoder(core, Tokenizer.from_pretrained(tiny_bert_folder), [Pooling(wide)]).save_pretrained(tmp_path / "w")
    data = write(tmp_path / "pairs.jsonl", PAIRS)
    ragged = write(tmp_path / "bad.jsonl", [{"text": "a", "label": [0.5, 1.0]}, {"text": "b", "label": [0.5]}])
    narrow = write(tmp_path / "narrow.jsonl", [{"text": "a", "label": [0.5, 1.0]}])
    teacher = ("--teacher", models / "teacher")
    for options, message in (
        (("--train", data, "--teacher", tmp_path / "w"), "expected a teacher with embeddings of 32 values"),
        (("--train", data, *teacher, "--loss", "multiple_negatives"), "expected --loss embedding_mse and no --label"),
        (("--train", data, *teacher, "--label-column", "label"), "expected --loss embedding_mse and no --label"),
        (("--train", data, *teacher, "--task", "cross_encoder"), "expected no --teacher with --task cross_encoder"),
        (("--train", ragged, "--loss", "embedding_mse"), "expected labels of 2 items as before but got 1"),
        (("--train", narrow, "--loss", "embedding_mse"), "expected labels (B, 32) or"),
        (("--train", data, "--loss", "embedding_mse"), "has no column 'labels' or 'label' or 'embedding'"),
    ):
        assert main(train(models, tmp_path / "run", *options)) == 2
        assert message in capsys.readouterr().err
