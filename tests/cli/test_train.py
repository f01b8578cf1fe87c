"""``mlx-bert train``, ``evaluate`` and ``predict`` from the command line, on a tiny encoder."""

import contextlib
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_bert.__main__ import main
from mlx_bert.model import BertWithHead

ROOT = Path(__file__).parents[2]
WORDS = {"pos": "good", "neg": "bad", "mixed": "old"}
FAST = ["--epochs", "1", "--no-progress", "--save-every", "no"]


def run(*argv, stdin=None):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mlx_bert", *map(str, argv)],
        cwd=ROOT, capture_output=True, text=True, input=stdin, timeout=240, check=False,
    )  # fmt: skip


def rows(count=60):
    things = ("dog", "cat", "tree", "book", "city")
    names = list(WORDS)
    return [
        {"text": f"the {WORDS[names[n % 3]]} {things[n % 5]} " + "is here " * (n % 4), "label": names[n % 3]}
        for n in range(count)
    ]


def write_csv(path, data):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(data[0]))
        writer.writeheader()
        writer.writerows(data)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("data") / "train.csv", rows())


@pytest.fixture(scope="module")
def trained(tiny_bert_folder, data, tmp_path_factory):
    output, printed = tmp_path_factory.mktemp("trained") / "run", io.StringIO()
    command = ["train", "--model", tiny_bert_folder, "--train", data, "--output", output, "--no-progress",
               "--epochs", "12", "--learning-rate", "3e-3", "--batch-size", "8", "--save-every", "no",
               "--class-weights"]  # fmt: skip
    with contextlib.redirect_stdout(printed):
        assert main([str(word) for word in command]) == 0
    return output, printed.getvalue()


def test_train_says_what_it_does_and_where_everything_lies(trained, tiny_bert_folder):
    output, printed = trained
    assert f"model       {tiny_bert_folder} (bert, 2 layers of width 32)" in printed
    assert "training    54 examples" in printed
    assert "evaluation  6 examples (0.1 of" in printed
    assert "labels      mixed 18, neg 18, pos 18" in printed
    assert "eval accuracy" in printed
    assert "accuracy 1.0000" in printed
    assert f"Model:   {output / 'best_model'}" in printed
    assert (output / "history.json").is_file()
    loaded = BertWithHead.from_pretrained(output / "best_model")
    assert loaded.id2label == {0: "mixed", 1: "neg", 2: "pos"}
    assert (output / "best_model/bert/tokenizer.json").is_file()


def test_evaluate_prints_tables_and_json(trained, data, capsys):
    assert main(["evaluate", "--model", str(trained[0]), "--data", str(data)]) == 0
    printed = capsys.readouterr().out
    assert "class  precision     recall         f1  support" in printed
    assert "confusion matrix: rows are true, columns predicted" in printed
    assert main(["evaluate", "--model", str(trained[0]), "--data", str(data), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"]["accuracy"] > 0.95
    confusion = report["confusion"]
    assert sum(map(sum, confusion)) == report["examples"] == 60
    assert [row["support"] for row in report["classes"].values()] == [sum(row) for row in confusion] == [20, 20, 20]
    right = sum(confusion[n][n] for n in range(3))
    assert right / 60 == pytest.approx(report["metrics"]["accuracy"])


def test_predict_from_arguments_standard_input_and_files(trained, data, tmp_path, capsys):
    model = str(trained[0])
    assert main(["predict", "--model", model, "the good dog", "the bad tree is here", "--top-k", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("pos 0.")
    assert second.startswith("neg 0.")
    done = run("predict", "--model", model, "--format", "jsonl", stdin="the good cat\n\nthe old city\n")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["text"], row["label"]) for row in found] == [("the good cat", "pos"), ("the old city", "mixed")]
    assert main(["predict", "--model", model, "--input", str(data), "--output", str(tmp_path / "out.csv")]) == 0
    labelled = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["text"] for row in labelled] == [row["text"] for row in rows()]
    assert sum(row["label"] == known["label"] for row, known in zip(labelled, rows(), strict=True)) > 57
    assert all(1 / 3 < float(row["confidence"]) <= 1 for row in labelled)
    (tmp_path / "texts.txt").write_text("the bad book\n")
    assert main(["predict", "--model", model, "--input", str(tmp_path / "texts.txt")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("neg ")


def test_an_epoch_without_an_evaluation_is_a_row_without_numbers(tiny_bert_folder, data, tmp_path, capsys):
    arguments = ["--model", tiny_bert_folder, "--train", data, "--output", tmp_path / "run", "--eval-every", "5"]
    settings = ["--epochs", "3", "--batch-size", "16", "--no-progress", "--save-every", "no"]
    assert main(["train", *map(str, arguments), *settings]) == 0  # an epoch has 4 updates
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()[:1].isdigit()]
    assert [row[1] for row in table[:4]] == ["4", "5", "8", "10"]
    assert len(table[0]) == 4  # before the first evaluation there are no columns for one
    assert [row[3] == "-" for row in table[1:4]] == [False, True, False]


def test_a_fine_tuned_folder_can_be_trained_on(trained, data, tmp_path, capsys):
    arguments = ["train", "--model", str(trained[0]), "--train", str(data), "--output", str(tmp_path / "more"), *FAST]
    assert main(arguments) == 0
    assert "accuracy 1.0000" in capsys.readouterr().out
    assert main([*arguments, "--pooling", "cls"]) == 2
    assert "has a head already, but got --pooling" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "labels", "keys", "metric"),
    [
        ("binary_classification", ["yes", "no"], {"label", "confidence"}, "auc"),
        ("multilabel_classification", ["a|b", "b", ""], {"labels", "confidence"}, "f1_micro"),
        ("regression", [0.5, 1.5, -2], {"value"}, "rmse"),
        ("ordinal_regression", [1, 2, 3], {"label", "confidence"}, "accuracy"),
    ],
)
def test_other_kinds_of_heads(tiny_bert_folder, tmp_path, capsys, head, labels, keys, metric):
    data = [{"text": row["text"], "label": labels[n % len(labels)]} for n, row in enumerate(rows(24))]
    path, output = write_csv(tmp_path / "d.csv", data), str(tmp_path / "run")
    arguments = ["train", "--model", str(tiny_bert_folder), "--train", str(path), "--eval", str(path)]
    assert main([*arguments, "--head", head, "--hidden-sizes", "8", "--output", output, *FAST]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--model", output, "--data", str(path), "--json"]) == 0
    assert metric in json.loads(capsys.readouterr().out)["metrics"]
    assert main(["predict", "--model", output, "the good dog", "--format", "jsonl"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"text", *keys}


def test_metrics_without_a_value_are_null_for_every_reader_of_json(tiny_bert_folder, tmp_path, capsys):
    data = [{"text": row["text"], "label": 1.5} for row in rows(8)]
    path, output = write_csv(tmp_path / "d.csv", data), tmp_path / "run"
    arguments = ["train", "--model", str(tiny_bert_folder), "--train", str(path), "--eval", str(path)]
    assert main([*arguments, "--head", "regression", "--output", str(output), *FAST]) == 0
    history = json.loads((output / "history.json").read_text(), parse_constant=pytest.fail)
    assert history["epochs"][-1]["eval_r2"] is None  # targets without a spread
    capsys.readouterr()
    assert main(["evaluate", "--model", str(output), "--data", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["metrics"]["r2"] is None


def test_options_from_a_file(tiny_bert_folder, data, tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text(
        f'model = "{tiny_bert_folder}"\ntrain = "{data}"\noutput = "{tmp_path / "run"}"\nlearning_rate = 1e-3\n'
        'batch-size = 4\nprogress = false\nclass-weights = true\nhead = "multiclass_classification"\nepochs = 7\n'
    )
    assert main(["train", "--batch-size", "27", "--config", str(config), "--epochs", "1"]) == 0
    saved = json.loads((tmp_path / "run/training_args.json").read_text())
    assert (saved["learning_rate"], saved["batch_size"], saved["epochs"], saved["progress"]) == (1e-3, 27, 1, False)
    head = json.loads((tmp_path / "run/best_model/head/config.json").read_text())
    assert head["class_weights"]
    for text, message in (
        ("speed = 3", "has an unknown option 'speed'"),
        ("optimizer = 'sgd'", "expected optimizer to be one of adamw"),
        ("= 3", "cannot be read"),
    ):
        config.write_text(text)
        with pytest.raises(SystemExit) as stopped:
            main(["train", "--config", str(config)])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert "expected --model but got none" in errors(capsys, "train", "--train", data)


def test_help_teaches(capsys):
    for verb in ("train", "evaluate", "predict"):
        with pytest.raises(SystemExit) as stopped:
            main([verb, "--help"])
        assert stopped.value.code == 0
        assert f"  mlx-bert {verb} --model" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv", [["train", "--optimizer", "sgd"], ["train", "--config", "nowhere.toml"], ["fly"], ["search", "build"], []]
)
def test_a_wrong_option_is_one_line(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mlx-bert")
    assert line.endswith(" --help explains all options.")


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from mlx_bert.__main__ import parse\n"
        "try: parse(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('mlx.core', 'numpy', 'sklearn', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
                          env={"MLX_BERT_BLAS": "0"})  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def errors(capsys, *argv):
    assert main([str(argument) for argument in argv]) == 2
    return capsys.readouterr().err


def test_errors_of_train(tiny_bert_folder, data, trained, tmp_path, capsys):
    base = ("train", "--model", tiny_bert_folder, "--train", data, "--output", tmp_path / "run", *FAST)
    assert "expected epochs to be 1 or more" in errors(capsys, *base, "--epochs", "0")
    assert "has no column 'review'" in errors(capsys, *base, "--text-column", "review")
    assert "line 2: unknown label 'pos'; known: neg, mixed" in errors(capsys, *base, "--labels", "neg,mixed")
    assert "expected 2 classes for binary_classification" in errors(capsys, *base, "--head", "binary_classification")
    assert "expected --hidden-sizes such as 384" in errors(capsys, *base, "--hidden-sizes", "big")
    weighted = (*base, "--head", "metric_learning", "--class-weights")
    assert "with --class-weights but got metric_learning" in errors(capsys, *weighted)
    one = write_csv(tmp_path / "one.csv", [{"text": "the dog", "label": "a"}, {"text": "the cat", "label": "a"}])
    assert "expected at least 2 classes" in errors(capsys, *base, "--train", one)
    assert "does not exist" in errors(capsys, *base, "--train", tmp_path / "nothing.csv")
    assert "has results of another run" in errors(capsys, *base, "--output", trained[0])
    done = run(*base, "--eval", data, "--model", tmp_path / "nothing")
    assert done.returncode == 2
    assert "mlx-bert train: error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_of_evaluate_and_predict(trained, tmp_path, capsys):
    model = trained[0]
    unknown = write_csv(tmp_path / "u.csv", [{"text": "a", "label": "strange"}])
    assert "line 2: unknown label 'strange'" in errors(capsys, "evaluate", "--model", model, "--data", unknown)
    assert "has no fine-tuned model" in errors(capsys, "predict", "--model", tmp_path, "a text")
    assert "expected texts or --input but got both" in errors(
        capsys, "predict", "--model", model, "a", "--input", unknown
    )
    wrong = ("predict", "--model", model, "a", "--output", tmp_path / "o.xml")
    assert "expected --output to end in .jsonl or .csv" in errors(capsys, *wrong)
    assert "expected top_k of at least 1" in errors(capsys, "predict", "--model", model, "a", "--top-k", "0")
    assert "does not exist" in errors(capsys, "predict", "--model", model, "--input", tmp_path / "none.txt")
    assert "expected --input with a .csv" in errors(capsys, "predict", "--model", model, "a", "--pair-column", "b")
    done = run("predict", "--model", model, stdin="\n")
    assert "expected at least one text" in done.stderr
    assert done.returncode == 2
