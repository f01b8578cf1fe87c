"""JointIntentNER: the intent of a sentence and the tags of its words."""

import json
import random

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from training_cases import assert_adds_up

from mlx_bert import joint
from mlx_bert.bpe import ByteLevelBPE
from mlx_bert.core import BertCore
from mlx_bert.encoders.compact import Config
from mlx_bert.joint import (
    JointIntentNER,
    JointObjective,
    evaluate_joint,
    joint_collator,
    joint_examples,
    joint_trainer,
    train_joint,
)
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.callbacks import Callback

CITIES, TIMES = ["rome", "são paulo", "kyoto", "oslo"], ["noon", "6pm", "7am"]
TAGS = ["O", "city", "time"]
FAST = {"batch_size": 8, "progress": False, "save_every": "no", "learning_rate": 3e-3, "head_learning_rate": 1e-2}


def rows(count: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    made = []
    for number in range(count):
        city, time = rng.choice(CITIES), rng.choice(TIMES)
        if number % 2:
            text, tags = f"play music at {time}", ["O", "O", "O", "time"]
        else:
            text, tags = f"fly to {city} by {time}", ["O", "O", *["city"] * len(city.split()), "O", "time"]
        made.append({"text": text, "intent": ("fly", "play")[number % 2], "tags": tags})
    return made


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    ByteLevelBPE.train([row["text"] for row in rows(40)], 300).save_pretrained(folder, max_length=64)
    return Tokenizer.from_pretrained(folder)


@pytest.fixture
def compact(tokenizer):
    """A maker of equal models on a small encoder."""

    def build(**options) -> JointIntentNER:
        mx.random.seed(5)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = Config(
            vocab_size=300, pad_token_id=tokenizer.pad_id, projection_size=8, max_position_embeddings=64, **sizes
        )
        model = JointIntentNER(BertCore(config), tokenizer, ["fly", "play"], TAGS, **options)
        mx.eval(model.parameters())
        return model

    return build


def batch_of(model, made) -> dict:
    return joint_collator(model.tokenizer)(joint_examples(model, made))


def test_outputs(compact):
    model = compact()
    batch = batch_of(model, rows(5))
    outputs = model(batch["input_ids"], batch["attention_mask"])
    assert outputs["intent_logits"].shape == (5, 2)
    assert outputs["ner_logits"].shape == (5, batch["input_ids"].shape[1], 3)
    assert model.intent_head.weight.shape == (2, 8)  # on the projected first token
    assert len(model.ner_head.rnn.forward_layers) == len(model.ner_head.rnn.backward_layers) == 2
    assert model.ner_head.rnn.forward_layers[0].Wh.shape == (4 * 8, 8)
    encoded = model.bert(batch["input_ids"], batch["attention_mask"])
    assert np.allclose(outputs["intent_logits"], model.intent_head(encoded.pooler_output), atol=1e-6)
    raw = compact(sentence="cls")
    assert raw.intent_head.weight.shape == (2, 16)
    encoded = raw.bert(batch["input_ids"], batch["attention_mask"])
    wanted = raw.intent_head(encoded.cls_output)
    assert np.allclose(raw(batch["input_ids"], batch["attention_mask"])["intent_logits"], wanted, atol=1e-6)


def test_padding_changes_nothing(compact):
    model = compact()
    batch = batch_of(model, rows(4))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    wide = mx.pad(ids, ((0, 0), (0, 9)), constant_values=7), mx.pad(mask, ((0, 0), (0, 9)))
    for name, array in model(*wide).items():
        wanted = model(ids, mask)[name]
        real = mask if name == "ner_logits" else mx.ones((4,), mx.bool_)
        assert np.allclose(np.array(array)[:, : ids.shape[1]][np.array(real)] if name == "ner_logits" else array,
                           np.array(wanted)[np.array(real)], atol=1e-5)  # fmt: skip


def test_loss_equals_torch(compact):
    model = compact()
    batch = batch_of(model, rows(6))
    objective = JointObjective()
    outputs = objective.forward(model, batch)
    losses, weights = objective.loss(model, outputs, batch)
    to_torch = lambda array: torch.tensor(np.array(array))  # noqa: E731
    cross_entropy = torch.nn.functional.cross_entropy
    intent = cross_entropy(to_torch(outputs["intent_logits"]), to_torch(batch["labels"]["intent"]).long())
    ner = cross_entropy(
        to_torch(outputs["ner_logits"]).flatten(0, 1),
        to_torch(batch["labels"]["tags"]).long().flatten(),
        weight=torch.tensor([1.0, 3.0, 3.0]),
    )
    assert losses.tolist() == pytest.approx([intent.item(), ner.item()], abs=1e-5)
    tags = np.array(batch["labels"]["tags"])
    assert weights.tolist() == [6, (tags == 0).sum() + 3 * (tags > 0).sum()]
    assert objective.weights(model, None).tolist() == [0, 0]


def test_accumulated_batches_are_one_large_one(compact):
    """Sentences of many lengths, with few tags and many: the mean of their tags' losses is of all tags."""
    data = rows(9)
    data[0] = {"text": "the city the city the city", "intent": data[0]["intent"], "tags": ["O", "city"] * 3}
    assert_adds_up(compact(), JointObjective(), [batch_of(compact(), data[a:b]) for a, b in ((0, 1), (1, 5), (5, 9))],
                   batch_of(compact(), data))  # fmt: skip


def test_metrics_of_a_known_case(compact):
    model = compact()
    tags = np.array([[-100, 0, 1, 1, 1, 0, 2], [-100, 2, 2, 0, -100, -100, -100]])
    starts = np.array([[0, 1, 1, 0, 1, 1, 1], [0, 1, 0, 1, 0, 0, 0]])
    guessed = np.array([[0, 0, 1, 2, 1, 0, 0], [0, 2, 0, 0, 1, 1, 1]])
    labels = {"intent": mx.array([0, 1]), "tags": mx.array(tags), "starts": mx.array(starts)}
    outputs = {"intent_logits": mx.array([[1.0, 0], [1, 0]]), "ner_logits": mx.array(np.eye(3)[guessed])}
    found = JointObjective().metrics(model, outputs, labels)
    assert found["intent_accuracy"] == 0.5
    assert found["ner_accuracy"] == pytest.approx(6 / 9)
    assert found["entity_precision"] == 1.0  # of whole entities, by the first token of each word: city city, time
    assert found["entity_recall"] == pytest.approx(2 / 3)
    assert found["sentence_accuracy"] == 0.0  # the first has a wrong tag, the second a wrong intent
    labels["intent"] = mx.array([0, 0])
    assert JointObjective().metrics(model, outputs, labels)["sentence_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("part", "layers", "still"),
    [
        ("backbone", None, {"intent_head", "ner_head"}),
        ("backbone", 1, {"bert 1", "bert", "intent_head", "ner_head"}),
        ("intent", None, {"bert 0", "bert 1", "bert", "ner_head"}),
        ("ner", None, {"bert 0", "bert 1", "bert", "intent_head"}),
    ],
)
def test_what_trains(part, layers, still, compact, tmp_path):
    model = compact()
    model.freeze(part, num_layers=layers)
    before = dict(tree_flatten(model.parameters()))
    train_joint(model, rows(16), args={**FAST, "output_dir": str(tmp_path), "epochs": 1})
    changed = set()
    for name, array in tree_flatten(model.parameters()):
        if not mx.array_equal(array, before[name]):
            layer = name.split(".layers.")[1][0] if name.startswith("bert") and ".layers." in name else ""
            changed.add(f"{name.split('.')[0]} {layer}".strip())
    assert changed == still


@pytest.mark.parametrize(
    ("settings", "still"),
    [
        ({"freeze": "backbone"}, set()),
        ({"freeze": "embeddings"}, {"bert 0", "bert 1", "bert"}),
        ({"freeze": "1"}, {"bert 1", "bert"}),
        ({"unfreeze_layers": 1}, {"bert 1", "bert"}),
        ({"freeze_epochs": 1}, {"bert 0", "bert 1", "bert"}),
    ],
)
def test_the_settings_freeze_the_encoder_too(settings, still, compact, tmp_path):
    model = compact()
    before = dict(tree_flatten(model.parameters()))
    result = train_joint(model, rows(16), args={**FAST, "output_dir": str(tmp_path), "epochs": 1, **settings})
    moved = [name for name, array in tree_flatten(model.parameters()) if not mx.array_equal(array, before[name])]
    places = {f"bert {name.split('.layers.')[1][0]}" if ".layers." in name else "bert" for name in moved
              if name.startswith("bert")}  # fmt: skip
    assert places == still
    assert any("embeddings" in name for name in moved) == ("freeze_epochs" in settings)
    assert any(name.startswith("ner_head") for name in moved)
    assert [record["phase"] for record in result.history["epochs"]] == (
        ["head"] if "freeze_epochs" in settings else []
    ) + ["main"]


def test_layers_are_frozen_with_what_is_below_them(compact):
    names = {name for name, _ in tree_flatten(compact().freeze("backbone", num_layers=1).bert.trainable_parameters())}
    assert {name.split(".layers.")[1][0] for name in names if ".layers." in name} == {"1"}
    assert not any("embeddings" in name for name in names)


@pytest.mark.parametrize("sentence", ["pooler", "cls"])
def test_a_frozen_encoder_runs_once_per_text(sentence, compact, tmp_path, tiny_bert_folder):
    results = []
    for cached in (True, False):
        mx.random.seed(1)
        core, tokenizer = BertCore.from_pretrained(tiny_bert_folder), Tokenizer.from_pretrained(tiny_bert_folder)
        model = JointIntentNER(core, tokenizer, ["fly", "play"], TAGS, dropout=0.0, sentence=sentence)
        args = {**FAST, "output_dir": str(tmp_path / str(cached)), "epochs": 2, "freeze": "backbone",
                "cache_encoder": cached}  # fmt: skip
        trainer = joint_trainer(model, rows(16), rows(6, seed=1), args, evaluate_train=False)
        results.append(trainer.train().metrics)
        assert trainer.feed.is_cached == cached
    assert results[0] == pytest.approx(results[1], abs=1e-4)


def test_the_loss_of_a_frozen_head_does_not_count(compact, tmp_path):
    model = compact()
    batch = batch_of(model, rows(6))
    objective = JointObjective()
    outputs = objective.forward(model, batch)
    each = objective.losses(model, outputs, batch["labels"])
    model.freeze("ner")
    wanted = [each["intent"].item(), each["ner"].item()]
    assert objective.loss(model.train(), outputs, batch)[0].tolist() == pytest.approx([wanted[0], 0])
    assert objective.loss(model.eval(), outputs, batch)[0].tolist() == pytest.approx(wanted)
    assert not model.train().is_frozen("backbone")
    assert model.bert.training
    model.freeze("backbone")
    assert not model.train().bert.training
    model.freeze("all")
    with pytest.raises(ValueError, match="all are frozen"):
        train_joint(model, rows(8), args={**FAST, "output_dir": str(tmp_path), "epochs": 1})
    model.unfreeze()
    assert not any(model.is_frozen(name) for name in ("backbone", "intent", "ner"))


def test_it_learns_saves_and_loads(compact, tmp_path):
    model = compact()
    args = {**FAST, "batch_size": 4, "output_dir": str(tmp_path), "epochs": 6}
    result = train_joint(model, rows(64), rows(20, seed=1), args)
    assert result.metrics["intent_accuracy"] == 1
    assert result.metrics["entity_f1"] > 0.9
    record = result.history["epochs"][0]
    names = {"intent_loss", "intent_accuracy", "ner_loss", "ner_accuracy", "entity_f1"}
    assert {f"{part}_{name}" for part in ("train", "eval") for name in names} <= record.keys()
    assert record["train_intent_loss"] != record["eval_intent_loss"]
    texts = ["fly to  são paulo by noon", "", "play music at 6pm"]
    held_out = evaluate_joint(model, rows(20, seed=1), batch_size=8)
    for name, value in result.metrics.items():
        assert held_out[name] == pytest.approx(value, abs=1e-5), name
    found = model.predict(texts)
    assert found[0]["intent"] == "fly"
    assert found[0]["words"] == ["fly", "to", "são", "paulo", "by", "noon"]
    assert found[0]["tags"] == ["O", "O", "city", "city", "O", "time"]
    assert (found[1]["words"], found[1]["tags"]) == ([], [])
    assert (found[2]["intent"], found[2]["tags"]) == ("play", ["O", "O", "O", "time"])
    assert model.predict(texts[2])[0]["confidence"] == pytest.approx(found[2]["confidence"], abs=1e-5)
    again = JointIntentNER.from_pretrained(tmp_path / "best_model")
    assert [item["tags"] for item in again.predict(texts)] == [item["tags"] for item in found]
    assert (again.intents, again.tags, again.sentence) == (model.intents, TAGS, "pooler")
    config = json.loads((tmp_path / "best_model" / "joint_config.json").read_text())
    (tmp_path / "best_model" / "joint_config.json").write_text(json.dumps({**config, "colour": 1}))
    with pytest.raises(ValueError, match=r"joint_config.json cannot be used: .*colour"):
        JointIntentNER.from_pretrained(tmp_path / "best_model")
    assert model.predict([]) == []
    assert model.predict("fly " * 80)[0]["tags"][-1] == "O"  # cut off


def test_defaults_of_training(compact, tmp_path):
    train_joint(compact(), rows(8), args={"output_dir": str(tmp_path), "epochs": 1, "progress": False})
    args = json.loads((tmp_path / "training_args.json").read_text())
    wanted = {"learning_rate": 5e-5, "head_learning_rate": 1e-3, "weight_decay": 0.01, "batch_size": 32}
    assert wanted.items() <= args.items()
    assert (args["schedule"], args["max_grad_norm"], args["optimizer"]) == ("cosine_per_epoch", 1.0, "adamw")


def test_rows_with_tags_are_drawn_more_often(compact, tmp_path, monkeypatch):
    drawn = []
    sampler = joint.LengthBucketSampler
    monkeypatch.setattr(joint, "LengthBucketSampler", lambda *a, **k: drawn.append(k["weights"]) or sampler(*a, **k))
    plain = {"text": "play some music", "intent": "play", "tags": ["O", "O", "O"]}
    for number, made in enumerate(([*rows(4), plain], rows(4))):
        train_joint(compact(), made, args={**FAST, "output_dir": str(tmp_path / str(number)), "epochs": 1})
    assert drawn == [[5.0, 5.0, 5.0, 5.0, 3.0], None]  # of one kind alone, an epoch takes each row once


def test_any_encoder_is_a_backbone(tiny_bert_folder):
    model = JointIntentNER(
        BertCore.from_pretrained(tiny_bert_folder), Tokenizer.from_pretrained(tiny_bert_folder), ["a", "b"], TAGS
    )
    assert model.intent_head.weight.shape == (2, 32)
    (found,) = model.predict("the very good movie, walking")
    assert len(found["tags"]) == len(found["words"]) == 5


def test_words_have_the_tags_of_their_own_tokens_on_either_side_of_padding(compact, monkeypatch):
    def by_id(self, ids, mask=None, types=None) -> dict:
        return {"intent_logits": mx.zeros((len(ids), 2)), "ner_logits": mx.eye(3)[ids % 3]}

    monkeypatch.setattr(JointIntentNER, "__call__", by_id)
    model = compact()
    found = {}
    for side in ("right", "left"):
        monkeypatch.setattr(model.tokenizer, "padding_side", side)
        found[side] = [row["tags"] for row in model.predict(["play music at noon", "fly"])]
    assert found["left"] == found["right"]
    first = model.tokenizer.encode(["fly"])[0].ids[1]
    assert found["right"][1] == [TAGS[first % 3]]


def test_texts_are_cut_in_training(compact, tmp_path):
    lengths = set()

    class Look(Callback):
        def on_train_begin(self, trainer) -> None:
            lengths.update(len(row["input_ids"]) for row in (*trainer.feed.train, *trainer.feed.evaluation))

    args = {**FAST, "output_dir": str(tmp_path), "epochs": 1, "max_length": 5}
    result = train_joint(compact(), rows(8), rows(4), args, evaluate_train=False, callbacks=[Look()])
    assert lengths == {5}
    assert "train_intent_loss" not in result.history["epochs"][0]


def test_a_resumed_run_equals_the_uninterrupted_one(compact, tmp_path):
    class Stop(Callback):
        def on_checkpoint(self, trainer, path) -> None:
            raise RuntimeError("power cut")

    def train(folder: str, **options) -> JointIntentNER:
        model = compact()
        args = {**FAST, "save_every": "epoch", "output_dir": str(tmp_path / folder), "epochs": 2}
        train_joint(model, rows(16), rows(8, seed=1), args, **options)
        return model

    whole = train("whole")
    with pytest.raises(RuntimeError, match="power cut"):
        train("parts", callbacks=[Stop()])
    resumed = train("parts", resume=True)
    wanted, found = (dict(tree_flatten(model.parameters())) for model in (whole, resumed))
    assert all(mx.array_equal(wanted[name], found[name]) for name in wanted)


def test_a_model_without_tokenizer(compact, tmp_path):
    model = compact()
    model.tokenizer = None
    model.save_pretrained(tmp_path / "model")
    again = JointIntentNER.from_pretrained(tmp_path / "model")
    assert again.tokenizer is None
    ids = mx.array([[5, 6, 7]])
    assert mx.allclose(again(ids)["ner_logits"], model(ids)["ner_logits"], atol=1e-6)


def test_wrong_use(compact):
    with pytest.raises(ValueError, match="expected sentence to be one of pooler, cls but got 'mean'"):
        compact(sentence="mean")
    model = compact()
    with pytest.raises(ValueError, match="expected part to be one of all, backbone, intent, ner but got 'head'"):
        model.freeze("head")
    with pytest.raises(ValueError, match="expected num_layers from 1 to 2, with part 'backbone', but got 3"):
        model.freeze("backbone", num_layers=3)
    with pytest.raises(ValueError, match="unknown label 'swim'"):
        joint_examples(model, [{"text": "a", "intent": "swim", "tags": ["O"]}])
    with pytest.raises(ValueError, match="expected the tag 'O' among city"):
        JointIntentNER(model.bert, None, ["a"], ["city"])
    model.tokenizer = None
    for call in (lambda: model.predict("a"), lambda: joint_examples(model, [])):
        with pytest.raises(ValueError, match="expected a tokenizer but the model has none"):
            call()
