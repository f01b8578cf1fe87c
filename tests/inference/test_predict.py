from itertools import cycle

import mlx.core as mx
import numpy as np
import pandas
import pytest
import torch
import transformers
from mlx.utils import tree_flatten

from mlx_bert.factory import create_bert_with_head
from mlx_bert.inference import predict
from mlx_bert.inference.predict import TextPredictor, find_model_folder
from mlx_bert.tokenizer import Tokenizer
from reference import redraw, save_word_tokenizer, word_tokenizer


def predictor(folder, head_type="multiclass_classification", num_labels=3, **options):
    mx.random.seed(3)
    names = dict(enumerate(("low", "middle", "high")[:num_labels]))
    model = create_bert_with_head(bert_name=folder, head_type=head_type, num_labels=num_labels, id2label=names,
                                  initializer_range=0.5, **options)  # fmt: skip
    return TextPredictor(model, Tokenizer.from_pretrained(folder))


TEXTS = [
    "the good cat",
    "a bad night in the old city " * 6,
    "rain",
    "you never sleep , I see",
    "very small green birds",
]


def test_order_and_padding_change_nothing(tiny_bert_folder):
    ours = predictor(tiny_bert_folder)
    together = ours.predict(TEXTS, batch_size=2, top_k=3)
    for text, found in zip(TEXTS, together, strict=True):
        batch = ours.tokenizer([text])
        probabilities = np.array(ours.model(batch.input_ids)["probabilities"])[0]
        assert found["label"] == ("low", "middle", "high")[probabilities.argmax()]
        assert found["confidence"] == pytest.approx(probabilities.max(), abs=1e-5)
        assert list(found["scores"].values()) == pytest.approx(sorted(probabilities, reverse=True), abs=1e-5)
    assert len({found["confidence"] for found in together}) == len(TEXTS)
    assert ours.predict([]) == []
    assert ours.predict(TEXTS[0], top_k=3) == ours.predict(TEXTS[:1], top_k=3)
    series = pandas.Series(TEXTS)[2:]  # whose first index is 2
    assert [row["label"] for row in ours.predict(series)] == [row["label"] for row in together[2:]]


def test_pairs_count(tiny_bert_folder):
    ours = predictor(tiny_bert_folder)
    (alone,), (paired,) = ours.predict(["the cat"]), ours.predict(["the cat"], ["a dog"])
    assert alone["confidence"] != paired["confidence"]
    assert ours.predict("the cat", "a dog") == [paired]


def test_several_labels(tiny_bert_folder):
    ours = predictor(tiny_bert_folder, "multilabel_classification")
    outputs = {"probabilities": np.array([0.9, 0.2, 0.7]), "predictions": np.array([1, 0, 1])}
    assert ours.describe(outputs) == {"labels": ["low", "high"], "confidence": [0.9, 0.7]}
    assert ours.describe(outputs, top_k=2)["scores"] == {"low": 0.9, "high": 0.7}


def test_values(tiny_bert_folder):
    found = predictor(tiny_bert_folder, "regression", 1).predict(TEXTS)
    assert all(isinstance(row["value"], float) for row in found)
    found = predictor(tiny_bert_folder, "regression", 1, num_targets=2).predict(TEXTS)
    assert all(len(row["value"]) == 2 for row in found)


def test_a_binary_head_names_both_classes(tiny_bert_folder):
    (found,) = predictor(tiny_bert_folder, "binary_classification", 2).predict(["the cat"], top_k=2)
    assert set(found["scores"]) == {"low", "middle"}
    assert sum(found["scores"].values()) == pytest.approx(1)
    assert found["confidence"] == pytest.approx(max(found["scores"].values()))


def test_a_class_without_a_name_is_its_number(tiny_bert_folder):
    ours = predictor(tiny_bert_folder)
    ours.model.set_labels(None)
    assert ours.predict(["rain"])[0]["label"] in ("0", "1", "2")


def test_a_16_bit_folder_is_computed_in_float32_on_a_cpu(tiny_bert_folder, tmp_path):
    ours = predictor(tiny_bert_folder)
    ours.model.set_dtype(mx.bfloat16)
    ours.model.save_pretrained(tmp_path / "half", ours.tokenizer)
    dtypes = {None: mx.float32, "float32": mx.float32, "bfloat16": mx.bfloat16, mx.float16: mx.float16}
    for given, wanted in dtypes.items():
        model = TextPredictor.from_pretrained(tmp_path / "half", given).model
        assert {array.dtype for _, array in tree_flatten(model.bert.parameters())} == {wanted}
        assert {array.dtype for _, array in tree_flatten(model.head.parameters())} == {mx.float32}


@pytest.mark.parametrize("paired", [False, True])
def test_an_iterator_gives_an_iterator_that_reads_some_batches_ahead(tiny_bert_folder, paired, monkeypatch):
    monkeypatch.setattr(predict, "READ_AHEAD", 2)
    ours, taken = predictor(tiny_bert_folder), []

    def texts():
        while True:
            taken.append(len(taken))
            yield TEXTS[taken[-1] % 5]

    pairs = cycle(TEXTS[1:3]) if paired else None
    results = ours.predict(texts(), pairs, batch_size=3)
    assert taken == []
    first = [next(results) for _ in range(6)]
    assert len(taken) == 6
    assert next(results)["label"]
    assert len(taken) == 12
    wanted = ours.predict([TEXTS[n % 5] for n in range(6)], [TEXTS[1 + n % 2] for n in range(6)] if paired else None)
    for found, known in zip(first, wanted, strict=True):
        assert found == {"label": known["label"], "confidence": pytest.approx(known["confidence"], abs=1e-5)}
    assert list(ours.predict(iter([]))) == []
    with pytest.raises(ValueError, match="zip"):
        list(ours.predict(iter(TEXTS), TEXTS[:2]))


def test_what_is_refused(tiny_bert_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no fine-tuned model"):
        find_model_folder(tmp_path)
    with pytest.raises(ValueError, match="expected top_k of at least 1"):
        predictor(tiny_bert_folder).predict(["a"], top_k=0)
    with pytest.raises(ValueError, match="expected batch_size of at least 1 but got 0"):
        predictor(tiny_bert_folder).predict(iter(["a"]), batch_size=0)
    with pytest.raises(ValueError, match="expected a head that gives texts labels, values or answers but got contra"):
        predictor(tiny_bert_folder, "contrastive")


def test_a_task_model_of_transformers_predicts_as_there(tmp_path):
    config = transformers.BertConfig(
        vocab_size=word_tokenizer().get_vocab_size(), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=64, id2label={0: "calm", 1: "glad", 2: "sad"},
        label2id={"calm": 0, "glad": 1, "sad": 2},
    )  # fmt: skip
    theirs = redraw(transformers.BertForSequenceClassification(config))
    theirs.save_pretrained(tmp_path / "model")
    save_word_tokenizer(tmp_path / "model")
    ours = TextPredictor.from_pretrained(tmp_path / "model")
    for text, found in zip(TEXTS, ours.predict(TEXTS, top_k=3), strict=True):
        ids = torch.tensor([ours.tokenizer.encode([text])[0].ids])
        expected = torch.softmax(theirs(ids).logits[0], -1).tolist()
        assert [found["scores"][config.id2label[n]] for n in range(3)] == pytest.approx(expected, abs=1e-4)
