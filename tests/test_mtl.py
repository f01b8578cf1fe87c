"""SentenceTransformerMTL: embeddings and several classifications from one encoder."""

import json

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from mlx_bert.checkpoint import read_json
from mlx_bert.core import BertCore
from mlx_bert.mtl import MTLDataProcessor, SentenceTransformerMTL
from mlx_bert.mtl_data import SENTIMENTS, TOPICS
from mlx_bert.mtl_training import DifficultySampler, MTLObjective, MTLTrainer, encoder_distance, task_difficulties

SENTENCES = ["the good movie", "a very bad day and a very sad night in the old city", "we love food", "rain"]
THINGS = ("movie", "book", "dog", "house", "day", "river")
OPTIONS = {  # every way to build the model
    "plain": {},
    "cls": {"pooling": "cls"},
    "normalized": {"normalize": True},
    "attention": {"task_attention": True},
    "soft": {"sharing": "soft"},
    "soft attention": {"sharing": "soft", "task_attention": True},
}


def new_model(folder, **options) -> SentenceTransformerMTL:
    mx.random.seed(3)
    model = SentenceTransformerMTL(folder, **{"output_dim": 16, **options})
    mx.eval(model.parameters())
    return model


def count(module) -> int:
    return sum(array.size for _, array in tree_flatten(module.parameters()))


@pytest.fixture(scope="module")
def model(tiny_bert_folder) -> SentenceTransformerMTL:
    """Read only."""
    return new_model(tiny_bert_folder)


@pytest.fixture(scope="module")
def ids(tiny_bert_folder) -> dict[str, mx.array]:
    prepared = MTLDataProcessor(tiny_bert_folder).prepare_data(SENTENCES, padding="longest")
    return dict(prepared)


# --- the model --------------------------------------------------------------------------------------------------------


def test_defaults(tiny_bert_folder):
    model = SentenceTransformerMTL(tiny_bert_folder)
    assert model.tasks == {"topic": list(TOPICS), "sentiment": list(SENTIMENTS)}
    assert model.projection.weight.shape == (1024, 32)
    assert model.heads["topic"].hidden.weight.shape == (512, 1024)
    assert model.heads["topic"].output.weight.shape == (6, 512)
    assert model.heads["sentiment"].output.weight.shape == (3, 512)
    assert SENTIMENTS == ("Positive", "Neutral", "Negative")
    assert not model.training


def test_the_forward_pass_equals_torch(model, ids):
    states = torch.tensor(
        np.array(model.bert(ids["input_ids"], ids["attention_mask"]).last_hidden_state), dtype=torch.float64
    )
    weights = {name: torch.tensor(np.array(array)).double() for name, array in tree_flatten(model.parameters())}
    mask = torch.tensor(np.array(ids["attention_mask"]), dtype=torch.float64)[..., None]
    pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    linear = torch.nn.functional.linear
    embeddings = linear(pooled, weights["projection.weight"], weights["projection.bias"])
    outputs = model(**ids)
    assert np.allclose(outputs["embeddings"], embeddings, atol=1e-5)
    for task in ("topic", "sentiment"):
        hidden = linear(embeddings, weights[f"heads.{task}.hidden.weight"], weights[f"heads.{task}.hidden.bias"])
        logits = linear(hidden.relu(), weights[f"heads.{task}.output.weight"], weights[f"heads.{task}.output.bias"])
        assert np.allclose(outputs[f"{task}_logits"], logits, atol=1e-5)
        assert np.abs(np.array(outputs[f"{task}_logits"])).max() > 1e-3


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_one_task_or_all(options, tiny_bert_folder, ids):
    model = new_model(tiny_bert_folder, **options)
    everything = model(**ids)
    assert everything.keys() == {"embeddings", "topic_logits", "sentiment_logits"}
    assert everything["embeddings"].shape == (4, 16)
    assert everything["topic_logits"].shape == (4, 6)
    for task, other in (("topic", "sentiment"), ("sentiment", "topic")):
        alone = model.forward(**ids, task=task)
        assert alone[f"{other}_logits"] is None
        assert mx.array_equal(alone[f"{task}_logits"], everything[f"{task}_logits"])
        assert mx.array_equal(alone["embeddings"], everything["embeddings"])
    with pytest.raises(ValueError, match="expected task to be one of topic, sentiment but got 'mood'"):
        model(**ids, task="mood")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_padding_changes_nothing(options, tiny_bert_folder):
    model = new_model(tiny_bert_folder, **options)
    processor = MTLDataProcessor(tiny_bert_folder, max_length=40)
    short, wide = (processor.prepare_data(SENTENCES, padding=padding) for padding in ("longest", "max_length"))
    assert wide["input_ids"].shape == (4, 40)
    assert short["input_ids"].shape[1] < 20
    filled = mx.where(wide["attention_mask"] == 0, 7, wide["input_ids"])
    for one, other in zip(model(**short).values(), model(**{**wide, "input_ids": filled}).values(), strict=True):
        assert np.allclose(one, other, atol=1e-5)


def test_options_change_the_right_outputs(model, tiny_bert_folder, ids):
    plain = model(**ids)
    cls = new_model(tiny_bert_folder, pooling="cls")(**ids)
    assert not np.allclose(cls["embeddings"], plain["embeddings"], atol=1e-3)
    normalized = new_model(tiny_bert_folder, normalize=True)(**ids)
    assert np.allclose(np.linalg.norm(normalized["embeddings"], axis=-1), 1, atol=1e-6)
    assert np.allclose(normalized["topic_logits"], plain["topic_logits"], atol=1e-6)
    attention = new_model(tiny_bert_folder, task_attention=True)
    attention.load_weights(tree_flatten(model.parameters()), strict=False)
    outputs = attention(**ids)
    assert np.allclose(outputs["embeddings"], plain["embeddings"], atol=1e-6)
    assert not np.allclose(outputs["topic_logits"], plain["topic_logits"], atol=1e-6)
    without = model(ids["input_ids"], ids["attention_mask"])
    assert mx.array_equal(without["embeddings"], plain["embeddings"])  # token types of zero are none


@pytest.mark.parametrize("attention", [False, True])
def test_each_task_has_its_encoder_when_sharing_is_soft(attention, tiny_bert_folder, ids):
    model = new_model(tiny_bert_folder, sharing="soft", task_attention=attention)
    before = model(**ids)
    twin = model.bert.twins["sentiment"]
    twin.load_weights_from({name: array * 1.1 for name, array in twin.weights_on_disk().items()})
    after = model(**ids)
    assert mx.array_equal(after["embeddings"], before["embeddings"])
    assert mx.array_equal(after["topic_logits"], before["topic_logits"])
    assert not np.allclose(after["sentiment_logits"], before["sentiment_logits"], atol=1e-4)


def test_token_types_reach_the_encoder(model, ids):
    other = model(**{**ids, "token_type_ids": mx.ones_like(ids["input_ids"])})
    assert not np.allclose(other["embeddings"], model(**ids)["embeddings"], atol=1e-3)


def test_two_tasks_cost_less_than_two_models(tiny_bert_folder):
    both = count(new_model(tiny_bert_folder))
    for task in ("topic", "sentiment"):
        alone = count(new_model(tiny_bert_folder, tasks={task: 6}))
        assert alone < both < 2 * alone
        assert both < 1.1 * alone
    assert count(new_model(tiny_bert_folder, sharing="soft")) > 1.8 * alone


def test_any_tasks(tiny_bert_folder, ids):
    model = new_model(tiny_bert_folder, tasks={"mood": ["up", "down"], "topic": 4})
    assert model.tasks == {"mood": ["up", "down"], "topic": ["0", "1", "2", "3"]}
    assert model(**ids)["mood_logits"].shape == (4, 2)
    assert new_model(tiny_bert_folder, topic_classes=None, sentiment_classes=["bad", "good"]).tasks == {
        "sentiment": ["bad", "good"]
    }


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_new_task_leaves_the_others_alone(options, tiny_bert_folder, ids):
    model = new_model(tiny_bert_folder, **options)
    before = model(**ids)
    model.add_task("mood", ["up", "down"])
    after = model(**ids)
    assert after["mood_logits"].shape == (4, 2)
    assert all(mx.array_equal(after[name], before[name]) for name in before)
    with pytest.raises(ValueError, match="the task 'mood' is there already"):
        model.add_task("mood", 3)


def test_an_encoder_of_any_kind(tiny_bert_folder, ids):
    config = read_json(tiny_bert_folder / "config.json")
    built = SentenceTransformerMTL(config, output_dim=8)
    assert built(**ids)["embeddings"].shape == (4, 8)
    core = BertCore.from_pretrained(tiny_bert_folder)
    shared = new_model(core)
    assert shared.bert is core
    assert shared(**ids)["embeddings"].shape == (4, 16)
    with pytest.raises(ValueError, match="expected a tokenizer but the model has none"):
        shared.encode(["a"])
    half = new_model(tiny_bert_folder, dtype="float16")
    assert {array.dtype for _, array in tree_flatten(half.bert.parameters())} == {mx.float16}
    assert half(**ids)["topic_logits"].dtype == mx.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "sum"}, "expected pooling to be one of mean, cls but got 'sum'"),
        ({"sharing": "firm"}, "expected sharing to be one of hard, soft but got 'firm'"),
        ({"output_dim": 1}, "expected output_dim of at least 2 but got 1"),
        ({"tasks": {}}, "expected at least one task"),
        ({"tasks": {"a": 2}, "topic_classes": [4]}, "expected either tasks, or topic_classes"),
        ({"tasks": {"a.b": 2}}, "task names without dots and slashes that are no numbers but got 'a.b'"),
        ({"tasks": {"a": 1}}, "expected at least two classes for 'a' but got 1"),
        ({"tasks": {"a": ["x", "x"]}}, "expected different names"),
        ({"tasks": {"a": "xy"}}, "expected the number or the names of the classes of 'a' but got 'xy'"),
    ],
)
def test_wrong_options(options, message, tiny_bert_folder):
    with pytest.raises(ValueError, match=message):
        new_model(tiny_bert_folder, **options)


# --- sentences in, embeddings and labels out --------------------------------------------------------------------------


def test_encode(model, ids):
    vectors = model.encode(SENTENCES, normalize=False)
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, model(**ids)["embeddings"], atol=1e-5)
    unit = model.encode(SENTENCES)
    assert np.allclose(unit, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-6)
    assert np.allclose(model.encode(SENTENCES * 5, batch_size=1)[4:8], unit, atol=1e-5)
    assert model.encode("rain").shape == (16,)
    assert model.encode([]).shape == (0, 16)
    assert np.allclose(model.encode(["rain sun " * 60], max_length=4), model.encode(["rain sun"]), atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_predict_in_one_pass(options, tiny_bert_folder, ids, monkeypatch):
    model = new_model(tiny_bert_folder, **options)
    wanted = model(**ids)
    calls = []
    call = BertCore.__call__
    monkeypatch.setattr(BertCore, "__call__", lambda *a, **k: calls.append(1) or call(*a, **k))
    found = model.predict(SENTENCES)
    assert len(calls) == len(model.encoders())
    for task, names in model.tasks.items():
        probs = np.array(mx.softmax(wanted[f"{task}_logits"], axis=-1))
        assert np.allclose(found[task]["probs"], probs, atol=1e-5)
        assert found[task]["predictions"].tolist() == probs.argmax(-1).tolist()
        assert found[task]["labels"] == [names[index] for index in probs.argmax(-1)]
        assert np.allclose(found[task]["confidence"], probs.max(-1), atol=1e-5)
    assert model.predict("rain", "topic").keys() == {"topic"}
    assert model.predict([], ["topic"])["topic"]["labels"] == []
    with pytest.raises(ValueError, match="but got 'x'"):
        model.predict(SENTENCES, ["topic", "x"])


def test_prepare_data(tiny_bert_folder):
    processor = MTLDataProcessor(tiny_bert_folder, max_length=12)
    data = processor.prepare_data(SENTENCES, ["Sports", None, 5, "Technology"])
    assert data.keys() == {"input_ids", "attention_mask", "token_type_ids", "topic_labels"}
    assert data["input_ids"].shape == data["attention_mask"].shape == (4, 12)
    assert data["attention_mask"].sum(1).tolist() == [5, 12, 5, 3]
    assert data["topic_labels"].tolist() == [2, -100, 5, 0]
    data = processor.prepare_data(SENTENCES, sentiment_labels=[0, "Neutral", "Negative", -100])
    assert data["sentiment_labels"].tolist() == [0, 1, 2, -100]
    own = MTLDataProcessor(processor.tokenizer, tasks={"mood": ["up", "down"]})
    assert own.prepare_data(["rain"], labels={"mood": ["down"]})["mood_labels"].tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topic_labels": [1]}, "expected 4 labels of 'topic', one per sentence, but got 1"),
        ({"topic_labels": ["Art", None, 1, 2]}, "topic: unknown label 'Art'; known: Technology"),
        ({"sentiment_labels": [3, 0, 0, 0]}, "sentiment: expected a class id from 0 to 2 or a name but got 3"),
        ({"sentiment_labels": [True, 0, 0, 0]}, "or a name but got True"),
        ({"labels": {"mood": [0] * 4}}, "expected labels of topic, sentiment but got labels of 'mood'"),
        ({"padding": "left"}, "expected padding to be one of max_length, longest but got 'left'"),
        ({"sentences": []}, "expected at least one sentence"),
    ],
)
def test_wrong_data(arguments, message, tiny_bert_folder):
    with pytest.raises(ValueError, match=message):
        MTLDataProcessor(tiny_bert_folder).prepare_data(**{"sentences": SENTENCES, **arguments})


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_save_and_load(options, tiny_bert_folder, tmp_path):
    model = new_model(tiny_bert_folder, tasks={"mood": ["up", "down"], "topic": 6}, **options)
    for core in model.encoders()[1:]:  # so that no two encoders are equal
        core.load_weights_from({name: array * 1.1 for name, array in core.weights_on_disk().items()})
    model.save_pretrained(tmp_path / "model")
    again = SentenceTransformerMTL.from_pretrained(tmp_path / "model")
    assert again.get_config() == model.get_config()
    assert np.array_equal(again.encode(SENTENCES), model.encode(SENTENCES))
    for task, found in model.predict(SENTENCES).items():
        assert np.array_equal(found["probs"], again.predict(SENTENCES)[task]["probs"])
    assert MTLDataProcessor(tmp_path / "model").tokenizer.pad_id == model.tokenizer.pad_id


def test_what_cannot_be_loaded(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "mtl_config.json"
    saved = json.loads(config.read_text())
    config.write_text(json.dumps({**saved, "colour": 1}))
    with pytest.raises(ValueError, match=r"cannot be used: .*colour"):
        SentenceTransformerMTL.from_pretrained(tmp_path / "model")
    config.write_text(json.dumps({**saved, "output_dim": 8}))
    with pytest.raises(ValueError, match="the weights do not fit the model"):
        SentenceTransformerMTL.from_pretrained(tmp_path / "model")
    config.write_text(json.dumps({**saved, "model_type": "BertWithHead"}))
    with pytest.raises(ValueError, match="does not describe a SentenceTransformerMTL"):
        SentenceTransformerMTL.from_pretrained(tmp_path / "model")


# --- training ---------------------------------------------------------------------------------------------------------


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
    loss, weight = objective.loss(model, outputs, batch)
    each = {
        task: torch.nn.functional.cross_entropy(
            torch.tensor(np.array(outputs[f"{task}_logits"])), torch.tensor(np.array(labels)).long()
        ).item()
        for task, labels in batch["labels"].items()
    }
    assert loss.item() == pytest.approx(each["mood"] + 0.5 * each["colour"], abs=1e-5)
    assert weight.item() == 7
    found = objective.metrics(model, outputs, batch["labels"])
    assert found["mood_loss"] == pytest.approx(each["mood"], abs=1e-5)
    none = {"mood": mx.full((7,), -100), "colour": batch["labels"]["colour"]}
    loss, weight = objective.loss(model, outputs, {**batch, "labels": none})
    assert loss.item() == pytest.approx(0.5 * each["colour"], abs=1e-5)
    assert weight.item() == sum(row["colour"] is not None for row in rows(7))
    assert not any(name.startswith("mood") for name in objective.metrics(model, outputs, none))


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
        return objective.loss(model, objective.forward(model, batch), batch)[0].item()

    plain = loss(True)
    assert loss(False) == loss(False, sharing_weight=0.1, embedding_weight=0.1) == pytest.approx(plain, abs=1e-5)
    assert loss(True, sharing_weight=0.1) == pytest.approx(plain + 0.1 * distance, rel=1e-4)
    contrastive = loss(True, embedding_weight=1.0) - plain
    assert contrastive > 0.1
    assert loss(True, embedding_weight=0.5) == pytest.approx(plain + 0.5 * contrastive, rel=1e-4)
    assert encoder_distance(new_model(tiny_bert_folder)).item() == 0


def test_it_learns_from_partial_labels(tiny_bert_folder, tmp_path):
    model = new_model(tiny_bert_folder, tasks=TASKS)
    rates = {"learning_rate": 5e-3, "head_learning_rate": 1e-2}
    trainer = MTLTrainer(model, {**FAST, **rates, "output_dir": str(tmp_path), "epochs": 6})
    history = trainer.train(rows(90), rows(24, 100))
    assert len(history["train_metrics"]) == len(history["val_metrics"]) == 6
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
    assert {path.name for path in tmp_path.glob("checkpoint_*")} == {"checkpoint_1", "checkpoint_2"}
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
        ({"sampling": "hardest"}, "expected sampling to be one of shuffle, loss_ratio, error_rate but got 'hardest'"),
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
