"""Evaluators of cross-encoders against sentence-transformers', those of classes and entities by hand."""

import shutil
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder as Reference
from sentence_transformers.cross_encoder import evaluation as theirs
from transformers import BertConfig, BertForSequenceClassification

from mlx_bert.core import BertCore
from mlx_bert.factory import create_bert_with_head
from mlx_bert.inference.cross_encoder import CrossEncoder
from mlx_bert.inference.predict import TextPredictor
from mlx_bert.inference.task_evaluators import (
    ClassificationEvaluator,
    CrossEncoderClassificationEvaluator,
    CrossEncoderCorrelationEvaluator,
    CrossEncoderRerankingEvaluator,
    EntityEvaluator,
    tags_of,
)
from mlx_bert.task_model import TaskModel
from mlx_bert.tokenizer import Tokenizer
from reference import redraw

WORDS = ["dog", "cat", "rain", "river", "sun", "good", "bad", "happy", "sad", "red", "blue", "green", "film", "book"]


@pytest.fixture(scope="module")
def models(tiny_bert_folder, tmp_path_factory):
    """Ours and theirs with one class and with three."""
    found = {}
    for classes in (1, 3):
        folder = tmp_path_factory.mktemp(f"pairs-{classes}")
        shutil.copytree(tiny_bert_folder, folder, dirs_exist_ok=True)
        torch.manual_seed(classes)
        config = BertConfig.from_pretrained(tiny_bert_folder, num_labels=classes)
        redraw(BertForSequenceClassification(config), std=0.3).save_pretrained(folder)
        path = folder / "tokenizer_config.json"
        names = '{"model_input_names": ["input_ids", "token_type_ids", "attention_mask"],'
        path.write_text(path.read_text().replace("{", names, 1))
        found[classes] = CrossEncoder.from_pretrained(folder), Reference(str(folder), device="cpu")
    return found


def texts(random, count):
    return [" ".join(random.choice(WORDS, random.integers(1, 6))) for _ in range(count)]


@pytest.mark.parametrize("form", ["negative", "documents", "documents only"])
def test_reranking(models, form):
    random = np.random.default_rng(0)
    samples = []
    for number in range(12):
        several = sorted(set(texts(random, 9)))
        positive, others = several[:1 + number % 2], several[2:]  # fmt: skip
        if form != "negative":
            others = others[:2] + (positive[:1] if number % 3 else []) + others[2:]
        samples.append({"query": str(random.choice(WORDS)), "positive": positive, form.split()[0]: others})
    options = {"always_rerank_positives": form != "documents only", "at_k": 3}
    ours, reference = models[1]
    found = CrossEncoderRerankingEvaluator(samples, name="dev", **options)(ours)
    wanted = theirs.CrossEncoderRerankingEvaluator(samples, name="dev", write_csv=False, **options)(reference)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value), abs=1e-6), name
    assert CrossEncoderRerankingEvaluator(samples, name="dev").primary_metric == "dev_ndcg@10"


def test_queries_without_an_answer_count_zero(models):
    samples = [{"query": "dog", "positive": [], "documents": ["cat", "rain"]}]
    found = CrossEncoderRerankingEvaluator(samples)(models[1][0])
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize("classes", [1, 3])
def test_classification(models, classes):
    random = np.random.default_rng(1)
    pairs = list(zip(texts(random, 40), texts(random, 40), strict=True))
    labels = random.integers(0, max(2, classes), 40).tolist()
    ours, reference = models[classes]
    evaluator = CrossEncoderClassificationEvaluator(pairs, labels, classes)
    found = evaluator(ours)
    wanted = theirs.CrossEncoderClassificationEvaluator([list(p) for p in pairs], labels, write_csv=False)(reference)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value), abs=1e-5), name
    assert evaluator.primary_metric == ("average_precision" if classes == 1 else "f1_macro")
    with pytest.raises(ValueError, match=f"expected a model with {classes} classes but got {4 - classes}"):
        evaluator(models[4 - classes][0])


def test_correlation(models):
    random = np.random.default_rng(2)
    pairs = list(zip(texts(random, 30), texts(random, 30), strict=True))
    scores = random.random(30).tolist()
    found = CrossEncoderCorrelationEvaluator(pairs, scores, name="sts")(models[1][0])
    wanted = theirs.CrossEncoderCorrelationEvaluator([list(p) for p in pairs], scores, write_csv=False)(models[1][1])
    assert found == {f"sts_{name}": pytest.approx(float(value), abs=1e-5) for name, value in wanted.items()}


class Scripted:
    """A predictor that says what it is told."""

    def __init__(self, rows):
        self.rows = rows

    def predict(self, texts, pairs, batch_size, top_k):
        assert top_k > 2
        return self.rows

    def name(self, index):
        return ("no", "yes")[index]


def test_classes_by_hand():
    probabilities = [0.9, 0.6, 0.4, 0.2]
    rows = [{"label": "yes" if p > 0.5 else "no", "scores": {"yes": p, "no": 1 - p}} for p in probabilities]
    found = ClassificationEvaluator(["a", "b", "c", "d"], ["yes", "no", "yes", "no"])(Scripted(rows))
    assert found["accuracy"] == found["f1_micro"] == 0.5
    assert found["f1_macro"] == found["f1_weighted"] == 0.5
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)


def test_classes_of_a_model(tiny_bert_folder):
    mx.random.seed(0)
    model = create_bert_with_head(bert_name=tiny_bert_folder, head_type="multiclass_classification", num_labels=3,
                                  id2label={0: "a", 1: "b", 2: "c"})  # fmt: skip
    predictor = TextPredictor(model, Tokenizer.from_pretrained(tiny_bert_folder))
    inputs = texts(np.random.default_rng(0), 6)
    said = [row["label"] for row in predictor.predict(inputs)]
    assert ClassificationEvaluator(inputs, said, name="x")(predictor)["x_accuracy"] == 1
    with pytest.raises(ValueError, match="unknown label 'd'; known: a, b, c"):
        ClassificationEvaluator(["rain"], ["d"])(predictor)
    regression = create_bert_with_head(bert_name=tiny_bert_folder, head_type="regression", num_labels=1)
    with pytest.raises(ValueError, match="expected a model of one class per text but this one gives value"):
        ClassificationEvaluator(["rain"], ["a"])(TextPredictor(regression, predictor.tokenizer))


def test_entities_by_hand():
    words = [["New", "York", "is", "in", "America"], ["Ann", "met", "Bob", "Lee"]]
    tags = [["B-LOC", "I-LOC", "O", "O", "B-LOC"], ["B-PER", "O", "B-PER", "I-PER"]]
    said = [
        [{"entity_group": "LOC", "start": 0, "end": 8}, {"entity_group": "PER", "start": 15, "end": 22}],
        [{"entity_group": "PER", "start": 0, "end": 3}, {"entity_group": "PER", "start": 8, "end": 11}],
    ]
    assert tags_of(words[0], said[0]) == ["B-LOC", "I-LOC", "O", "O", "B-PER"]
    assert tags_of(words[1], said[1]) == ["B-PER", "O", "B-PER", "O"]

    def pipe(sentences, **options):
        assert sentences == words
        return said

    head = SimpleNamespace(head_type="token_classification")
    predictor = SimpleNamespace(pipeline=pipe, model=SimpleNamespace(head=head),
                                tokenizer=SimpleNamespace(max_length=64))  # fmt: skip
    # right: New York, Ann. 4 found, 4 there
    found = EntityEvaluator(words, tags)(predictor)
    assert found == {"entity_precision": 0.5, "entity_recall": 0.5, "entity_f1": 0.5}


def test_entities_of_a_model(tiny_bert_folder):
    mx.random.seed(1)
    model = TaskModel.new(BertCore.from_pretrained(tiny_bert_folder), "token_classification", 3)
    model.set_labels({0: "O", 1: "B-X", 2: "I-X"})
    model.head.load_state_arrays({**model.head.state_arrays(), "output.weight": mx.random.normal((3, 32))})
    predictor = TextPredictor(model.eval(), Tokenizer.from_pretrained(tiny_bert_folder))
    random = np.random.default_rng(3)
    words = [random.choice(WORDS, size).tolist() for size in (3, 9, 150)]
    found = predictor.pipeline(words, aggregation_strategy="first", is_split_into_words=True, stride=16)
    tags = [tags_of(row, own) for row, own in zip(words, found, strict=True)]
    assert {tag for row in tags for tag in row} == {"O", "B-X", "I-X"}
    assert any(tag != "O" for tag in tags[2][100:])  # beyond the 64 tokens of a window
    assert EntityEvaluator(words, tags)(predictor)["entity_f1"] == 1
    classifier = TextPredictor(create_bert_with_head(bert_name=tiny_bert_folder), predictor.tokenizer)
    with pytest.raises(ValueError, match="expected a model that tags words but got binary_classification"):
        EntityEvaluator(words, tags)(classifier)


def test_errors():
    with pytest.raises(ValueError, match="expected as many of each"):
        CrossEncoderCorrelationEvaluator([("a", "b")], [1.0, 2.0])
    with pytest.raises(ValueError, match="either negative or documents in sample 0 but got positive, query"):
        CrossEncoderRerankingEvaluator([{"query": "a", "positive": "b"}])
    with pytest.raises(ValueError, match="expected 2 tags, one for each word, in sentence 0 but got 1"):
        EntityEvaluator([["a", "b"]], [["O"]])
