"""The accuracy benchmark on a tiny model and made-up data sets: every recipe, what is kept, and its errors."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy, report
from benchmarks.__main__ import main
from benchmarks.accuracy_data import LAYOUT, Context, Figure, Recipe
from benchmarks.accuracy_frozen import Frozen, pearson
from benchmarks.accuracy_recipes import RECIPES, nearest

GOOD, BAD = ["good", "great", "nice"], ["bad", "awful", "sad"]


def row_of(data: str, random: random.Random) -> dict:
    kind = random.choice((0, 1))
    words = ["the", random.choice(["movie", "book", "dog"]), "is", random.choice((GOOD, BAD)[kind])]
    text = " ".join(words)
    tags = ["O", "B-thing", "O", "O"]
    answers = [{"text": words[1], "answer_start": 4}]  # as SQuAD's own files have them, and as the Hub's
    answers = random.choice((answers, {"text": [words[1]], "answer_start": [4]}))
    return {
        "uci_sentiment": {"text": text, "label": kind},
        "clinc150": {"text": text, "label": words[3], "domain": ("up", "down")[kind]},
        "goemotions": {"text": text, "labels": [("joy", "grief")[kind], words[1]]},
        "emobank": {"text": text, "targets": [3.0 + kind, random.random(), random.random()]},
        "wnut17": {"tokens": words, "tags": tags},
        "codah": {"question": words[0], "choices": [words[1], *GOOD], "label": kind},
        "squad11": {"question": "what is it", "context": text, "answers": answers},
        "stsb": {"text_a": text, "text_b": f"a {words[1]}", "score": 5 * random.random()},
        "snips_joint": {"text": text, "tokens": words, "tags": tags, "label": ("play", "book")[kind]},
    }[data]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in LAYOUT:
        source = random.Random(name)
        (folder / name).mkdir()
        for part in ("train", "validation", "test"):
            lines = [json.dumps(row_of(name, source)) for _ in range(24)]
            (folder / name / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run(model, data, output, *options):
    return main(["accuracy", "--model", str(model), "--data", str(data), "--output", str(output), *options])


def test_every_recipe(tiny_bert_folder, data, tmp_path, monkeypatch):
    path, train = tmp_path / "result.json", Frozen.train
    epochs = []

    def few(self, model, parts, **settings):
        epochs.append(settings.get("epochs"))
        return train(self, model, parts, **{**settings, "epochs": 2})

    monkeypatch.setattr(Frozen, "train", few)
    assert run(tiny_bert_folder, data, path) == 0
    assert set(epochs) == {None, 20}
    rows = json.loads(path.read_text())["rows"]
    assert {row["recipe"] for row in rows} == set(RECIPES)
    assert {row["data"] for row in rows} == set(LAYOUT)
    assert all(-1 <= row["reached"] <= 1 and row["seconds"] > 0 and row["peak MB"] > 0 for row in rows)
    found = {(row["recipe"], row["data"], row["figure"]): row for row in rows}
    assert len(found) == len(rows)
    multihead = [key[1:] for key in found if key[0] == "multihead"]
    assert multihead == [key[1:] for key in found if key[0].startswith("head-")]
    assert found["joint", "snips_joint", "entity_f1"]["reference"] == 0.946
    assert found["questions", "squad11", "F1"]["reference"] == 0.202
    assert all(row["reference"] is not None for row in rows)


def test_the_nearest_end_is_right_where_it_is_the_text_itself(tiny_bert_folder):
    rows = [
        {"text": "the dog is good", "choices": ["awful book", "the dog is good", "a movie"], "labels": 1},
        {"text": "the movie is sad", "choices": ["the movie is sad", "great dog", "a book"], "labels": 1},
    ]
    assert nearest(str(tiny_bert_folder), rows) == 0.5


def test_correlation_of_each_target():
    wanted = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 5.0]])
    assert pearson(wanted * [10, -1] + 3, wanted) == pytest.approx([1, -1])


def test_embeddings_are_means_of_the_tokens_of_length_one():
    rows = [{"hidden_states": np.array([[3.0, 0.0], [3.0, 8.0]], np.float32)}, {"hidden_states": np.ones((1, 2))}]
    frozen = Frozen(Context("", Path(), Path(), "float32", None), "some", None, {"test": rows})
    assert frozen.embeddings("test") == pytest.approx(np.array([[0.6, 0.8], [0.5**0.5, 0.5**0.5]]))


def test_rows_are_kept_as_they_come_and_replaced(tiny_bert_folder, data, tmp_path, monkeypatch, capsys):
    def fails(context: Context):
        raise ValueError("[test] no power")

    values = iter((0.1, 0.2))
    recipes = {
        "a": Recipe("one", ("uci_sentiment",), lambda context: [Figure("uci_sentiment", "x", next(values))]),
        "b": Recipe("two", ("uci_sentiment",), fails),
        "c": Recipe("three", ("uci_sentiment",), lambda context: [Figure("uci_sentiment", "x", 0.5, how="so")]),
    }
    monkeypatch.setattr(accuracy, "RECIPES", recipes)
    path = tmp_path / "result.json"
    monkeypatch.setattr("sys.argv", ["benchmarks", "accuracy", "--data", str(data)])
    assert run(tiny_bert_folder, data, path) == 2
    assert "no power" in capsys.readouterr().err
    assert [(row["recipe"], row["reached"]) for row in report.load(path)["rows"]] == [("a", 0.1)]
    assert run(tiny_bert_folder, data, path, "--only", "c, a") == 0
    rows = report.load(path)["rows"]
    assert [(row["recipe"], row["reached"], row["how"]) for row in rows] == [("a", 0.2, "one"), ("c", 0.5, "so")]
    assert report.load(path)["command"] == "python -m benchmarks accuracy --data FOLDER"
    assert "three" not in path.with_suffix(".md").read_text()


def test_limit_takes_rows_of_the_whole_file(data, tmp_path):
    everything = Context("", data, tmp_path, "float32", None).rows("clinc150", "train")
    some = Context("", data, tmp_path, "float32", 5).rows("clinc150", "train")
    assert some == [everything[number] for number in (0, 4, 9, 14, 19)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "joint,cooking"], "expected recipes of .* but got cooking"),
        (["--only", "similarity"], "expected stsb/train.jsonl in"),
        ([], "expected uci_sentiment/train.jsonl, .* but they are not there"),
    ],
)
def test_errors(tiny_bert_folder, tmp_path, options, message, capsys):
    import re

    assert run(tiny_bert_folder, tmp_path, tmp_path / "result.json", *options) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "result.json").exists()
