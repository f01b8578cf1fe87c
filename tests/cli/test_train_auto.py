"""``mlx-bert train --task auto``: what the data say is what is trained."""

import csv

import numpy as np
import pytest
from cli_cases import THINGS, lines, predictions, report

from mlx_bert.__main__ import main
from mlx_bert.checkpoint import read_json, read_weights


def table(path, columns):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def reviews(labels, name="stars"):
    """An id, a title, a longer text, and a label each."""
    words = ["good", "bad", "old"]
    bodies = [f"the {words[n % 3]} {THINGS[n % 8]} is here {n} " for n in range(len(labels))]
    titles = [f"{THINGS[n % 8]} {n}" for n in range(len(labels))]
    return {"ReviewId": range(len(labels)), "title": titles, "body": bodies, name: labels}


def test_a_table_is_enough(command, tmp_path):
    data = table(tmp_path / "d.csv", reviews(["yes"] * 44 + ["no"] * 4, "sold"))
    output = tmp_path / "run"
    options = ("--eval-size", "0.25", "--epochs", "1")  # a row of the rare class to be measured on
    printed = command("train", "--task", "auto", "--train", data, "--output", output, *options)
    assert "task: binary_classification (the target has two values)" in printed
    assert "id columns: ReviewId" in printed
    assert "used: --task binary_classification --text-column body --label-column sold --batch-size 8 " in printed
    assert "--freeze 1 --dropout 0.2 --class-weights" in printed
    saved = read_json(output / "train_config.json")
    assert (saved["task"], saved["text-column"], saved["label-column"]) == ("binary_classification", "body", "sold")
    assert (saved["freeze"], saved["dropout"], saved["class-weights"]) == ("1", 0.2, True)
    assert read_json(output / "best_model/head/config.json")["class_weights"][0] > 1  # of "no"
    assert report(command, output, data, "--text-column", "body", "--label-column", "sold")["examples"] == 48
    assert predictions(command, output, "the good dog")[0]["label"] in ("no", "yes")
    assert main(["train", "--config", str(output / "train_config.json"), "--output", str(tmp_path / "two")]) == 0
    one, two = (read_weights(path / "best_model/head") for path in (output, tmp_path / "two"))
    assert all(np.array_equal(np.array(one[name]), np.array(two[name])) for name in one)


def test_the_recommended_settings_count_unless_others_are_given(tiny_bert_folder, tmp_path, capsys):
    data = table(tmp_path / "d.csv", reviews([1, 2, 3, 4] * 6))
    base = ["train", "--task", "auto", "--model", str(tiny_bert_folder), "--train", str(data), "--no-progress",
            "--save-every", "no", "--epochs", "1"]  # fmt: skip
    assert main([*base, "--output", str(tmp_path / "one")]) == 0
    assert "task: ordinal_regression (4 consecutive grades)" in capsys.readouterr().out
    saved = read_json(tmp_path / "one/train_config.json")
    assert (saved["batch-size"], saved["learning-rate"], saved["freeze"]) == (16, 2e-5, "1")
    given = ["--batch-size", "4", "--learning-rate", "1e-3", "--unfreeze-layers", "0", "--dropout", "0.4", "--pooling",
             "cls", "--text-column", "title", "--target", "stars"]  # fmt: skip
    assert main([*base, *given, "--output", str(tmp_path / "two")]) == 0
    saved = read_json(tmp_path / "two/train_config.json")
    assert (saved["batch-size"], saved["learning-rate"], saved["unfreeze-layers"]) == (4, 1e-3, 0)
    assert (saved["dropout"], saved["pooling"], saved["text-column"]) == (0.4, "cls", "title")


@pytest.mark.parametrize(
    ("columns", "task"),
    [
        ({"text": [f"the {t} is near" for t in THINGS] * 2, "price": np.linspace(1, 9, 16)}, "regression"),
        (
            {"text": [f"the {t}" for t in THINGS] * 2, "a": [0, 1] * 8, "b": [0, 0, 1, 1] * 4},
            "multilabel_classification",
        ),
        (
            {"text": [f"the {t}" for t in THINGS] * 2, "day": [f"2026-01-{n + 1:02}" for n in range(16)],
             "price": np.linspace(1, 9, 16)},
            "time_series_regression",
        ),
    ],
)  # fmt: skip
def test_other_tasks(command, tmp_path, columns, task):
    data = table(tmp_path / "d.csv", columns)
    printed = command("train", "--task", "auto", "--train", data, "--output", tmp_path / "run", "--epochs", "1")
    assert f"used: --task {task} --text-column text --label-column" in printed
    assert read_json(tmp_path / "run/train_config.json")["task"] == task


def test_what_cannot_be_inferred(command, tmp_path):
    base = ("train", "--task", "auto", "--output", tmp_path / "run", "--train")
    data = table(tmp_path / "d.csv", {"size": [1.5, 2.5, 3.5] * 4, "label": ["a", "b", "b"] * 4})
    assert "found no column of texts" in command(*base, data, code=2)
    assert "expected one --label-column with --task auto" in command(*base, data, "--target", "size,label", code=2)
    assert "has no column 'colour'" in command(*base, data, "--target", "colour", code=2)
    assert "expected no --crf with --task auto" in command(*base, data, "--crf", code=2)
    texts = lines(tmp_path / "t.jsonl", [{"text": f"some words {n}"} for n in range(9)])
    assert "found no target" in command(*base, texts, code=2)
