"""Training, measuring and predicting with every kind of model, from the command line, in this process."""

import csv

import mlx.core as mx
import numpy as np
import pytest
from cli_cases import MOODS, THINGS, labelled, lines, predictions, report
from mlx.utils import tree_flatten

from mlx_bert.__main__ import main, parse
from mlx_bert.checkpoint import read_json, read_weights
from mlx_bert.inference import precision
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.multihead import MultiheadClassifier
from mlx_bert.training.trainer import Trainer


def test_token_classification(command, tmp_path):
    texts = [("the cat is happy", "O B-PET O B-MOOD"), ("we love dog bird and cat", "O O B-PET I-PET O B-PET")] * 10
    conll = tmp_path / "train.conll"
    conll.write_text("\n".join("\n".join(f"{a} {b}" for a, b in zip(t.split(), g.split(), strict=True)) + "\n"
                               for t, g in texts))  # fmt: skip
    output = tmp_path / "run"
    options = ("--task", "token_classification", "--train", conll, "--eval", conll, "--output", output)
    printed = command("train", *options, "--epochs", "5", "--max-length", "7", "--stride", "2", "--crf")
    assert "training    30 windows" in printed  # the six words of the longer text take two windows of five
    assert "eval entity_f1" in printed
    head = read_json(output / "best_model/head/config.json")
    assert head["extra"]["use_crf"] is True
    assert read_json(output / "best_model/model_metadata.json")["id2label"]["0"] == "O"
    found = report(command, output, conll)
    assert found["metrics"]["entity_f1"] > 0.95
    assert {kind: row["support"] for kind, row in found["entities"].items()} == {"MOOD": 10, "PET": 30}
    assert sum(map(sum, found["confusion"])) == 100
    printed = command("evaluate", "--model", output, "--data", conll)
    assert "entity  precision     recall         f1  support" in printed
    (row,) = predictions(command, output, "the cat is happy")
    assert [entity["entity_group"] for entity in row["entities"]] == ["PET", "MOOD"]
    assert "MOOD" in command("predict", "--model", output, "--input", conll)
    assert "expected no --pooling for token_classification" in command(
        "train", *options, "--pooling", "mean", "--output", tmp_path / "x", code=2
    )


def test_question_answering_over_windows(command, tmp_path):
    start = "the day and the night "
    context = {mood: start * 2 + f"so {mood} " + start for mood in MOODS}
    rows = [
        {"id": n, "question": "who", "context": context[mood],
         "answers": {"text": [mood], "answer_start": [context[mood].index(mood)]}}
        for n, mood in enumerate(MOODS * 7)
    ]  # fmt: skip
    data, output = lines(tmp_path / "qa.jsonl", rows), tmp_path / "run"
    options = ("--task", "question_answering", "--max-length", "14", "--stride", "3")
    printed = command("train", *options, "--train", data, "--eval", data, "--output", output, "--epochs", "5")
    assert "texts       21, in windows" in printed
    assert "eval exact_match" in printed
    found = report(command, output, data, "--max-length", "14", "--stride", "3")
    assert found["metrics"]["exact_match"] > 0.95
    assert found["examples"] == 21
    asked = predictions(command, output, "who", "--context", context["sad"], "--max-length", "14")
    assert asked[0]["answer"] == "sad"
    assert context["sad"][asked[0]["start"] : asked[0]["end"]] == "sad"
    rows = predictions(command, output, "--input", data, "--max-length", "14")
    assert [row["answer"] for row in rows] == list(MOODS * 7)
    assert rows[1]["id"] == "1"
    assert "expected --context with questions but got none" in command("predict", "--model", output, "who", code=2)
    assert "draws the confusion matrix of classes" in command(
        "evaluate", "--model", output, "--data", data, "--plot", tmp_path / "x.png", code=2
    )


def test_multiple_choice(command, tmp_path):
    rows = [{"question": f"the {thing}", "choices": ["is bad", "is good"][:: 1 - 2 * (n % 2)], "label": 1 - n % 2}
            for n, thing in enumerate(THINGS * 3)]  # fmt: skip
    data, output = lines(tmp_path / "mc.jsonl", rows), tmp_path / "run"
    command("train", "--task", "multiple_choice", "--train", data, "--eval", data, "--output", output, "--epochs", "4")
    assert report(command, output, data)["metrics"]["accuracy"] > 0.9
    (row,) = predictions(command, output, "the dog", "--choices", "is bad | is good")
    assert (row["choice"], row["index"]) == ("is good", 1)
    assert [row["choice"] for row in predictions(command, output, "--input", data)].count("is good") > 20


def test_several_targets_and_several_labels_in_columns(command, tmp_path):
    rows = [{"text": row["text"], "size": 100.0 + 50 * (n % 3), "odd": float(n % 2), "pos": int(n % 3 == 0),
             "neg": int(n % 3 == 1)} for n, row in enumerate(labelled())]  # fmt: skip
    data, output = lines(tmp_path / "r.jsonl", rows), tmp_path / "run"
    options = ("--train", data, "--eval", data, "--epochs", "8")
    printed = command("train", "--task", "regression", "--label-column", "size,odd", "--output", output, *options)
    assert "targets     2" in printed
    found = report(command, output, data, "--label-column", "size,odd")
    assert set(found["targets"]) == {"size", "odd"}
    assert found["targets"]["size"]["r2"] > 0.8  # in units of the data: the head learnt their mean and spread
    assert len(predictions(command, output, "the good dog")[0]["value"]) == 2
    output = tmp_path / "labels"
    options = ("--label-column", "pos,neg", "--output", output, *options)
    assert "labels      pos 16, neg 16" in command("train", "--task", "multilabel_classification", *options)
    assert set(report(command, output, data, "--label-column", "pos,neg")["classes"]) == {"pos", "neg"}


def test_several_tasks_from_columns_with_gaps(command, tmp_path):
    rows = [{**row, "mood": "" if n % 5 == 0 else row["mood"]} for n, row in enumerate(labelled(60))]
    data = tmp_path / "t.csv"
    with data.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    output = tmp_path / "run"
    options = ("--task", "multi_task", "--train", data, "--tasks", "mood", "what=thing")
    printed = command("train", *options, "--task-sampling", "dynamic", "--epochs", "12", "--output", output)
    assert "head        2 tasks, mean pooling, dynamic sampling" in printed
    found = report(command, output, data, "--tasks", "mood", "what=thing", "--plot", str(tmp_path / "c.png"))
    assert (found["tasks"]["mood"]["examples"], found["tasks"]["what"]["examples"]) == (48, 60)
    assert found["tasks"]["mood"]["metrics"]["accuracy"] > 0.9
    assert (tmp_path / "c-mood.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "c-what.png").is_file()
    (row,) = predictions(command, output, rows[1]["text"])
    assert (row["mood"], row["what"]) == ("neg", "cat")
    model = MultiheadClassifier().load(output / "best_model")  # what Python code loads
    assert model.predict_all_tasks(rows[1]["text"])["mood"][0]["label"] == "neg"
    assert "has no task colour. It has mood, what" in command(
        "evaluate", "--model", output, "--data", data, "--tasks", "colour", code=2
    )
    assert "expected tasks with --task multi_task but got none" in command(
        "train", "--task", "multi_task", "--train", data, code=2
    )


def test_a_file_per_task_and_the_resolved_options_run_again(command, tiny_bert_folder, tmp_path):
    for task in ("mood", "thing"):
        lines(tmp_path / f"{task}.jsonl", [{"text": row["text"], "label": row[task]} for row in labelled()])
    config = tmp_path / "run.toml"
    config.write_text(
        f'task = "multi_task"\ntask-sampling = "sqrt"\nepochs = 2\nhidden-sizes = "16"\n[tasks.mood]\n'
        f'train = "{tmp_path}/mood.jsonl"\nweight = 0.5\n[tasks.what]\ntrain = "{tmp_path}/thing.jsonl"\n'
        f'eval = "{tmp_path}/thing.jsonl"\n'
    )
    command("train", "--config", config, "--output", tmp_path / "one")
    saved = read_json(tmp_path / "one/train_config.json")
    assert (saved["task"], saved["epochs"], saved["learning-rate"], saved["seed"]) == ("multi_task", 2, 3e-3, 42)
    assert saved["tasks"]["mood"] == {"train": f"{tmp_path}/mood.jsonl", "weight": 0.5}
    assert main(["train", "--config", str(tmp_path / "one/train_config.json"), "--output", str(tmp_path / "two")]) == 0
    first, second = (read_json(tmp_path / name / "history.json")["steps"] for name in ("one", "two"))
    assert [step["loss"] for step in first] == [step["loss"] for step in second]
    one, two = (mx.load(str(tmp_path / name / "best_model/task_heads.safetensors")) for name in ("one", "two"))
    assert all(np.array_equal(np.array(one[name]), np.array(two[name])) for name in one)
    loaded = MultiheadClassifier().load(tmp_path / "one/best_model")
    assert loaded.config.loss.task_weights == {"mood": 0.5}
    config.write_text('task = "multi_task"\n[tasks.mood]\ntrain = "x"\ncolour = 1\n')
    assert "[tasks.mood] has unknown keys colour" in command("train", "--config", config, code=2)


def test_the_resolved_options_of_a_head_run_again(command, tmp_path):
    data = lines(tmp_path / "d.jsonl", [{"text": row["text"], "label": row["mood"]} for row in labelled()])
    options = ("--train", data, "--head-option", "label_smoothing=0.1", "--column", "text=text", "--epochs", "2")
    command("train", *options, "--output", tmp_path / "one", "--class-weights")
    saved = read_json(tmp_path / "one/train_config.json")
    assert saved["labels"] == ["mixed", "neg", "pos"]
    assert (saved["head-option"], saved["class-weights"]) == ({"label_smoothing": 0.1}, True)
    assert (saved["dropout"], saved["pooling"], saved["epochs"], saved["eval-size"]) == (0.1, "mean", 2, 0.1)
    assert main(["train", "--config", str(tmp_path / "one/train_config.json"), "--output", str(tmp_path / "two")]) == 0
    one, two = (read_weights(tmp_path / name / "best_model/head") for name in ("one", "two"))
    assert all(np.array_equal(np.array(one[name]), np.array(two[name])) for name in one)
    assert read_json(tmp_path / "two/train_config.json") == {**saved, "output": str(tmp_path / "two")}


@pytest.mark.parametrize("task", ["embedding", "cross_encoder", "few_shot"])
def test_weights_that_are_trained_are_read_whole(command, tmp_path, tiny_bert_folder, monkeypatch, task):
    """On what is taken for a GPU, too, where embedding and scoring would read them in float16."""
    rows = [{"text": row["text"], "label": row["mood"]} for row in labelled(6)]
    if task != "few_shot":
        rows = [{"text": row["text"], "text_pair": row["text"], "score": 0.5} for row in rows]
    types, update = [], Trainer.__init__
    monkeypatch.setattr(precision, "on_gpu", lambda: True)

    def spied(self, model, *args, **options):
        types.extend(array.dtype for _, array in tree_flatten(model.parameters()))
        update(self, model, *args, **options)

    monkeypatch.setattr(Trainer, "__init__", spied)
    data = lines(tmp_path / "d.jsonl", rows)
    output = ("--output", tmp_path / "run", "--epochs", "1")
    command("train", "--task", task, "--model", tiny_bert_folder, "--train", data, *output)
    assert set(types) == {mx.float32}


def test_embedding_from_pairs_and_from_scores(command, tmp_path):
    rows = [{"anchor": f"the {thing}", "positive": f"a {thing}"} for thing in THINGS]
    pairs, output = lines(tmp_path / "p.jsonl", rows), tmp_path / "run"
    printed = command(
        "train", "--task", "embedding", "--train", pairs, "--eval", pairs, "--output", output, "--epochs", "2",
        "--loss-option", "scale=10", "--matryoshka", "32,16", "--chunk-size", "4", "--batch-sampler", "no_duplicates",
    )  # fmt: skip
    assert "loss        multiple_negatives" in printed
    assert read_json(output / "train_config.json")["loss"] == "multiple_negatives"
    assert report(command, output, pairs)["metrics"]["cosine_accuracy@1"] == 1.0
    assert SentenceEncoder.from_pretrained(output / "best_model").encode(["the dog"]).shape == (1, 32)
    assert "is an embedding model. Use: mlx-bert embed" in command("predict", "--model", output, "a", code=2)
    scored = [{"text_a": f"the {a}", "text_b": f"a {b}", "score": 5.0 * (a == b)}
              for a in THINGS[:4] for b in THINGS[:4]]  # fmt: skip
    data, output = lines(tmp_path / "s.jsonl", scored), tmp_path / "scored"
    options = ("--train", data, "--eval", data, "--largest-score", "5", "--epochs", "2")
    assert "loss        cosent" in command("train", "--task", "embedding", *options, "--output", output)
    assert report(command, output, data, "--largest-score", "5")["metrics"]["spearman_cosine"] > 0.5
    options = ("--task", "embedding", "--train", pairs, "--output", tmp_path / "x")
    assert "expected --loss to be one of multiple_negatives" in command("train", *options, "--loss", "bce", code=2)
    assert "does not have all of the options size" in command("train", *options, "--loss-option", "size=1", code=2)


def test_embedding_from_classes_and_a_teacher(command, tmp_path):
    data = lines(tmp_path / "c.jsonl", [{"text": row["text"], "label": row["mood"]} for row in labelled(24)])
    options = ("--task", "embedding", "--epochs", "1")
    command("train", *options, "--loss", "batch_hard_triplet", "--train", data, "--output", tmp_path / "one")
    rows = [{"query": "the dog", "positive": "a dog", "negative": f"a {x}", "scores": [3.0, -1.0]} for x in THINGS[1:]]
    data = lines(tmp_path / "t.jsonl", rows)
    command("train", *options, "--loss", "margin_mse", "--train", data, "--output", tmp_path / "two")
    data = lines(tmp_path / "n.jsonl", [{key: row[key] for key in ("query", "positive", "negative")} for row in rows])
    assert 0 <= report(command, tmp_path / "two", data)["metrics"]["cosine_accuracy"] <= 1


def test_cross_encoders(command, tmp_path):
    rows = [{"text_a": f"the {a}", "text_b": f"a {b}", "label": int(a == b)} for a in THINGS[:3] for b in THINGS[:3]]
    data, output = lines(tmp_path / "p.jsonl", rows), tmp_path / "pairs"
    options = ("--task", "cross_encoder", "--epochs", "1")
    command("train", *options, "--train", data, "--eval", data, "--output", output)
    assert "average_precision" in report(command, output, data)["metrics"]
    found = predictions(command, output, "--input", data)
    assert len(found) == 9
    assert all(0 < row["score"] < 1 for row in found)
    named = [{**row, "label": ("no", "yes")[row["label"]]} for row in rows]
    data, output = lines(tmp_path / "n.jsonl", named), tmp_path / "named"
    command("train", *options, "--train", data, "--eval", data, "--output", output)
    found = report(command, output, data)
    assert {name: row["support"] for name, row in found["classes"].items()} == {"no": 6, "yes": 3}
    assert set(predictions(command, output, "--input", data, "--top-k", "2")[0]["scores"]) == {"no", "yes"}
    three = THINGS[:3]
    groups = [
        {"query": f"the {a}", "documents": [f"a {b}" for b in three], "labels": [int(a == b) for b in three]}
        for a in three
    ]
    data, output = lines(tmp_path / "g.jsonl", groups), tmp_path / "groups"
    command("train", *options, "--loss", "lambda", "--train", data, "--eval", data, "--output", output)
    assert "ndcg@10" in report(command, output, data)["metrics"]


def test_masked_language_model(command, tmp_path):
    texts = tmp_path / "t.txt"
    texts.write_text("\n".join(row["text"] for row in labelled()))
    output = tmp_path / "run"
    options = ("--task", "masked_lm", "--train", texts, "--output", output, "--epochs", "2")
    assert "texts       43, packed into full rows" in command("train", *options, "--packed")
    assert report(command, output, texts)["metrics"]["perplexity"] > 1
    (row,) = predictions(command, output, "the [MASK] dog", "--top-k", "3")
    assert len(row["candidates"][0]) == 3
    assert row["label"] == next(iter(row["candidates"][0]))


def test_few_shot(command, tmp_path):
    data = lines(tmp_path / "d.jsonl", [{"text": row["text"], "label": row["mood"]} for row in labelled(24)])
    output = tmp_path / "run"
    printed = command(
        "train", "--task", "few_shot", "--train", data, "--eval", data, "--max-pairs", "40", "--output", output
    )
    assert "confusion matrix" in printed
    assert read_json(output / "train_config.json")["epochs"] == 1  # few-shot's own default
    assert report(command, output, data)["metrics"]["accuracy"] > 0.8
    assert predictions(command, output, "the good dog", "--top-k", "3")[0]["label"] == "pos"


def test_options_that_have_no_meaning_are_refused(command, tmp_path):
    data = lines(tmp_path / "d.jsonl", [{"text": r["text"], "label": r["mood"], "n": 1} for r in labelled(12)])
    base = ("--train", data, "--output", tmp_path / "run")
    for options, message in (
        (("--tasks", "a"), "expected no --tasks with --task None"),
        (("--task", "masked_lm", "--pooling", "cls"), "expected no --pooling with --task masked_lm"),
        (("--mask-probability", "0.3"), "expected no --mask-probability"),
        (("--task", "few_shot", "--eval-size", "0.3"), "expected no --eval-size with --task few_shot"),
        (("--crf",), "expected token_classification with --crf"),
        (("--column", "weight=label"), "expected --sampling weighted"),
        (("--task", "multi_task", "--tasks", "label", "--sampling", "class_balanced"), "expected sampling 'shuffle'"),
        (("--task", "masked_lm", "--sampling", "class_balanced"), "expected sampling 'shuffle'"),
        (("--head-option", "colour=1"), "colour"),
        (
            ("--task", "regression", "--labels", "a", "--label-column", "n"),
            "expected no --labels for examples of the kind number",
        ),
    ):
        assert message in command("train", *base, *options, code=2)


def test_config_files_are_checked(command, tmp_path, capsys):
    config = tmp_path / "run.json"
    for text, message in (
        ('{"eval-size": "much"}', "eval-size = 'much' is not what --eval-size takes"),
        ('{"crf": 1}', "crf = 1 is not what --crf takes"),
        ('{"tasks": "mood"}', "is not what --tasks takes"),
        ("[1]", "expected options by name"),
        ("{", "cannot be read"),
    ):
        config.write_text(text)
        with pytest.raises(SystemExit) as stopped:
            main(["train", "--config", str(config)])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_the_command_line_wins_over_a_file_also_with_a_default(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('eval-size = 0.3\nlabel-separator = ";"\nwhole-words = false\nepochs = 7\ntasks = {a = "x"}\n')
    file = ["--config", str(config)]
    given = ["--eval-size", "0.1", "--label-separator", "|", "--whole-words", "--epochs", "5", "--tasks", "a=y", "b"]
    for argv in ([*given, *file], [*file, *given], [*given[:4], f"--config={config}", *given[4:]]):
        args = parse(["train", *argv])
        assert (args.eval_size, args.label_separator, args.whole_words, args.epochs) == (0.1, "|", True, 5)
        assert args.tasks == {"a": "y", "b": "b"}
    args = parse(["train", *file])
    assert (args.eval_size, args.label_separator, args.whole_words, args.epochs) == (0.3, ";", False, 7)
    (tmp_path / "more.json").write_text('{"epochs": 2, "tasks": {"c": "z"}}')
    args = parse(["train", *file, "--config", str(tmp_path / "more.json")])
    assert (args.epochs, args.eval_size, args.tasks) == (2, 0.3, {"a": "x", "c": "z"})
