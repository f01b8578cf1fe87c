"""Pipelines against transformers' own on tiny models: the same text, key by key."""

import mlx.core as mx
import numpy as np
import pytest
from pipeline_cases import LONG, RELATIVE, TEXTS, assert_alike, assert_same_in_any_batch, save, theirs

from mlx_bert.core import BertCore
from mlx_bert.inference.pipelines import ALIASES, PIPELINES, FeatureExtraction, base, pipeline
from mlx_bert.tokenizer import Tokenizer
from reference import save_word_tokenizer

KINDS = {
    "three": {"labels": ["bad", "fine", "good"]},
    "one": {"num_labels": 1},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "several values": {"num_labels": 3, "problem_type": "regression"},
    "many": {"num_labels": 4, "problem_type": "multi_label_classification"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_text_classification(tmp_path, kind):
    folder = save(tmp_path, "ForSequenceClassification", **KINDS[kind])
    ours, reference = pipeline("text-classification", folder), theirs("text-classification", folder)
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    for inputs in (TEXTS[0], TEXTS[:3], [TEXTS[0]], [pair, pair], pair, "", [{"text": TEXTS[1]}]):
        for options in ({}, {"top_k": None}, {"top_k": 2}, {"top_k": 1}, {"top_k": None, "function_to_apply": "none"}):
            assert_alike(ours(inputs, **options), reference(inputs, **options))
        for function in ("sigmoid", "softmax"):
            options = {"top_k": None, "function_to_apply": function}
            assert_alike(ours(inputs, **options), reference(inputs, **options))
    assert_alike(ours(TEXTS[3]), reference(TEXTS[3], truncation=True))
    options = {"truncation": True, "max_length": 7}
    wanted = [*(reference(text, **options)[0] for text in TEXTS), reference(pair, **options)]
    assert_alike(ours([*TEXTS, pair], **options), wanted)


@pytest.mark.parametrize("names", [["contradiction", "neutral", "entailment"], ["ENTAILMENT", "neutral", "no"]])
def test_zero_shot(tmp_path, names):
    folder = save(tmp_path, "ForSequenceClassification", names)
    ours, reference = pipeline("zero-shot-classification", folder), theirs("zero-shot-classification", folder)
    long_label = "very " * 40
    for texts in (TEXTS[0], TEXTS, LONG):
        for labels in ("good, bad,awful", ["film", " food"], ["dog"], [long_label, "film"]):
            for options in ({}, {"multi_label": True}, {"hypothesis_template": "it is {}"}):
                assert_alike(ours(texts, labels, **options), reference(texts, labels, **options))
    with pytest.raises(ValueError, match=r"expected candidate_labels, and a hypothesis_template with \{\}"):
        ours(TEXTS[0], [], hypothesis_template="it is {}")
    with pytest.raises(ValueError, match="expected candidate_labels"):
        ours(TEXTS[0], ["a"], hypothesis_template="it is")
    with pytest.raises(ValueError, match="expected texts but got an empty one"):
        ours(["a", ""], ["film"])
    assert_same_in_any_batch(ours, TEXTS, candidate_labels=["film", "food"])


def test_zero_shot_without_an_entailment_takes_the_last_label(tmp_path):
    folder = save(tmp_path, "ForSequenceClassification", ["a", "b", "c"])
    ours, reference = pipeline("zero-shot-classification", folder), theirs("zero-shot-classification", folder)
    with pytest.warns(UserWarning, match="no label starts with 'entail'"):
        found = ours(TEXTS[0], ["film", "food"])
    assert_alike(found, reference(TEXTS[0], ["film", "food"]))


def test_feature_extraction(tmp_path):
    folder = save(tmp_path, "Model")
    ours, reference = pipeline("feature-extraction", folder), theirs("feature-extraction", folder)
    for inputs in (TEXTS[1], TEXTS[:3], ""):
        assert_alike(ours(inputs), reference(inputs))
    assert_alike(ours(LONG, max_length=20), reference(LONG, tokenize_kwargs={"truncation": True, "max_length": 20}))
    (tensor,) = ours([TEXTS[1]], return_tensors=True)
    assert isinstance(tensor, mx.array)
    np.testing.assert_allclose(np.array(tensor), reference(TEXTS[1], return_tensors=True).numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="expected texts of at most 64 tokens but got a longer one"):
        ours(LONG, truncation=False)
    assert_same_in_any_batch(ours, TEXTS)


def test_features_on_either_side_of_padding(tmp_path):
    """A text's own tokens, whatever stands beside them."""
    mx.random.seed(5)
    core = BertCore(RELATIVE)
    save_word_tokenizer(tmp_path)
    right, left = Tokenizer.from_pretrained(tmp_path), Tokenizer.from_pretrained(tmp_path)
    left.padding_side = "left"
    wanted, found = (FeatureExtraction(core, tokenizer)(TEXTS, return_tensors=True) for tokenizer in (right, left))
    for states, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(np.array(other), np.array(states), atol=1e-5)
    encoding = right.encode(TEXTS[1:2])[0]
    np.testing.assert_allclose(wanted[1], core(mx.array([encoding.ids])).last_hidden_state, atol=1e-5)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return pipeline("text-classification", save(tmp_path_factory.mktemp("classifier"), "ForSequenceClassification"))


def test_results_do_not_depend_on_the_batch(classifier):
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    assert_same_in_any_batch(classifier, [*TEXTS, pair, ""] * 3, top_k=None)


def test_an_iterator_is_read_only_as_far_as_needed(classifier, monkeypatch):
    monkeypatch.setattr(base, "READ_AHEAD", 2)
    monkeypatch.setattr(classifier, "batch_size", 3)
    taken = []

    def texts():
        while True:
            taken.append(len(taken))
            yield f"dog {len(taken) % 10}"

    results = classifier(texts())
    assert taken == []
    first = [next(results) for _ in range(6)]
    assert len(taken) == 6
    assert next(results)["label"].startswith("LABEL_")
    assert len(taken) == 12
    assert_alike(first, classifier([f"dog {number}" for number in range(1, 7)]))


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "feature-extraction", "fill-mask"])
def test_nothing_in_gives_nothing_and_no_text_is_refused(tmp_path, task):
    kinds = {
        "text": "ForSequenceClassification",
        "toke": "ForTokenClassification",
        "feat": "Model",
        "fill": "ForMaskedLM",
    }
    pipe = pipeline(task, save(tmp_path, kinds[task[:4]]))
    assert pipe([]) == []
    assert list(pipe(iter([]))) == []
    with pytest.raises(ValueError, match=r"\[pipeline\] expected a text.* but got '3'"):
        pipe([3])
    with pytest.raises(ValueError, match="expected a text, a list or an iterator but got int"):
        pipe(3)
    if task != "text-classification":
        with pytest.raises(ValueError, match="expected a text, a list or an iterator but got dict"):
            pipe({"text": "a"})


def test_bad_options(classifier):
    with pytest.raises(
        ValueError, match=r"expected task to be one of text-classification, .*ner but got 'translation'"
    ):
        pipeline("translation", "nowhere")
    with pytest.raises(ValueError, match=r"function_to_apply to be one of .* but got 'tanh'"):
        classifier("a", function_to_apply="tanh")
    with pytest.raises(ValueError, match=r"expected a text, or a pair as .* but got \"\{'text_pair'"):
        classifier({"text_pair": "a"})
    with pytest.raises(ValueError, match="expected top_k of at least 1 but got 0"):
        classifier("a", top_k=0)
    with pytest.raises(ValueError, match="expected texts of at most 64 tokens but got a longer one"):
        classifier(LONG, truncation=False)


def test_a_batch_holds_at_least_one(classifier, monkeypatch):
    monkeypatch.setattr(classifier, "batch_size", 0)
    for inputs in ("a", ["a"], iter(["a"])):
        with pytest.raises(ValueError, match="expected batch_size of at least 1 but got 0"):
            classifier(inputs)


def test_names_and_heads(tmp_path, classifier):
    folder = classifier.tokenizer.folder
    assert {ALIASES["ner"], ALIASES["sentiment-analysis"]} <= set(PIPELINES)
    assert type(pipeline("sentiment-analysis", folder)) is PIPELINES["text-classification"]
    for task in set(PIPELINES) - {
        "text-classification",
        "zero-shot-classification",
        "feature-extraction",
        "sentence-similarity",
    }:
        with pytest.raises(ValueError, match=r"expected a head of type .* but got multiclass_classification"):
            pipeline(task, folder)
