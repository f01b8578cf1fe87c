"""Training SentenceTransformerMTL: partial labels, what trains, soft sharing, sampling by difficulty."""

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from mtl_cases import SENTENCES, new_model
from training_cases import assert_adds_up

from heads.losses import supervised_contrastive_loss
from mlx_bert.mtl import MTLDataProcessor, SentenceTransformerMTL
from mlx_bert.mtl_training import MTLObjective, MTLTrainer, encoder_distance
from mlx_bert.training.freezing import freeze_tasks
from mlx_bert.training.task_sampling import DifficultySampler, task_difficulties

THINGS = ("movie", "book", "dog", "house", "day", "river")


@pytest.fixture(scope="module")
def model(tiny_bert_folder) -> SentenceTransformerMTL:
    """Read only."""
    return new_model(tiny_bert_folder)


def rows(number: int, start: int = 0) -> list[dict]:
    """Two tasks, each decided by a word; a third of the rows has one label, a third the other, a third both."""
    made = []
    for n in range(start, start + number):
        mood, colour = ("good", "bad")[n % 2], ("red", "blue", "green")[n // 2 % 3]
        row = {"text": f"the {colour} {THINGS[n % 5]} is {mood}", "mood": mood, "colour": colour}
        row |= {} if n // 6 % 3 == 2 else {("mood", "colour")[n // 6 % 3]: None}
        made.append(row)
    return made


TASKS = {"mood": ["good", "bad"], "colour": ["blue", "green", "red"]}
FAST = {"batch_size": 8, "learning_rate": 2e-3, "head_learning_rate": 5e-3, "progress": False, "save_every": "no"}


def batch_of(model, examples) -> dict:
    processor = MTLDataProcessor(model.tokenizer, tasks=model.tasks)
    labels = {task: [row[task] for row in examples] for task in model.tasks}
    data = processor.prepare_data([row["text"] for row in examples], padding="longest", labels=labels)
    return {
        "input_ids": data["input_ids"],
        "attention_mask": data["attention_mask"],
        "labels": {task: data[f"{task}_labels"] for task in model.tasks},
    }


def test_loss_of_a_mixed_batch(tiny_bert_folder):
    model = new_model(tiny_bert_folder, tasks=TASKS)
    batch = batch_of(model, rows(7))
    objective = MTLObjective({"colour": 0.5}, embedding_weight=0.25)
    outputs = objective.forward(model, batch)
    assert outputs.keys() == {"mood_logits", "colour_logits"}
    losses, weights = objective.loss(model, outputs, batch)
    each = {
        task: torch.nn.functional.cross_entropy(
            torch.tensor(np.array(outputs[f"{task}_logits"])), torch.tensor(np.array(labels)).long()
        ).item()
        for task, labels in batch["labels"].items()
    }
    assert losses.tolist() == pytest.approx([each["mood"], 0.5 * each["colour"], 0], abs=1e-5)
    known = {task: sum(row[task] is not None for row in rows(7)) for task in TASKS}
    assert weights.tolist() == [known["mood"], known["colour"], 7]
    assert objective.weights(model, None).tolist() == [0, 0, 0]
    found = objective.metrics(model, outputs, batch["labels"])
    assert found["mood_loss"] == pytest.approx(each["mood"], abs=1e-5)
    none = {"mood": mx.full((7,), -100), "colour": batch["labels"]["colour"]}
    losses, weights = objective.loss(model, outputs, {**batch, "labels": none})
    assert losses.tolist() == pytest.approx([0, 0.5 * each["colour"], 0], abs=1e-5)
    assert weights.tolist() == [0, known["colour"], known["colour"]]
    assert not any(name.startswith("mood") for name in objective.metrics(model, outputs, none))


def test_accumulated_batches_are_one_large_one(tiny_bert_folder):
    """With labels that lack: each task's mean is over its labels in all batches, one of which has none of it."""
    model = new_model(tiny_bert_folder, tasks=TASKS, dropout=0.0)
    data = rows(20)
    parts = [batch_of(model, data[a:b]) for a, b in ((0, 6), (6, 9), (9, 20))]
    assert not (parts[0]["labels"]["mood"] >= 0).any()
    assert_adds_up(model, MTLObjective({"colour": 0.5}), parts, batch_of(model, data))


def test_metrics_are_weighted_by_class_size(model):
    logits = mx.array([[2.0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]])
    labels = {"sentiment": mx.array([0, 0, 0, 1, -100])}
    found = MTLObjective().metrics(model, {"sentiment_logits": logits}, labels)
    assert found["sentiment_accuracy"] == found["accuracy"] == pytest.approx(3 / 4)
    assert found["sentiment_precision"] == pytest.approx((3 * 1 + 1 * 0.5) / 4)
    assert found["sentiment_recall"] == pytest.approx((3 * 2 / 3 + 1 * 1) / 4)
    assert found["sentiment_f1"] == pytest.approx((3 * 0.8 + 1 * 2 / 3) / 4)


def test_terms_that_count_in_training_only(tiny_bert_folder):
    model = new_model(tiny_bert_folder, tasks=TASKS, dropout=0.0, sharing="soft")
    assert encoder_distance(model).item() == 0
    twin = model.encoders()[1]
    layer = twin.encoder.layers[0]
    name, array = tree_flatten(layer.parameters())[0]
    layer.load_weights([(name, array + 0.5)], strict=False)
    distance = encoder_distance(model).item()
    assert distance == pytest.approx(0.25 * array.size, rel=1e-5)
    batch = batch_of(model, rows(12))

    def loss(training: bool, **weights: float) -> float:
        model.train(training)
        for core in model.encoders():
            core.eval()
        objective = MTLObjective(**{"sharing_weight": 0.0, **weights})
        return mx.sum(objective.loss(model, objective.forward(model, batch), batch)[0]).item()

    plain = loss(True)
    assert loss(False) == loss(False, sharing_weight=0.1, embedding_weight=0.1) == pytest.approx(plain, abs=1e-5)
    assert loss(True, sharing_weight=0.1) == pytest.approx(plain + 0.1 * distance, rel=1e-4)
    contrastive = loss(True, embedding_weight=1.0) - plain
    assert contrastive > 0.1
    assert loss(True, embedding_weight=0.5) == pytest.approx(plain + 0.5 * contrastive, rel=1e-4)
    assert encoder_distance(new_model(tiny_bert_folder)).item() == 0


def test_the_loss_of_the_embeddings_is_the_mean_over_the_tasks(tiny_bert_folder):
    model = new_model(tiny_bert_folder, tasks=TASKS, dropout=0.0).train()
    model.bert.eval()
    batch = batch_of(model, rows(12))
    plain, more = MTLObjective(), MTLObjective(embedding_weight=0.5, temperature=0.2)
    outputs = plain.forward(model, batch)
    added = mx.sum(more.loss(model, outputs, batch)[0]) - mx.sum(plain.loss(model, outputs, batch)[0])
    each = [supervised_contrastive_loss(outputs["embeddings"], batch["labels"][task], 0.2).item() for task in TASKS]
    assert added.item() == pytest.approx(0.5 * np.mean(each), rel=1e-4)


def test_it_learns_from_partial_labels(tiny_bert_folder, tmp_path):
    model = new_model(tiny_bert_folder, tasks=TASKS)
    settings = {**FAST, "batch_size": 6, "learning_rate": 3e-3, "head_learning_rate": 2e-2, "epochs": 8}
    trainer = MTLTrainer(model, {**settings, "output_dir": str(tmp_path)})
    history = trainer.train(rows(54), rows(24, 100))
    assert len(history["train_metrics"]) == len(history["val_metrics"]) == 8
    wanted = {f"{task}_{name}" for task in TASKS for name in ("loss", "accuracy", "precision", "recall", "f1")}
    for epoch in (*history["train_metrics"], *history["val_metrics"]):
        assert epoch.keys() == {*wanted, "loss", "accuracy", "f1"}
    assert history["train_metrics"][-1]["loss"] < history["train_metrics"][0]["loss"]
    unseen = rows(24, 200)
    found = model.predict([row["text"] for row in unseen])
    for task in TASKS:
        pairs = [(name, row[task]) for name, row in zip(found[task]["labels"], unseen, strict=True) if row[task]]
        assert np.mean([name == wanted for name, wanted in pairs]) > 0.8
    again = SentenceTransformerMTL.from_pretrained(tmp_path / "best_model")
    assert np.allclose(again.encode(SENTENCES), model.encode(SENTENCES), atol=1e-6)
    measured = trainer.evaluate(rows(24, 100))
    best = min(epoch["loss"] for epoch in history["val_metrics"])
    assert measured["loss"] == pytest.approx(best, abs=1e-5)


def test_defaults_of_training(tiny_bert_folder, tmp_path):
    trainer = MTLTrainer(new_model(tiny_bert_folder), {"output_dir": str(tmp_path), "epochs": 2, "progress": False})
    data = MTLDataProcessor(tiny_bert_folder).prepare_data(SENTENCES, [0, 1, None, 2], [None, 0, 1, 2])
    history = trainer.train(data)
    args = trainer.args
    assert (args.optimizer, args.learning_rate, args.head_learning_rate) == ("adamw", 2e-5, 2e-5)
    assert (args.batch_size, args.weight_decay, args.schedule, args.warmup_ratio) == (16, 0.01, "constant", 0.0)
    assert MTLTrainer(new_model(tiny_bert_folder)).args.epochs == 5
    assert history["val_metrics"] == []
    assert [epoch["topic_accuracy"] >= 0 for epoch in history["train_metrics"]] == [True, True]
    assert {path.name for path in tmp_path.glob("checkpoint_*")} == {"checkpoint_epoch_1", "checkpoint_epoch_2"}
    rows_of_text = [
        {"text": text, "topic": topic, "sentiment": sentiment}
        for text, topic, sentiment in zip(SENTENCES, [0, 1, None, 2], [None, 0, 1, 2], strict=True)
    ]
    assert trainer.evaluate(data) == pytest.approx(trainer.evaluate(rows_of_text), abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"sharing": "soft"},
        {"task_attention": True},
        {"training": {"freeze": "backbone"}},
        {"training": {"freeze": "1"}, "sharing": "soft"},
        {"sharing": "soft", "training": {"freeze": "backbone"}},
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_what_trains(options, tiny_bert_folder, tmp_path):
    options = dict(options)
    settings = {**FAST, "output_dir": str(tmp_path), "epochs": 1, **options.pop("training", {})}
    model = new_model(tiny_bert_folder, tasks=TASKS, **options)
    before = dict(tree_flatten(model.parameters()))
    MTLTrainer(model, settings, embedding_weight=0.1, evaluate_train=False).train(rows(16))
    changed = {name for name, array in tree_flatten(model.parameters()) if not mx.array_equal(array, before[name])}
    parts = {"projection", "heads", *(["task_poolings"] if "task_attention" in options else [])}
    assert {name.split(".")[0] for name in changed} - {"bert"} == parts
    encoders = {name.split(".encoder.")[0] for name in changed if name.startswith("bert")}
    if settings.get("freeze") == "backbone":
        assert not encoders
    else:
        assert encoders == ({"bert", "bert.twins.colour"} if "sharing" in options else {"bert"})
    layers = {name.split(".layers.")[1][0] for name in changed if ".layers." in name}
    assert layers == {"backbone": set(), "1": {"1"}}.get(settings.get("freeze"), {"0", "1"})
    assert not any("pooler" in name and name.startswith("bert") for name in changed)
    assert tree_flatten(model.bert.trainable_parameters())  # what was frozen for the run is not afterwards


def test_a_frozen_task_stays_and_does_not_count(tiny_bert_folder, tmp_path):
    model = new_model(tiny_bert_folder, tasks=TASKS, task_attention=True)
    before = dict(tree_flatten(model.parameters()))
    settings = {**FAST, "output_dir": str(tmp_path), "epochs": 1, "freeze_tasks": "colour"}
    MTLTrainer(model, settings, evaluate_train=False).train(rows(16))
    changed = {name for name, array in tree_flatten(model.parameters()) if not mx.array_equal(array, before[name])}
    assert {name.split(".")[1] for name in changed if name.split(".")[0] in ("heads", "task_poolings")} == {"mood"}
    freeze_tasks(model, "colour")
    batch, objective = batch_of(model, rows(7)), MTLObjective(embedding_weight=0.5)
    for training in (False, True):
        model.train(training)
        losses, weights = objective.loss(model, objective.forward(model, batch), batch)
        assert [bool(losses[1] > 0), bool(weights[1] > 0)] == [not training] * 2
    alone = {**batch, "labels": {"colour": batch["labels"]["colour"]}}
    losses, weights = objective.loss(model, objective.forward(model, alone), alone)
    assert losses.tolist() == weights.tolist() == [0, 0, 0]


def test_evaluations_within_an_epoch_are_no_epochs(tiny_bert_folder, tmp_path):
    model = new_model(tiny_bert_folder, tasks=TASKS)
    trainer = MTLTrainer(model, {**FAST, "output_dir": str(tmp_path), "epochs": 2, "eval_every": 2})
    history = trainer.train(rows(24), rows(12, 50))  # three updates each
    assert len(history["train_metrics"]) == 2
    assert all("mood_accuracy" in epoch for epoch in history["train_metrics"])
    within = [record for record in trainer.result.history["epochs"] if record["epoch"] != int(record["epoch"])]
    assert [record["step"] for record in within] == [2, 4]
    assert not any("train_mood_accuracy" in record for record in within)


def test_frozen_encoders_of_their_own_are_not_confused(tiny_bert_folder, tmp_path):
    model = new_model(tiny_bert_folder, tasks=TASKS, sharing="soft")
    twin = model.bert.twins["colour"]
    twin.load_weights_from({name: array * 1.1 for name, array in twin.weights_on_disk().items()})
    settings = {**FAST, "output_dir": str(tmp_path), "epochs": 1, "freeze": "backbone"}
    trainer = MTLTrainer(model, settings, evaluate_train=False)
    (during,) = trainer.train(rows(16), rows(12, 50))["val_metrics"]
    assert trainer.evaluate(rows(12, 50)) == pytest.approx(during, abs=1e-5)


def test_soft_sharing_pulls_the_encoders_together(tiny_bert_folder, tmp_path):
    distances = []
    for weight in (0.0, 1.0):
        model = new_model(tiny_bert_folder, tasks=TASKS, sharing="soft")
        settings = {**FAST, "output_dir": str(tmp_path / str(weight)), "epochs": 2}
        MTLTrainer(model, settings, sharing_weight=weight, evaluate_train=False).train(rows(24))
        distances.append(encoder_distance(model).item())
    assert 0 < distances[1] < 0.5 * distances[0]


def test_difficulties():
    records = [
        {"epoch": 1, "eval_a_loss": 2.0, "eval_a_accuracy": 0.5, "eval_b_loss": 1.0, "eval_b_accuracy": 0.5},
        {"epoch": 1.5, "eval_a_loss": 9.0, "eval_a_accuracy": 0.0},
        {"epoch": 2, "eval_a_loss": 1.0, "eval_a_accuracy": 0.9, "eval_b_loss": 0.8, "eval_b_accuracy": 0.6},
    ]
    assert task_difficulties(records, 0, ["a", "b"], "loss_ratio") == {}
    assert task_difficulties(records, 1, ["a", "b"], "loss_ratio") == {"a": 1, "b": 1}
    assert task_difficulties(records, 2, ["a", "b"], "loss_ratio") == {"a": 0.5, "b": 0.8}
    assert task_difficulties(records, 2, ["a", "b"], "error_rate") == pytest.approx({"a": 0.1, "b": 0.4})


def test_harder_tasks_are_drawn_more_often():
    labels = [{"easy": 0}] * 300 + [{"hard": 1, "easy": -100}] * 100
    known = {0: {}, 1: {"easy": 0.1, "hard": 0.9}}

    def sampler(temperature: float) -> DifficultySampler:
        return DifficultySampler(labels, [5] * 400, 16, 42, lambda epoch: known[epoch], temperature)

    def share(temperature: float, epoch: int) -> float:
        drawn = np.concatenate([batch.indices for batch in sampler(temperature).batches(epoch)])
        assert len(drawn) == 400
        return float((drawn >= 300).mean())

    assert share(1.0, 0) == 0.25  # every example once
    assert share(1.0, 1) == pytest.approx(0.9, abs=0.06)
    assert share(2.0, 1) == pytest.approx(0.75, abs=0.06)
    assert sampler(2.0).probabilities(1) == pytest.approx({"easy": 0.25, "hard": 0.75})
    assert len(sampler(1.0)) == len(sampler(1.0).batches(1)) == 25
    known[1] = {"easy": 0.3}  # the other has no validation examples
    assert sampler(1.0).probabilities(1) == pytest.approx({"easy": 0.5, "hard": 0.5})
    assert 0.4 < share(1.0, 1) < 0.6
    known[1] = {"easy": 0.0, "hard": 0.0}  # both learnt
    assert sampler(1.0).probabilities(1) == pytest.approx({"easy": 0.5, "hard": 0.5})
    labels[0] = {"easy": 0, "none": -100}  # a task without labels is not drawn
    known[1] = {"easy": 0.5, "hard": 0.5, "none": 0.9}
    assert sampler(1.0).probabilities(1).keys() == {"easy", "hard"}
    other = DifficultySampler(labels, [5] * 400, 16, 7, lambda epoch: known[epoch])
    assert [b.indices.tolist() for b in other.batches(1)] != [b.indices.tolist() for b in sampler(1.0).batches(1)]


@pytest.mark.parametrize(("sampling", "quotas"), [("sqrt", {"a": 40, "b": 20}), ("equal", {"a": 40, "b": 40})])
def test_small_tasks_are_drawn_more_often(sampling, quotas, tiny_bert_folder, tmp_path):
    """``round(sqrt(40 * 10)) = 20`` examples of the small task, or 40; each of its examples equally often."""
    tasks = {"a": ["x", "y"], "b": ["x", "y"]}
    data = [{"text": f"a {n}", "a": "xy"[n % 2], "b": "xy"[n % 2] if n < 10 else None} for n in range(40)]
    model = new_model(tiny_bert_folder, tasks=tasks)
    trainer = MTLTrainer(model, {**FAST, "output_dir": str(tmp_path)}, sampling=sampling).trainer(data)
    drawn = Counter(index for batch in trainer.feed.sampler.batches() for index in batch.indices.tolist())
    assert [drawn[n] for n in range(40)] == [1 + quotas["b"] // 10] * 10 + [1] * 30
    assert drawn.total() == sum(quotas.values())


@pytest.mark.parametrize("sampling", ["loss_ratio", "error_rate"])
def test_dynamic_sampling_trains_and_resumes(sampling, tiny_bert_folder, tmp_path):
    def train(folder, epochs: int, resume: bool = False) -> SentenceTransformerMTL:
        model = new_model(tiny_bert_folder, tasks=TASKS)
        settings = {**FAST, "output_dir": str(folder), "epochs": 3, "save_every": "epoch"}
        trainer = MTLTrainer(model, settings, sampling=sampling, evaluate_train=False, callbacks=[Stop(epochs)])
        try:
            trainer.train(rows(24), rows(12, 50), resume)
        except Stopped:
            return None
        return model

    whole = train(tmp_path / "whole", 3)
    train(tmp_path / "parts", 2)
    resumed = train(tmp_path / "parts", 3, resume=True)
    ends = [dict(tree_flatten(model.parameters())) for model in (whole, resumed)]
    for name, array in ends[0].items():
        assert mx.array_equal(array, ends[1][name]), name


class Stopped(Exception):
    pass


class Stop:
    """Ends a run after the checkpoint of an epoch, as a power cut would."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def __getattr__(self, name: str):
        return lambda *values: None

    def on_checkpoint(self, trainer, path) -> None:
        if trainer.state.epoch == self.epochs < 3:
            raise Stopped


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sampling": "hardest"},
            "sampling to be one of shuffle, sqrt, equal, loss_ratio, error_rate but got 'hardest'",
        ),
        ({"task_weights": {"x": 1}}, r"task_weights names \['x'\], but the tasks are mood, colour"),
        ({"temperature": 0}, "expected temperature above 0 but got 0"),
        ({"sampling_temperature": -1}, "expected sampling_temperature above 0 but got -1"),
    ],
)
def test_wrong_training_settings(options, message, tiny_bert_folder):
    with pytest.raises(ValueError, match=message):
        MTLTrainer(new_model(tiny_bert_folder, tasks=TASKS), **options)


def test_wrong_training_data(tiny_bert_folder, tmp_path):
    model = new_model(tiny_bert_folder, tasks=TASKS, sharing="soft")
    with pytest.raises(ValueError, match="expected freeze none, backbone or n with soft sharing but got 'embeddings'"):
        MTLTrainer(model, {"freeze": "embeddings"})
    trainer = MTLTrainer(model, {**FAST, "output_dir": str(tmp_path)})
    with pytest.raises(ValueError, match="example 1 has no label of mood, colour"):
        trainer.train([{"text": "a", "mood": "good"}, {"text": "b", "mood": None}])
    with pytest.raises(ValueError, match="mood: unknown label 'fine'"):
        trainer.train([{"text": "a", "mood": "fine"}])
    with pytest.raises(ValueError, match="expected validation_examples with sampling 'error_rate'"):
        MTLTrainer(model, FAST, sampling="error_rate").train(rows(4))
    model.tokenizer = None
    with pytest.raises(ValueError, match="expected a tokenizer for texts"):
        trainer.train(rows(4))


def test_what_the_caller_froze_stays_frozen(tiny_bert_folder, tmp_path):
    model = new_model(tiny_bert_folder, tasks=TASKS)
    model.freeze_bert(1)
    before = {name for name, _ in tree_flatten(model.trainable_parameters())}
    MTLTrainer(model, {**FAST, "output_dir": str(tmp_path), "epochs": 1}).train(rows(8))
    assert {name for name, _ in tree_flatten(model.trainable_parameters())} == before
