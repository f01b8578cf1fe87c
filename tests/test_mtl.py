"""SentenceTransformerMTL: embeddings and several classifications from one encoder."""

import json

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from mtl_cases import OPTIONS, SENTENCES, new_model

from mlx_bert.checkpoint import read_json
from mlx_bert.core import BertCore
from mlx_bert.mtl import MTLDataProcessor, SentenceTransformerMTL
from mlx_bert.mtl_data import SENTIMENTS, TOPICS


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
    assert new_model(core, dtype="float16").bert is core
    assert {array.dtype for _, array in tree_flatten(core.parameters())} == {mx.float16}
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
        ({"tasks": {"text": 2}}, "expected task names other than text, line, .* but got 'text'"),
        ({"tasks": {"a.b": 2}}, "task names without dots and slashes that are no numbers but got 'a.b'"),
        ({"tasks": {"a": 1}}, "expected at least two classes for 'a' but got 1"),
        ({"tasks": {"a": ["x", "x"]}}, "expected different names"),
        ({"tasks": {"a": "xy"}}, "expected the number or the names of the classes of 'a' but got 'xy'"),
    ],
)
def test_wrong_options(options, message, tiny_bert_folder):
    with pytest.raises(ValueError, match=message):
        new_model(tiny_bert_folder, **options)


def test_dropout_on_the_pooled_vector_and_in_the_heads(tiny_bert_folder, ids):
    for rate in (0.0, 0.5):
        model = new_model(tiny_bert_folder, dropout=rate)
        calm = model(**ids)
        model.train()
        model.bert.eval()
        lively = model(**ids)
        assert mx.allclose(lively["embeddings"], calm["embeddings"], atol=1e-6).item() == (rate == 0.0)
        assert mx.allclose(lively["topic_logits"], calm["topic_logits"], atol=1e-6).item() == (rate == 0.0)
        model.projection.weight = mx.zeros_like(model.projection.weight)  # then only the heads' own dropout is left
        model.projection.bias = mx.ones_like(model.projection.bias)
        spread = mx.stack([model(**ids)["topic_logits"] for _ in range(3)]).var(axis=0).max().item()
        assert (spread > 1e-9) == (rate > 0)


def test_what_freezing_freezes(tiny_bert_folder):
    model = new_model(tiny_bert_folder, sharing="soft")

    def trains() -> set[str]:
        return {name for name, _ in tree_flatten(model.bert.trainable_parameters())}

    model.unfreeze_bert()
    everything = trains()
    assert not any("pooler" in name for name in everything)
    model.freeze_bert()
    assert trains() == set()
    model.freeze_bert(1)
    assert trains() == {name for name in everything if ".layers.1." in name}
    model.freeze_bert(0)
    assert trains() == everything
    for wrong in (-1, 3, True):
        with pytest.raises(ValueError, match=f"expected num_layers from 0 to 2 but got {wrong}"):
            model.freeze_bert(wrong)


def test_only_the_encoders_that_are_needed_run(tiny_bert_folder, monkeypatch):
    model = new_model(tiny_bert_folder, sharing="soft", tasks={"a": 2, "b": 2, "c": 2})
    calls = []
    call = BertCore.__call__
    monkeypatch.setattr(BertCore, "__call__", lambda *a, **k: calls.append(1) or call(*a, **k))
    for tasks, wanted in ((["a", "b"], 2), (["a"], 1), (["c"], 2), (None, 3)):
        calls.clear()
        model.predict(SENTENCES, tasks)
        assert len(calls) == wanted


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


def test_nothing_is_dropped_out_where_a_model_is_used(tiny_bert_folder):
    model = new_model(tiny_bert_folder, dropout=0.5)
    vectors, found = model.encode(SENTENCES), model.predict(SENTENCES)
    assert np.array_equal(model.train().encode(SENTENCES), vectors)
    assert np.array_equal(model.train().predict(SENTENCES)["topic"]["probs"], found["topic"]["probs"])


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
        (
            {"topic_labels": [0] * 4, "labels": {"topic": [1] * 4}},
            "of .topic. once but got topic_labels and labels",
        ),
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


def test_a_type_at_loading(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    half = SentenceTransformerMTL.from_pretrained(tmp_path / "model", "bfloat16")
    kinds = {name.startswith("bert."): array.dtype for name, array in tree_flatten(half.parameters())}
    assert kinds == {True: mx.bfloat16, False: mx.float32}
    assert np.allclose(half.encode(SENTENCES), model.encode(SENTENCES), atol=0.05)


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
