"""MultiheadClassifier: one encoder, several classification heads."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_bert.checkpoint import read_weights
from mlx_bert.multihead import (
    EncoderConfig,
    EvalConfig,
    HeadConfig,
    LossConfig,
    MultiheadClassifier,
    MultiheadConfig,
    TrainingConfig,
)
from mlx_bert.training.callbacks import Callback

MINIMAL = {
    "sentiment": [{"text": "I love this!", "label": "positive"}, {"text": "This is awful", "label": "negative"}],
    "intent": [{"text": "I want to buy", "label": "purchase"}, {"text": "How did this work?", "label": "question"}],
}
PROBES = ["good and nice", "bad, awful", "so red", "the blue sun and the very small tree"]


def many(good: list[str], bad: list[str], count: int, labels: tuple = ("good", "bad")) -> list[dict]:
    things = ["movie", "book", "dog", "house", "day", "river"]
    return [
        {"text": f"the {things[n % 6]} is {(good, bad)[n % 2][n % 3]} today", "label": labels[n % 2]}
        for n in range(count)
    ]


DATA = {
    "sentiment": many(["good", "great", "nice"], ["bad", "awful", "sad"], 48),
    "colour": many(["red", "red", "red"], ["blue", "blue", "blue"], 24, (1, 0)),
}


def settings(folder, out, **groups) -> dict:
    training = {"model_name": str(folder), "output_dir": str(out), "learning_rate": 5e-3, "epochs": 2, "batch_size": 8}
    training |= groups.pop("training", {})
    return {"training": training, "encoder": {"freeze_epochs": 3, "unfreeze_layers": 1}, **groups}


@pytest.fixture(scope="module")
def trained(tiny_bert_folder, tmp_path_factory) -> MultiheadClassifier:
    classifier = MultiheadClassifier(
        settings(tiny_bert_folder, tmp_path_factory.mktemp("runs"), training={"epochs": 6}, eval={"patience": 0})
    )
    classifier.train(DATA, progress=False)
    return classifier


def test_the_smallest_example_trains_and_predicts(tiny_bert_folder, tmp_path):
    classifier = MultiheadClassifier(settings(tiny_bert_folder, tmp_path, training={"epochs": 1}))
    classifier.train(MINIMAL, progress=False)
    (result,) = classifier.predict(["Great day!"], task="sentiment")
    assert result["label"] in ("positive", "negative")
    assert 0.5 <= result["confidence"] <= 1
    assert classifier.tasks == ["sentiment", "intent"]
    assert classifier.get_labels("intent") == ["purchase", "question"]


def test_it_learns(trained):
    assert [p["label"] for p in trained.predict(["the cat is great today", "the cat is awful today"], "sentiment")] == [
        "good",
        "bad",
    ]
    colours = ["the cat is red today", "the tree is blue today"]
    assert [p["label"] for p in trained.predict(colours, "colour")] == ["1", "0"]
    assert trained.get_labels("colour") == ["0", "1"]


def test_all_tasks_take_one_pass_of_the_encoder(trained, monkeypatch):
    separate = {task: trained.predict(PROBES, task, return_all_scores=True) for task in trained.tasks}
    calls = []
    call = type(trained.model.bert).__call__
    monkeypatch.setattr(type(trained.model.bert), "__call__", lambda *a, **k: calls.append(1) or call(*a, **k))
    together = trained.predict_all_tasks(PROBES, return_all_scores=True)
    assert len(calls) == 1
    for task in trained.tasks:
        for one, other in zip(separate[task], together[task], strict=True):
            assert one["label"] == other["label"]
            assert one["scores"] == pytest.approx(other["scores"], abs=1e-6)
            assert sum(one["scores"].values()) == pytest.approx(1, abs=1e-5)
            assert one["confidence"] == max(one["scores"].values())


def test_order_and_edges_of_prediction(trained):
    texts = [PROBES[n % 4] * (n + 1) for n in range(40)]
    alone = [trained.predict([text], "sentiment")[0] for text in texts]
    for one, other in zip(trained.predict(texts, "sentiment"), alone, strict=True):
        assert one["label"] == other["label"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-5)
    assert trained.predict([], "sentiment") == []
    assert len(trained.predict("one text", "sentiment")) == 1
    with pytest.raises(ValueError, match="expected texts but number 1 is None"):
        trained.predict(["a", None], "sentiment")
    with pytest.raises(ValueError, match="expected task to be one of sentiment, colour but got 'x'"):
        trained.predict(["a"], "x")


def test_encoder_and_heads_are_all_there_is(trained):
    count = sum(array.size for _, array in tree_flatten(trained.model.parameters()))
    encoder = sum(array.size for _, array in tree_flatten(trained.model.bert.parameters()))
    head = 32 * 32 + 32 + 32 * 2 + 2
    assert count == encoder + 2 * head


def test_save_and_load(trained, tmp_path):
    trained.save(tmp_path / "model")
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {"encoder", "task_heads.safetensors", "multihead_config.json"}
    again = MultiheadClassifier.from_pretrained(tmp_path / "model")
    assert MultiheadClassifier().load(tmp_path / "model").tasks == again.tasks
    assert again.predict_all_tasks(PROBES) == trained.predict_all_tasks(PROBES)
    assert again.config.to_dict() == trained.config.to_dict()
    assert again.tasks == trained.tasks
    trained.save(tmp_path / "model")  # replaces a model
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is no multihead model"):
        trained.save(tmp_path / "other")
    with pytest.raises(RuntimeError, match="which a loaded model lacks"):
        again.analyze()
    saved = json.loads((tmp_path / "model" / "multihead_config.json").read_text())
    (tmp_path / "model" / "multihead_config.json").write_text(json.dumps({"config": saved["config"]}))
    with pytest.raises(ValueError, match="lacks class_weights, head, labels"):
        MultiheadClassifier().load(tmp_path / "model")


def test_analysis(trained, capsys):
    for split in ("train", "validation", "test"):
        found = trained.analyze(split)
        assert found.keys() == {"sentiment", "colour"}
    found = trained.analyze("train")["sentiment"]
    matrix = np.array(found["confusion_matrix"])
    rows = [example for example in trained._splits["train"] if example["task"] == "sentiment"]
    assert matrix.sum() == len(rows)
    assert found["accuracy"] == round(np.trace(matrix) / matrix.sum(), 4)
    assert found["f1"] == pytest.approx(np.mean([row["f1"] for row in found["class_metrics"].values()]), abs=1e-4)
    assert found["class_metrics"]["bad"]["support"] == matrix[0].sum()
    assert len(found["errors"]) == matrix.sum() - np.trace(matrix)
    trained.display({"sentiment": found})
    printed = capsys.readouterr().out
    assert f"sentiment: accuracy {found['accuracy']:.4f}" in printed
    assert "precision" in printed
    with pytest.raises(ValueError, match="expected split to be one of train, validation, test"):
        trained.analyze("all")


def test_adding_a_task_leaves_the_others_as_they_are(trained, tmp_path):
    trained.save(tmp_path / "model")
    classifier = MultiheadClassifier().load(tmp_path / "model")
    classifier.config.training.output_dir = str(tmp_path)
    classifier.config.training.epochs = 12
    before = classifier.predict_all_tasks(PROBES)
    classifier.add_task("size", many(["small"] * 3, ["large"] * 3, 20, ("small", "large")), progress=False)
    after = classifier.predict_all_tasks(PROBES)
    assert {task: after[task] for task in before} == before
    sizes = ["the movie is small today", "the book is large today"]
    assert [p["label"] for p in classifier.predict(sizes, "size")] == ["small", "large"]
    classifier.save(tmp_path / "again")
    assert MultiheadClassifier().load(tmp_path / "again").predict_all_tasks(PROBES) == after
    with pytest.raises(ValueError, match="'size' is there already"):
        classifier.add_task("size", [])


def test_only_the_top_layers_train(tiny_bert_folder, tmp_path):
    start = read_weights(tiny_bert_folder)
    for top in (0, 1, 2, None):
        config = settings(tiny_bert_folder, tmp_path, training={"epochs": 1})
        config["encoder"] = {"freeze_epochs": 0, "unfreeze_layers": top}
        classifier = MultiheadClassifier(config)
        classifier.train(DATA, progress=False)
        end = classifier.model.bert.weights_on_disk()
        layers = {name.split(".")[2] for name in end if "layer." in name and not mx.array_equal(end[name], start[name])}
        embeddings = any("embeddings" in name and not mx.array_equal(end[name], start[name]) for name in end)
        wanted = {0: (set(), False), 1: ({"1"}, False), 2: ({"0", "1"}, False), None: ({"0", "1"}, True)}
        assert (layers, embeddings) == wanted[top]


def test_learning_rates_of_the_phases(tiny_bert_folder, tmp_path):
    config = settings(tiny_bert_folder, tmp_path, eval={"patience": 0})
    config["training"] |= {"learning_rate": 1e-3, "warmup_ratio": 0.0}
    classifier = MultiheadClassifier(config)
    result = classifier.train(DATA, progress=False)
    args = json.loads((result.output_dir / "training_args.json").read_text())
    assert args["freeze_learning_rate"] == pytest.approx(1e-2)
    assert args["head_learning_rate"] == pytest.approx(1e-3)
    assert args["learning_rate"] == pytest.approx(1e-4)
    assert [record["phase"] for record in result.history["epochs"]] == ["head"] * 3 + ["main"] * 2
    assert {"eval_sentiment_accuracy", "eval_colour_f1", "eval_accuracy"} <= result.history["epochs"][-1].keys()


CONFIGS = {  # the use cases and starting points of the guide to multi-head classification
    "memory": MultiheadConfig(training=TrainingConfig(batch_size=4, gradient_accumulation_steps=4)),
    "imbalance": MultiheadConfig(loss=LossConfig(use_class_weights=True, use_focal_loss=True, focal_gamma=2.0)),
    "main task": MultiheadConfig(loss=LossConfig(task_weights={"sentiment": 2.0, "colour": 0.5})),
    "equal": MultiheadConfig(task_sampling="equal"),
    "sqrt": MultiheadConfig(task_sampling="sqrt"),
    "proportional": MultiheadConfig(task_sampling="proportional"),
    "dynamic": MultiheadConfig(task_sampling="dynamic"),
    "overfitting": MultiheadConfig(
        head=HeadConfig(dropout=0.3),
        training=TrainingConfig(weight_decay=0.05),
        eval=EvalConfig(patience=2, min_delta=0.005),
    ),
    "complex": MultiheadConfig(head=HeadConfig(hidden_layers=2, hidden_multiplier=1.5, activation="silu")),
    "accuracy": MultiheadConfig(
        encoder=EncoderConfig(freeze_epochs=5, unfreeze_layers=6, lr_multiplier=0.05),
        training=TrainingConfig(epochs=20, learning_rate=1e-5),
    ),
    "cls": MultiheadConfig(pooling="cls"),
    "max": MultiheadConfig(pooling="max"),
    "production": MultiheadConfig(
        training=TrainingConfig(epochs=10, batch_size=16),
        loss=LossConfig(use_class_weights=True),
        eval=EvalConfig(patience=3),
    ),
    "experiments": MultiheadConfig(
        head=HeadConfig(hidden_layers=2, dropout=0.3),
        encoder=EncoderConfig(unfreeze_layers=6, lr_multiplier=0.05),
        loss=LossConfig(use_focal_loss=True, use_class_weights=True),
        pooling="mean",
        task_sampling="sqrt",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_use_case_trains(name, tiny_bert_folder, tmp_path):
    config = CONFIGS[name].to_dict()
    assert MultiheadConfig.from_dict(config) == CONFIGS[name]
    config["training"] |= {"model_name": str(tiny_bert_folder), "output_dir": str(tmp_path), "epochs": 1}
    config["encoder"]["freeze_epochs"] = min(1, config["encoder"]["freeze_epochs"])
    classifier = MultiheadClassifier(config)
    result = classifier.train(DATA, progress=False)
    assert np.isfinite(result.metrics["loss"])
    head = classifier.model.head.task_heads["sentiment"]
    width = int(32 * CONFIGS[name].head.hidden_multiplier)
    assert head.config.hidden_sizes == [width] * CONFIGS[name].head.hidden_layers
    assert head.config.pooling_type == CONFIGS[name].pooling
    assert head.loss == ("focal" if CONFIGS[name].loss.use_focal_loss else "cross_entropy")


def test_groups_may_be_mappings():
    config = MultiheadConfig(head={"dropout": 0.5}, eval=EvalConfig(patience=7))
    assert config.head == HeadConfig(dropout=0.5)
    assert config == MultiheadConfig.from_dict({"head": {"dropout": 0.5}, "eval": {"patience": 7}})


def test_load_is_for_a_classifier_that_is_there():
    with pytest.raises(TypeError, match=r"Use MultiheadClassifier\.from_pretrained\('model'\)"):
        MultiheadClassifier.load("model")


def test_settings_are_json_values():
    given = MultiheadConfig(
        training=TrainingConfig(model_name=Path("a/b"), output_dir=Path("runs"), epochs=np.int64(3)),
        head={"dropout": np.float32(0.5)},
        loss=LossConfig(use_focal_loss=np.bool_(True), task_weights={"a": np.float64(2)}),
    )
    plain = MultiheadConfig(
        training=TrainingConfig(model_name="a/b", output_dir="runs", epochs=3),
        head={"dropout": 0.5},
        loss=LossConfig(use_focal_loss=True, task_weights={"a": 2.0}),
    )
    saved = json.loads(json.dumps(given.to_dict()))
    assert saved == given.to_dict() == plain.to_dict()
    assert MultiheadConfig.from_dict(saved) == plain
    assert MultiheadClassifier(given).config == MultiheadClassifier(vars(given)).config == plain
    with pytest.raises(ValueError, match="expected text, numbers and paths as settings but got <object"):
        MultiheadConfig(training={"seed": object()}).to_dict()


def test_configs_are_copied():
    config = MultiheadConfig()
    classifier = MultiheadClassifier(config)
    classifier.config.training.epochs = 99
    assert config.training.epochs == 10
    assert MultiheadClassifier().config.training.epochs == 10


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"trainings": {}}, "unknown settings trainings"),
        ({"training": {"epoch": 3}}, r"unknown settings training\.epoch"),
        ({"pooling": "sum"}, "expected pooling to be one of mean, cls, max but got 'sum'"),
        ({"task_sampling": "some"}, "expected task_sampling to be one of"),
        ({"eval": {"metric": "auc"}}, r"expected eval\.metric to be one of accuracy, f1, loss"),
        ({"head": {"activation": "gulu"}}, r"expected head\.activation to be one of"),
        ({"head": {"hidden_layers": -1}}, r"head\.hidden_layers of 0 or more"),
        ({"encoder": {"unfreeze_layers": -1}}, r"encoder\.unfreeze_layers of 0 or more, .* but got 3 and -1"),
        ({"encoder": {"freeze_epochs": -1}}, r"encoder\.freeze_epochs of 0 or more .* but got -1 and 4"),
        ({"training": {"optimizer": "sgd"}}, r"expected training\.optimizer to be one of adamw, adam"),
        ({"training": {"dtype": "float16"}}, r"expected training\.dtype to be one of float32, bfloat16"),
        ({"loss": {"task_weights": {"a": -1.0}}}, r"no negative loss\.task_weights"),
        ({"training": {"task_weight_decay": {"a": -1.0}}}, r"no negative training\.task_weight_decay"),
    ],
)
def test_wrong_settings(config, message):
    with pytest.raises(ValueError, match=message):
        MultiheadClassifier(config)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "No training data provided"),
        ({"a": []}, "the data of the task 'a' cannot be used: .*has no rows"),
        ({"a": [{"text": "x"}]}, "has no column 'label'"),
        ({"a": [{"text": "", "label": 1}, {"text": "b", "label": 2}]}, "empty text in column 'text'"),
        ({"a": ["x"]}, "the data of the task 'a' cannot be used"),
        (None, "No training data provided"),
        (MINIMAL["intent"], r"expected \{task: .* but got a list. Name the task of the rows; a folder of"),
        ("folder", "but got a str. Name the task of the rows; a folder of"),
        ({"a": [{"text": "x", "label": 1}, {"text": "y", "label": 1}]}, "'a' has a single label"),
    ],
)
def test_wrong_data(data, message):
    with pytest.raises(ValueError, match=message):
        MultiheadClassifier().train(data)


def test_data_frames_and_data_sets_with_names(tiny_bert_folder, tmp_path):
    from datasets import Dataset
    from pandas import DataFrame

    training = {"model_name": tiny_bert_folder, "output_dir": tmp_path, "epochs": 1}
    classifier = MultiheadClassifier({"training": training, "encoder": {"freeze_epochs": 0}})
    rows = Dataset.from_list(DATA["sentiment"]).class_encode_column("label")  # ids that have names
    classifier.train({"sentiment": rows, "colour": DataFrame(DATA["colour"])}, progress=False)
    assert classifier.get_labels("sentiment") == ["bad", "good"]
    assert classifier.get_labels("colour") == ["0", "1"]


def test_drawing_hard_tasks_needs_validation(tiny_bert_folder, tmp_path):
    training = {"model_name": str(tiny_bert_folder), "output_dir": str(tmp_path), "val_size": 0.0}
    with pytest.raises(ValueError, match="expected validation data with task_sampling 'dynamic'"):
        MultiheadClassifier({"training": training, "task_sampling": "dynamic"}).train(DATA, progress=False)
    one = MultiheadClassifier({"training": {**training, "epochs": 1}, "task_sampling": "dynamic"})
    one.train({"colour": DATA["colour"]}, progress=False)  # there is nothing to choose from
    assert one.is_trained


@pytest.mark.parametrize(("group", "name"), [("loss", "task_weights"), ("training", "task_weight_decay")])
def test_weights_of_an_unknown_task(group, name):
    with pytest.raises(ValueError, match=rf"{group}\.{name} names \['x'\]"):
        MultiheadClassifier({group: {name: {"x": 2.0}}}).train(MINIMAL)


def test_nothing_works_untrained(tmp_path):
    classifier = MultiheadClassifier()
    with pytest.raises(RuntimeError, match="predict needs a trained model"):
        classifier.predict(["a"], "b")
    with pytest.raises(RuntimeError, match="save needs a trained model"):
        classifier.save(tmp_path)
    with pytest.raises(RuntimeError, match="add_task needs a trained model"):
        classifier.add_task("a", [])


def test_the_report_at_the_end(trained, capsys):
    trained._report()
    table, classes = capsys.readouterr().out.split("test data, class by class:")
    (title, *rows) = table.split("\n")[1:-2]
    assert title.split() == ["task", "validation", "accuracy", "macro", "f1", "test", "accuracy", "macro", "f1"]
    parts = [trained.analyze("validation"), trained.analyze("test")]
    for row in rows:
        task, *figures = row.split()
        assert figures == [f"{part[task][name]:.4f}" for part in parts for name in ("accuracy", "f1")]
    assert {row.split()[0] for row in rows} == {"sentiment", "colour"}
    trained.display(parts[1], max_errors=0)
    assert classes == capsys.readouterr().out


def test_validation_and_analysis_of_data_of_ones_own(tiny_bert_folder, tmp_path, capsys):
    classifier = MultiheadClassifier(settings(tiny_bert_folder, tmp_path, training={"epochs": 1, "test_size": 0.0}))
    held_out = {"sentiment": [{"text": "so good", "label": "good"}, {"text": "so bad", "label": "bad"}]}
    seen = []

    class Seen(Callback):
        def on_evaluate(self, trainer, record):
            seen.append(record)

    classifier.train(DATA, validation=held_out, callbacks=[Seen()])
    printed = capsys.readouterr().out  # without test data, and with one of the tasks
    assert "test accuracy" not in printed
    assert "validation data, class by class" in printed
    assert "colour" not in printed
    assert [record["phase"] for record in seen] == ["head", "head", "head", "main"]
    assert seen[0]["eval_sentiment_loss"] == pytest.approx(seen[0]["eval_loss"], rel=1e-5)  # the only task there
    assert [example["text"] for example in classifier._splits["validation"]] == ["so good", "so bad"]
    assert len(classifier._splits["train"]) == sum(map(len, DATA.values()))
    assert classifier.analyze("validation", ["sentiment"]) == classifier.analyze(data=held_out)
    with pytest.raises(ValueError, match="'fair'"):
        classifier.train(
            DATA, validation={"sentiment": [{"text": "a", "label": "good"}, {"text": "b", "label": "fair"}]}
        )
    with pytest.raises(ValueError, match="expected task to be one of sentiment, colour but got 'taste'"):
        classifier.train(DATA, validation={"taste": MINIMAL["sentiment"]})
