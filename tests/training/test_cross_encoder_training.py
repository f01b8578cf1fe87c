"""Cross-encoders train through the one loop, resume exactly, and load elsewhere with equal scores."""

import random

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from sentence_transformers import CrossEncoder as Reference
from transformers import AutoModelForSequenceClassification

from mlx_bert.data.groups import hard_negative_groups
from mlx_bert.inference.cross_encoder import CrossEncoder
from mlx_bert.inference.search import mine_hard_negatives
from mlx_bert.model import METADATA
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.cross_encoder import CrossEncoderTrainer
from mlx_bert.training.lora import load_adapters, lora_layers

GOOD, BAD = ("good", "great", "happy"), ("bad", "sad", "angry")
FILLERS = ("the", "a", "is", "very", "today", "it")
QUERIES = ("red", "blue", "green")


def rows(count, seed=0):
    """Each query has one to two right answers, which are good, among three to five."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        documents, labels = [], []
        for number in range(rng.randint(3, 5)):
            right = number == 0 or rng.random() < 0.2
            documents.append(f"{rng.choice(FILLERS)} {rng.choice(GOOD if right else BAD)} {rng.choice(FILLERS)}")
            labels.append(int(right))
        made.append({"query": rng.choice(QUERIES), "documents": documents, "labels": labels})
    return made


def settings(folder, **options):
    return TrainingArgs(**{"output_dir": str(folder), "epochs": 3, "learning_rate": 1e-2, "head_learning_rate": 1e-2,
                           "batch_size": 8,
                           "progress": False, "seed": 1, **options})  # fmt: skip


def fresh(folder, num_labels=1, **options):
    mx.random.seed(5)
    return CrossEncoder.from_pretrained(folder, num_labels=num_labels, **options)


@pytest.mark.parametrize(("loss", "metric"), [("bce", "ndcg@10"), ("lambda", "ndcg@10")])
def test_a_reranker_learns_and_loads_everywhere(tiny_bert_folder, tmp_path, loss, metric):
    model = fresh(tiny_bert_folder)
    trainer = CrossEncoderTrainer(model, settings(tmp_path / "run"), rows(40), rows(12, 1), loss)
    before = trainer.evaluate()
    assert trainer.evaluate(rows(12, 1)) == before
    result = trainer.train()
    assert trainer.args.metric == metric
    assert set(result.metrics) == {"loss", "map", "mrr@10", "ndcg@10"}
    assert before["map"] < 0.9 < result.metrics["map"]
    best = tmp_path / "run" / "best_model"
    assert not (best / METADATA).exists()
    pairs = [("red", "the good rain"), ("blue", "a sad film today"), ("green", "the very book the book")]
    wanted = model.predict(pairs)
    np.testing.assert_allclose(CrossEncoder.from_pretrained(best).predict(pairs), wanted, atol=1e-6)
    np.testing.assert_allclose(Reference(str(best), device="cpu").predict(pairs), wanted, atol=1e-5)
    batch = model.tokenizer([a for a, _ in pairs], [b for _, b in pairs])
    reference = AutoModelForSequenceClassification.from_pretrained(best).eval()
    with torch.no_grad():
        logits = reference(*(torch.tensor(np.array(part)) for part in batch)).logits[:, 0].numpy()
    np.testing.assert_allclose(logits, model.predict(pairs, raw_scores=True), atol=1e-5)
    assert [hit["corpus_id"] for hit in model.rank("blue", ["a sad film", "a great film"])] == [1, 0]


def test_a_student_takes_over_its_teachers_margins(tiny_bert_folder, tmp_path):
    train = [{"query": row["query"], "documents": row["documents"], "labels": [3.0 * x - 1 for x in row["labels"]]}
             for row in rows(40)]  # fmt: skip
    model = fresh(tiny_bert_folder, activation_fn="Identity")
    trainer = CrossEncoderTrainer(model, settings(tmp_path, epochs=5), train, train[:20], "margin_mse")
    before = trainer.evaluate()["loss"]
    result = trainer.train()
    assert trainer.args.metric == "spearman"
    assert result.metrics["loss"] < 0.5 * before
    assert result.metrics["spearman"] > 0.5
    loaded = CrossEncoder.from_pretrained(tmp_path / "best_model")
    assert loaded.activation_fn is model.activation_fn
    assert np.abs(loaded.predict([("red", "it is bad"), ("red", "it is good")])).max() > 1


def test_classes_by_name(tiny_bert_folder, tmp_path):
    names = {0: "contradiction", 1: "entailment", 2: "neutral"}
    words = (GOOD, BAD, ("rain", "river", "sun"))
    data = [{"text": QUERIES[number % 2], "text_pair": f"the {own[number % 3]}", "label": names[place]}
            for number in range(12) for place, own in enumerate(words)]  # fmt: skip
    model = fresh(tiny_bert_folder, num_labels=3)
    model.model.set_labels(names)
    args = settings(tmp_path, learning_rate=3e-3, head_learning_rate=3e-3, batch_size=6, freeze="1")
    trainer = CrossEncoderTrainer(model, args, data, data)
    assert (trainer.objective.name, trainer.args.metric) == ("ce", "f1_macro")
    result = trainer.train()
    assert result.history["epochs"][-1]["train_loss"] < result.history["epochs"][0]["train_loss"]
    loaded = CrossEncoder.from_pretrained(tmp_path / "best_model")
    assert loaded.model.id2label == names
    np.testing.assert_array_equal(loaded.predict([("red", "the river")]), model.predict([("red", "the river")]))
    with pytest.raises(ValueError, match=r"unknown label 'maybe' in 'red' of train_rows; known: contradiction"):
        CrossEncoderTrainer(model, settings(tmp_path), [{**data[0], "label": "maybe"}])


def test_adapters_are_trained_merged_and_kept(tiny_bert_folder, tmp_path):
    model = fresh(tiny_bert_folder)
    before = dict(tree_flatten(model.model.bert.parameters()))
    args = settings(tmp_path / "run", lora="bert.*.qkv, bert.*.up", lora_rank=4, dora=True, epochs=8)
    losses = CrossEncoderTrainer(model, args, rows(40), rows(12, 1)).train().history["epochs"]
    assert losses[-1]["train_loss"] < 0.6 * losses[0]["train_loss"]
    after = dict(tree_flatten(model.model.bert.parameters()))
    moved = {name for name, array in before.items() if not mx.array_equal(array, after[name]).item()}
    assert {".".join(name.split(".")[-3:]) for name in moved} == {"attention.qkv.weight", "mlp.up.weight"}
    best = tmp_path / "run" / "best_model"
    pairs = [("red", "the good rain"), ("blue", "a sad film today")]
    wanted = model.predict(pairs)
    loaded = CrossEncoder.from_pretrained(best)
    np.testing.assert_allclose(loaded.predict(pairs), wanted, atol=1e-5)
    assert not lora_layers(loaded.model)
    np.testing.assert_allclose(Reference(str(best), device="cpu").predict(pairs), wanted, atol=1e-5)
    # the model itself is a plain one again, which can be saved by hand
    assert not lora_layers(model.model)
    model.save_pretrained(tmp_path / "own")
    np.testing.assert_allclose(CrossEncoder.from_pretrained(tmp_path / "own").predict(pairs), wanted, atol=1e-6)
    # the adapters alone, on a model of the same beginnings but for its trained head
    again = fresh(tiny_bert_folder)
    load_adapters(again.model, best / "adapters")
    again.model.head.load_state_arrays(model.model.head.state_arrays())
    np.testing.assert_allclose(again.predict(pairs), wanted, atol=1e-5)


def test_mined_negatives_are_rows_to_train_on(tiny_bert_folder, tmp_path):
    corpus = [f"the {word}" for pair in zip(GOOD, BAD, strict=True) for word in pair]
    random_state = np.random.default_rng(0)
    embeddings = random_state.normal(size=(len(corpus), 8)).astype(np.float32)
    positives = [[0, 2, 4]] * 3
    corpus[1::2] = [f"{text} film" for text in corpus[1::2]]
    mined = mine_hard_negatives(embeddings[[0, 2, 4]], embeddings, positives, num_negatives=2)
    data = hard_negative_groups(list(QUERIES), corpus, positives, mined)
    assert [row["labels"] for row in data] == [[1, 1, 1, 0, 0]] * 3
    model = fresh(tiny_bert_folder)
    result = CrossEncoderTrainer(model, settings(tmp_path, epochs=10, batch_size=1), data, data, "lambda").train()
    assert result.metrics["map"] == pytest.approx(1.0)


@pytest.mark.parametrize("loss", ["mse", "lambda"])
def test_the_update_compiles(tiny_bert_folder, tmp_path, loss):
    args = settings(tmp_path, epochs=1, compile=True, save_every="no")
    result = CrossEncoderTrainer(fresh(tiny_bert_folder), args, rows(8), loss=loss).train()
    assert result.steps == 1


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        if trainer.state.step == self.step:
            raise KeyboardInterrupt


def test_a_resumed_run_equals_the_uninterrupted_one(tiny_bert_folder, tmp_path):
    def run(name, stop=None, resume=False):
        model = fresh(tiny_bert_folder)
        callbacks = [] if stop is None else [StopAt(stop)]
        args = settings(tmp_path / name, epochs=2, save_every="3", batch_size=4)
        trainer = CrossEncoderTrainer(model, args, rows(16), rows(4, 1), "lambda", callbacks=callbacks)
        try:
            trainer.train(resume)
        except KeyboardInterrupt:
            return None
        return {name: np.array(array) for name, array in tree_flatten(model.model.parameters())}

    whole = run("whole")
    assert run("cut", stop=7) is None
    resumed = run("cut", resume=True)
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"loss": "ce"}, rows(2), "expected a model with several classes for loss 'ce' but got 1"),
        ({"loss": "bce"}, [{"text": "a", "text_pair": "b", "label": 3}], r"from 0 to 1 with loss 'bce' but got \[3"),
        ({"loss": "mse"}, [{"text": "a", "text_pair": "b", "label": "x"}], r"expected numbers .* but got \['x'\]"),
        ({"loss": "lambda"}, [{"text": "a", "text_pair": "b", "label": 1}], "at least 2 documents for each query"),
        ({"loss": "bce", "sigma": 1}, rows(2), r"loss 'bce' has no options sigma\. It has pos_weight"),
    ],
)  # fmt: skip
def test_errors(tiny_bert_folder, tmp_path, options, data, message):
    with pytest.raises(ValueError, match=message):
        CrossEncoderTrainer(fresh(tiny_bert_folder), settings(tmp_path), data, **options)
