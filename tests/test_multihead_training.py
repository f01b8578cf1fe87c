"""MultiheadClassifier: runs that are interrupted and resumed, types of the computation, data in files, failures."""

import csv
import json
import os
import signal

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_bert.multihead import MultiheadClassifier, MultiheadConfig
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.outcome import TrainingInterrupted

DATA = {
    "sentiment": [
        {"text": f"the {thing} is {word} today", "label": ("bad", "good")[word in ("good", "great")]}
        for thing in ("movie", "book", "dog")
        for word in ("good", "bad", "great", "sad")
    ],
    "colour": [
        {"text": f"a {colour} {thing}", "label": colour}
        for thing in ("house", "river", "tree", "sun")
        for colour in ("red", "blue")
    ],
}
PROBES = ["the house is great", "a blue movie", "sad"]


def classifier_of(folder, out, **training) -> MultiheadClassifier:
    """Two epochs of the heads, three with a layer; 3 batches each; dropout."""
    training = {"model_name": str(folder), "output_dir": str(out), "learning_rate": 5e-3, "epochs": 3, **training}
    config = {"training": {"batch_size": 8, **training}, "encoder": {"freeze_epochs": 2, "unfreeze_layers": 1}}
    return MultiheadClassifier({**config, "eval": {"patience": 0, "metric": "loss"}})


class StopAt(Callback):
    """Ctrl-C after some updates."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer) -> None:
        if trainer.state.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


class CrashAt(StopAt):
    """An error after some updates."""

    def on_step(self, trainer) -> None:
        if trainer.state.step == self.step:
            raise RuntimeError("crash")


def assert_same(one: MultiheadClassifier, other: MultiheadClassifier) -> None:
    wanted, found = (dict(tree_flatten(classifier.model.parameters())) for classifier in (one, other))
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not mx.array_equal(wanted[name], found[name])] == []
    assert one.predict_all_tasks(PROBES) == other.predict_all_tasks(PROBES)


@pytest.fixture(scope="module")
def whole(tiny_bert_folder, tmp_path_factory) -> MultiheadClassifier:
    """Trained in one go. Read only."""
    classifier = classifier_of(tiny_bert_folder, tmp_path_factory.mktemp("whole"))
    classifier.history = classifier.train(DATA, progress=False).history
    return classifier


def losses(history: dict) -> list[float]:
    return [record["eval_loss"] for record in history["epochs"]]


@pytest.mark.parametrize(
    ("callback", "raised", "checkpoint"),
    [
        (StopAt(4), TrainingInterrupted, "4"),  # while the heads train alone
        (StopAt(11), TrainingInterrupted, "11"),  # within an epoch of the main phase
        (CrashAt(11), RuntimeError, "epoch_3"),  # back to the last epoch's end
        (CrashAt(2), RuntimeError, None),  # before the first checkpoint
    ],
    ids=["heads", "main", "crash", "early"],
)
def test_a_resumed_run_equals_the_uninterrupted_one(callback, raised, checkpoint, whole, tiny_bert_folder, tmp_path):
    first = classifier_of(tiny_bert_folder, tmp_path)
    with pytest.raises(raised):
        first.train(DATA, progress=False, callbacks=[callback])
    assert not first.is_trained
    names = [path.name for path in tmp_path.glob("run-1/checkpoint_*")]
    assert names == ([f"checkpoint_{checkpoint}"] if checkpoint else [])
    classifier_of(tiny_bert_folder, tmp_path, seed=1).train({"colour": DATA["colour"]}, progress=False)  # other data
    again = classifier_of(tiny_bert_folder, tmp_path)
    result = again.train(DATA, progress=False, resume=True)
    assert result.output_dir == tmp_path / "run-1"
    assert losses(result.history) == losses(whole.history)
    assert_same(whole, again)
    assert_same(whole, MultiheadClassifier().load(result.output_dir / "best_model"))
    with pytest.raises(FileExistsError, match=r"the run in .*run-1 is complete\. Load its best_model"):
        again.train(DATA, progress=False, resume=True)


def test_resuming_begins_anew_where_there_is_nothing_to_resume(whole, tiny_bert_folder, tmp_path):
    (tmp_path / "run-x").mkdir()
    (tmp_path / "run-7").mkdir()
    classifier = classifier_of(tiny_bert_folder, tmp_path)
    result = classifier.train(DATA, progress=False, resume=True)
    assert result.output_dir == tmp_path / "run-8"
    assert_same(whole, classifier)
    held_out = {"colour": DATA["colour"][:2]}
    other = classifier_of(tiny_bert_folder, tmp_path).train(DATA, progress=False, validation=held_out, resume=True)
    assert other.output_dir == tmp_path / "run-9"  # other validation data are other data


def test_a_run_without_validation_data_is_complete_with_its_final_model(tiny_bert_folder, tmp_path):
    classifier = classifier_of(tiny_bert_folder, tmp_path, val_size=0.0, epochs=1, save_every="no")
    result = classifier.train(DATA, progress=False)
    assert not list(result.output_dir.glob("checkpoint_*"))
    assert_same(classifier, MultiheadClassifier().load(result.output_dir / "final_model"))
    with pytest.raises(FileExistsError, match="is complete"):
        classifier.train(DATA, progress=False, resume=True)


def test_a_run_of_other_settings_is_not_resumed(tiny_bert_folder, tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        classifier_of(tiny_bert_folder, tmp_path).train(DATA, progress=False, callbacks=[CrashAt(4)])
    other = classifier_of(tiny_bert_folder, tmp_path, learning_rate=1e-3, val_size=0.2)
    message = r"run-1 was begun with other settings: training.learning_rate was 0.005 and is 0.001; training.val_size"
    with pytest.raises(ValueError, match=message):
        other.train(DATA, progress=False, resume=True)
    free = classifier_of(tiny_bert_folder, tmp_path, save_every=2, save_path="elsewhere")
    assert free.train(DATA, progress=False, resume=True).output_dir == tmp_path / "run-1"


def test_bfloat16(whole, tiny_bert_folder, tmp_path):
    classifier = classifier_of(tiny_bert_folder, tmp_path, dtype="bfloat16")
    result = classifier.train(DATA, progress=False)
    assert {array.dtype for _, array in tree_flatten(classifier.model.parameters())} == {mx.float32}
    assert losses(result.history) != losses(whole.history)
    assert losses(result.history)[-1] == pytest.approx(losses(whole.history)[-1], abs=0.1)
    assert result.metrics["loss"] < losses(result.history)[0]


def test_settings_of_an_earlier_release_still_load():
    values = MultiheadConfig().to_dict()
    for name in ("dtype", "save_every"):
        del values["training"][name]
    config = MultiheadConfig.from_dict(values)
    assert (config.training.dtype, config.training.save_every) == ("float32", "epoch")
    assert MultiheadConfig.from_dict(config.to_dict()) == config


# --- data in files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A data set with a JSON file and a CSV file."""
    path = tmp_path / "data"
    path.mkdir()
    (path / "sentiment.json").write_text(json.dumps(DATA["sentiment"]))
    with (path / "colour.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(DATA["colour"])
    (path / "README.md").write_text("about")
    return path


def test_data_in_a_folder(folder, tiny_bert_folder, tmp_path):
    ordered = {task: DATA[task] for task in sorted(DATA)}
    by_rows, by_folder = (classifier_of(tiny_bert_folder, tmp_path, epochs=1) for _ in range(2))
    by_rows.train(ordered, progress=False)
    by_folder.train(data_save_dir=folder, progress=False)
    assert by_folder.tasks == ["colour", "sentiment"]
    assert_same(by_rows, by_folder)
    found = by_folder.analyze(data={"colour": folder / "colour.csv"})
    assert found == by_folder.analyze(data={"colour": DATA["colour"]})
    lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in (("a", 1), ("b", 2)))
    (tmp_path / "size.jsonl").write_text(lines)
    by_folder.add_task("size", tmp_path / "size.jsonl", progress=False)
    assert by_folder.get_labels("size") == ["1", "2"]


def test_folders_that_cannot_be_used(folder, tmp_path):
    classifier = MultiheadClassifier()
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        classifier.train(data_save_dir=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected either data or data_save_dir but got both"):
        classifier.train(DATA, data_save_dir=folder)
    (folder / "colour.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"colour\.csv and .*colour\.jsonl are of one task"):
        classifier.train(data_save_dir=folder)
    (folder / "colour.csv").unlink()
    with pytest.raises(ValueError, match=r"the data of the task 'colour' cannot be used: .*colour\.jsonl"):
        classifier.train(data_save_dir=folder)
    with pytest.raises(FileNotFoundError, match=r"gone\.csv does not exist"):
        classifier.train({"colour": tmp_path / "gone.csv"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no file \{task\}\.csv"):
        classifier.train(data_save_dir=tmp_path / "empty")
    with pytest.raises(ValueError, match="No training data provided"):
        classifier.train()


# --- failures ---------------------------------------------------------------------------------------------------------


def test_what_fails_leaves_the_classifier_as_it_was(whole, tiny_bert_folder, tmp_path, monkeypatch):
    whole.save(tmp_path / "model")
    classifier = MultiheadClassifier().load(tmp_path / "model")
    classifier.config.training.output_dir = str(tmp_path / "runs")
    held_out = [{"text": "a", "label": "green"}, {"text": "b", "label": "red"}]
    with pytest.raises(ValueError, match="colour: unknown label 'green'; known: blue, red"):
        classifier.train({"colour": DATA["colour"]}, validation={"colour": held_out})
    assert_same(whole, classifier)

    classifier.config.training.epochs = 0
    with pytest.raises(ValueError, match="expected epochs to be 1 or more but got 0"):
        classifier.train(DATA)
    classifier.config.training.epochs = 3
    assert_same(whole, classifier)

    def crash(*_: object) -> None:
        raise RuntimeError("crash")

    with monkeypatch.context() as patch:
        patch.setattr("mlx_bert.multihead.train_heads", crash)
        with pytest.raises(RuntimeError, match="crash"):
            classifier.add_task("size", [{"text": "a", "label": 1}, {"text": "b", "label": 2}])
    assert classifier.tasks == ["sentiment", "colour"]
    assert_same(whole, classifier)
    classifier.save(tmp_path / "model")
    assert_same(whole, MultiheadClassifier().load(tmp_path / "model"))


# --- settings ---------------------------------------------------------------------------------------------------------


def test_every_setting_reaches_the_run(tiny_bert_folder, tmp_path):
    training = {
        "max_length": 7, "batch_size": 3, "epochs": 2, "learning_rate": 1e-3, "weight_decay": 0.07, "warmup_ratio": 0.2,
        "gradient_accumulation_steps": 2, "max_grad_norm": 0.4, "test_size": 0.1, "val_size": 0.3, "seed": 9,
        "dtype": "bfloat16", "save_every": 50, "optimizer": "lion",
        "task_weight_decay": {"colour": 1e-05, "sentiment": 0.5},
    }  # fmt: skip
    config = {
        "training": {"model_name": str(tiny_bert_folder), "output_dir": str(tmp_path), **training},
        "head": {
            "hidden_layers": 2,
            "hidden_multiplier": 0.5,
            "activation": "silu",
            "dropout": 0.35,
            "input_norm": True,
        },
        "encoder": {"freeze_epochs": 1, "unfreeze_layers": 1, "lr_multiplier": 0.2},
        "loss": {"use_focal_loss": True, "focal_gamma": 3.0, "task_weights": {"colour": 0.5}, "label_smoothing": 0.2},
        "eval": {"patience": 2, "min_delta": 0.5, "metric": "f1"},
        "task_sampling": "equal",
    }
    classifier = MultiheadClassifier(config)
    result = classifier.train(DATA, progress=False)
    args = json.loads((result.output_dir / "training_args.json").read_text())
    same = ("max_length", "batch_size", "epochs", "weight_decay", "warmup_ratio", "gradient_accumulation_steps",
            "max_grad_norm", "seed", "dtype", "optimizer")  # fmt: skip
    assert {name: args[name] for name in same} == {name: training[name] for name in same}
    assert args["task_weight_decay"] == "colour=1e-05,sentiment=0.5"
    assert (args["learning_rate"], args["head_learning_rate"]) == pytest.approx((2e-4, 1e-3))
    assert (args["freeze"], args["freeze_epochs"], args["freeze_learning_rate"]) == ("1", 1, pytest.approx(1e-2))
    assert (args["patience"], args["min_delta"], args["metric"], args["save_every"]) == (2, 0.5, "f1", "50")
    sizes = {name: len(part) for name, part in classifier._splits.items()}
    assert sizes == {"train": 12, "validation": 6, "test": 2}
    most = max(sum(row["task"] == task for row in classifier._splits["train"]) for task in DATA)
    updates = -(-2 * -(-most // 3) // 2)  # as many of each task, by batches of 3, two to an update
    assert result.history["epochs"][0]["step"] == updates
    head = classifier.model.head.task_heads["colour"]
    assert head.config.hidden_sizes == [16, 16]
    assert (head.config.activation, head.config.dropout_prob, head.config.input_dropout) == ("silu", 0.35, 0.35)
    assert head.config.use_input_norm
    assert not MultiheadConfig().head.input_norm
    assert (head.config.extra, head.config.label_smoothing) == ({"loss": "focal", "focal_gamma": 3.0}, 0.2)
    weights = {task: settings.loss_weight for task, settings in classifier.model.head.task_configs.items()}
    assert weights == {"sentiment": 1.0, "colour": 0.5}


def test_class_weights_count_if_asked_for(tiny_bert_folder, tmp_path):
    few = [{"text": f"{thing} is grey", "label": "grey"} for thing in ("dog", "day", "sun", "house")]
    rows = {"colour": [*few, {"text": "a red dog", "label": "red"}, {"text": "a red day", "label": "red"}]}
    for use in (True, False):
        config = classifier_of(tiny_bert_folder, tmp_path, epochs=1, test_size=0.0, val_size=0.0).config.to_dict()
        classifier = MultiheadClassifier({**config, "loss": {"use_class_weights": use}})
        classifier.train(rows, progress=False)
        given = classifier.model.head.task_heads["colour"].config.class_weights
        assert (list(given) if use else given) == (pytest.approx([2 / 3, 4 / 3]) if use else None)


def test_a_frozen_encoder_trains_the_heads_for_all_epochs(tiny_bert_folder, tmp_path):
    config = classifier_of(tiny_bert_folder, tmp_path, epochs=1).config.to_dict()
    config["encoder"] = {"freeze_epochs": 2, "unfreeze_layers": 0}
    result = MultiheadClassifier(config).train(DATA, progress=False)
    epochs = [record for record in result.history["epochs"] if "best_heads" not in record]
    assert [record["phase"] for record in epochs] == ["main"] * 3
    args = json.loads((result.output_dir / "training_args.json").read_text())
    assert (args["freeze"], args["head_learning_rate"]) == ("backbone", pytest.approx(5e-2))
    for task in DATA:  # each head is the one of its best epoch
        accuracy = max(record[f"eval_{task}_accuracy"] for record in epochs)
        assert result.metrics[f"{task}_accuracy"] == pytest.approx(accuracy)
    assert args["best_heads"]
    config["training"]["val_size"] = 0.0
    assert not MultiheadClassifier(config).train(DATA, progress=False).metrics


# --- use --------------------------------------------------------------------------------------------------------------


def test_long_texts_are_cut(tiny_bert_folder, tmp_path):
    classifier = classifier_of(tiny_bert_folder, tmp_path, epochs=1, max_length=6)
    classifier.train(DATA, progress=False)
    one, other = classifier.predict(["a red river and so on", "a red river and the good day"], "colour", True)
    assert one["scores"] == pytest.approx(other["scores"], abs=1e-6)


def test_analysis_of_any_labelled_texts(whole, tmp_path):
    found = whole.analyze(data={"colour": [{"text": "a red dog", "label": "red"}]})  # of one class alone
    assert found["colour"]["class_metrics"]["red"]["support"] == 1
    with pytest.raises(ValueError, match="colour: unknown label 'green'"):
        whole.analyze(data={"colour": [{"text": "a red dog", "label": "green"}]})
    with pytest.raises(ValueError, match="has no examples of the task 'sentiment'"):
        whole.analyze(tasks=["sentiment"], data={"colour": DATA["colour"]})


def test_a_task_that_is_added(whole, tmp_path):
    rows = [{"text": f"{word} thing {number}", "label": word} for word in ("small", "large") for number in range(6)]
    whole.save(tmp_path / "model")
    ends = []
    for _ in range(2):
        classifier = MultiheadClassifier().load(tmp_path / "model")
        classifier.config.training.output_dir = str(tmp_path / "runs")
        mx.random.seed(len(ends))
        result = classifier.add_task("size", rows, progress=False)
        ends.append(dict(tree_flatten(classifier.model.head.parameters())))
        assert set(dict(tree_flatten(classifier.model.head.trainable_parameters()))) == set(ends[-1])
        assert tree_flatten(classifier.model.bert.trainable_parameters())
        assert_same(classifier, MultiheadClassifier().load(result.output_dir / "best_model"))
    assert all(mx.array_equal(ends[0][name], ends[1][name]) for name in ends[0])  # the seed decides
    assert classifier.analyze("train", ["size"])
    with pytest.raises(ValueError, match="has no examples of the task 'colour'"):
        classifier.analyze("train", ["colour"])  # a loaded model has not the data of the others
    with pytest.raises(RuntimeError, match="which a loaded model lacks"):
        classifier.load(tmp_path / "model").analyze("train", ["size"])


def test_what_an_augmenter_reports_is_read(whole, tiny_bert_folder, tmp_path):
    """An AugmentResult: ``{task: {"path": ..., "stats": ...}}``."""
    augmented = {}
    for task, rows in DATA.items():
        path = tmp_path / f"{task}_augmented.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        stats = {"total": len(rows), "labels": {row["label"]: 1 for row in rows}}
        augmented[task] = {"path": str(path), "stats": stats}
    classifier = classifier_of(tiny_bert_folder, tmp_path / "runs")
    classifier.train(augmented, progress=False)
    assert_same(whole, classifier)
    mixed = {"sentiment": DATA["sentiment"], "colour": {"path": tmp_path / "colour_augmented.jsonl"}}
    other = classifier_of(tiny_bert_folder, tmp_path / "mixed", epochs=1)
    assert other.train(mixed, progress=False, validation=augmented).steps > 0
    assert other.tasks == ["sentiment", "colour"]
    with pytest.raises(FileNotFoundError, match="missing"):
        classifier.train({"colour": {"path": str(tmp_path / "missing.jsonl"), "stats": {}}})
    with pytest.raises(ValueError, match="a dict with its path for the task 'colour' but got a dict with stats"):
        classifier.train({"colour": {"stats": {}}})
    assert_same(whole, classifier)


def test_adding_a_task_resumes_exactly(whole, tmp_path):
    rows = [{"text": f"{word} thing {number}", "label": word} for word in ("small", "large") for number in range(9)]
    whole.save(tmp_path / "model")

    def added(name, resume=False, change=0.0, **options):
        classifier = MultiheadClassifier().load(tmp_path / "model")
        classifier.config.training.output_dir = str(tmp_path / name)
        if change:
            up = classifier.model.bert.encoder.layers[0].mlp.up
            up.weight = up.weight + change
        return classifier, classifier.add_task("size", rows, progress=False, resume=resume, **options)

    once, wanted = added("once")
    with pytest.raises(TrainingInterrupted):
        added("runs", callbacks=[StopAt(4)])
    assert [path.name for path in (tmp_path / "runs" / "run-1").glob("checkpoint_*")] == ["checkpoint_epoch_2"]
    steps = []
    counter = type("Counter", (Callback,), {"on_step": lambda self, trainer: steps.append(trainer.state.step)})()
    again, result = added("runs", resume=True, callbacks=[counter])
    assert result.output_dir == tmp_path / "runs" / "run-1"
    assert steps[0] == 5
    assert losses(result.history) == losses(wanted.history)
    assert_same(once, again)
    assert_same(once, MultiheadClassifier().load(result.output_dir / "best_model"))
    with pytest.raises(FileExistsError, match=r"the run in .*run-1 is complete"):
        added("runs", resume=True)
    _, other = added("runs", resume=True, change=0.01)  # added to other weights: another run
    assert other.output_dir == tmp_path / "runs" / "run-2"


def test_a_task_that_is_added_after_training_is_analysed_with_the_others(tiny_bert_folder, tmp_path):
    classifier = classifier_of(tiny_bert_folder, tmp_path, epochs=1)
    classifier.train({"colour": DATA["colour"]}, progress=False)
    classifier.add_task("sentiment", DATA["sentiment"], progress=False)
    assert classifier.analyze("train").keys() == {"colour", "sentiment"}
