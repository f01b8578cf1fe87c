"""The example of topic and sentiment over one encoder, with each of its options, on a tiny model."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mlx_bert.mtl import SentenceTransformerMTL

FOLDER = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = FOLDER / "train_sentence_mtl.py"
    spec = importlib.util.spec_from_file_location("train_sentence_mtl_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(example: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["train_sentence_mtl", *map(str, arguments)])
    return example.main()


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ([], {"sharing": "hard", "task_attention": False, "pooling": "mean", "output_dim": 16}),
        (["--sharing", "soft", "--task-attention", "--pooling", "cls"],
         {"sharing": "soft", "task_attention": True, "pooling": "cls", "output_dim": 16}),
        (["--sampling", "loss_ratio", "--embedding-weight", "0.1"], {"sharing": "hard"}),
    ],
    ids=["plain", "soft", "dynamic"],
)  # fmt: skip
def test_it_trains_both_tasks(options, config, example, tiny_bert_folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    given = [tiny_bert_folder, "--epochs", 2, "--output-dim", 16, "--output", output, *options]
    assert call(example, monkeypatch, *given) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("epoch  train loss  held-out:  loss  topic_accuracy  topic_f1  sentiment_accuracy")
    assert "topic of the first: Technology 0." in shown
    assert shown.count("nearest to ") == 3
    model = SentenceTransformerMTL.from_pretrained(output / "best_model")
    assert list(model.tasks) == ["topic", "sentiment"]
    assert config.items() <= model.get_config().items()
    if options == []:
        assert call(example, monkeypatch, *given) == 2
        assert "has results of another run" in capsys.readouterr().err


def test_it_trains_one_task(example, tiny_bert_folder, tmp_path, monkeypatch, capsys):
    options = ["--tasks", "sentiment", "--epochs", 1, "--output-dim", 16, "--output", tmp_path / "out"]
    assert call(example, monkeypatch, tiny_bert_folder, *options) == 0
    assert "topic" not in capsys.readouterr().out
    assert list(SentenceTransformerMTL.from_pretrained(tmp_path / "out" / "best_model").tasks) == ["sentiment"]


def test_wrong_use_and_help(example, tiny_bert_folder, monkeypatch, capsys):
    assert call(example, monkeypatch, tiny_bert_folder, "--tasks", "mood") == 2
    assert capsys.readouterr().err.startswith("train_sentence_mtl: error: expected tasks among topic, sentiment but")
    with pytest.raises(SystemExit) as stopped:
        call(example, monkeypatch, "--help")
    assert stopped.value.code == 0
    assert "--task-attention" in capsys.readouterr().out


def test_without_an_encoder_it_takes_the_installed_one(example, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)  # as for a script
    assert (example.installed_encoder() / "config.json").is_file()


def test_the_sentences_have_all_classes_and_are_held_out(example):
    for place, name in ((1, "topic"), (2, "sentiment")):
        for rows in (example.TRAIN, example.HELD_OUT):
            assert {row[place] for row in rows} - {None} == set(example.CLASSES[name])
        assert any(row[place] is None for row in example.TRAIN)
    texts = [row[0].lower() for row in (*example.TRAIN, *example.HELD_OUT)]
    assert len(set(texts)) == len(texts)
