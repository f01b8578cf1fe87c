"""Pipelines against transformers' own on tiny models: the same text, key by key."""

import json

import numpy as np
import pytest
import transformers

from mlx_bert.inference.pipelines import PIPELINES, pipeline
from reference import redraw, save_word_tokenizer, word_tokenizer

TEXTS = [
    "The movie was good, nice unwatchable film!",
    "a dog walked",
    "xyz Ünknown 東 word",
    "walking slowly never " * 12,
]
TINY = {
    "vocab_size": word_tokenizer().get_vocab_size(),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def save(folder, kind, **options):
    config = transformers.BertConfig(**TINY, **options)
    redraw(getattr(transformers, f"Bert{kind}")(config)).save_pretrained(folder)
    save_word_tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def theirs(task, folder):
    return transformers.pipeline(task, model=str(folder), device="cpu")


def assert_alike(ours, wanted):
    """Equal but for the last digits of numbers."""
    assert type(ours) is type(wanted) or isinstance(ours, float)
    if isinstance(wanted, dict):
        assert list(ours) == list(wanted)
        for key in wanted:
            assert_alike(ours[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(ours) == len(wanted)
        for a, b in zip(ours, wanted, strict=True):
            assert_alike(a, b)
    elif isinstance(wanted, float | np.floating):
        assert ours == pytest.approx(float(wanted), abs=2e-5)
    else:
        assert ours == wanted


KINDS = {
    "three": {
        "num_labels": 3,
        "id2label": {0: "bad", 1: "fine", 2: "good"},
        "label2id": {"bad": 0, "fine": 1, "good": 2},
    },
    "one": {"num_labels": 1},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "many": {"num_labels": 4, "problem_type": "multi_label_classification"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_text_classification(tmp_path, kind):
    folder = save(tmp_path, "ForSequenceClassification", **KINDS[kind])
    ours, reference = pipeline("text-classification", folder), theirs("text-classification", folder)
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    for inputs in (TEXTS[0], TEXTS[:3], [TEXTS[0]], [pair, pair], pair):
        for options in ({}, {"top_k": None}, {"top_k": 2}, {"top_k": 1}, {"top_k": None, "function_to_apply": "none"}):
            assert_alike(ours(inputs, **options), reference(inputs, **options))
    assert_alike(ours(TEXTS[3]), reference(TEXTS[3], truncation=True))


LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagger")
    names = dict(enumerate(LABELS))
    return save(
        folder,
        "ForTokenClassification",
        num_labels=5,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_token_classification(tagger, strategy):
    ours, reference = pipeline("ner", tagger), theirs("token-classification", tagger)
    for inputs in (TEXTS[0], TEXTS, [TEXTS[1]]):
        assert_alike(ours(inputs, aggregation_strategy=strategy), reference(inputs, aggregation_strategy=strategy))
    everything = ours(TEXTS[0], aggregation_strategy=strategy, ignore_labels=[])
    assert_alike(everything, reference(TEXTS[0], aggregation_strategy=strategy, ignore_labels=[]))
    for entity in everything:
        assert TEXTS[0][entity["start"] : entity["end"]].lower()[:1] in entity["word"].replace("##", "")


def test_fill_mask(tmp_path):
    folder = save(tmp_path, "ForMaskedLM")
    ours, reference = pipeline("fill-mask", folder), theirs("fill-mask", folder)
    for inputs in ("the [MASK] was good", ["a [MASK]", "[MASK] [MASK] slowly"], ["the [MASK] was good"]):
        for options in ({}, {"top_k": 2}, {"targets": ["good", "dog", "film"]}):
            assert_alike(ours(inputs, **options), reference(inputs, **options))
    with pytest.raises(ValueError, match=r"expected the mask token \[MASK\] in 'no mask'"):
        ours("no mask")
    with pytest.raises(ValueError, match=r"tokens of the vocabulary but \['quark'\]"):
        ours("a [MASK]", targets=["good", "quark"])


@pytest.mark.parametrize("names", [["contradiction", "neutral", "entailment"], ["ENTAILMENT", "neutral", "no"]])
def test_zero_shot(tmp_path, names):
    ids = dict(enumerate(names))
    swapped = {name: number for number, name in ids.items()}
    folder = save(tmp_path, "ForSequenceClassification", num_labels=3, id2label=ids, label2id=swapped)
    ours, reference = pipeline("zero-shot-classification", folder), theirs("zero-shot-classification", folder)
    for texts in (TEXTS[0], TEXTS[:3]):
        for labels in ("good, bad,awful", ["film", "food"], ["dog"]):
            for options in ({}, {"multi_label": True}, {"hypothesis_template": "it is {}"}):
                assert_alike(ours(texts, labels, **options), reference(texts, labels, **options))
    with pytest.raises(ValueError, match=r"expected candidate_labels, and a hypothesis_template with \{\}"):
        ours(TEXTS[0], [], hypothesis_template="it is {}")


def test_feature_extraction(tmp_path):
    folder = save(tmp_path, "Model")
    ours, reference = pipeline("feature-extraction", folder), theirs("feature-extraction", folder)
    assert_alike(ours(TEXTS[1]), reference(TEXTS[1]))
    assert_alike(ours(TEXTS[:3]), reference(TEXTS[:3]))
    assert ours(TEXTS[1], return_arrays=True).shape[::2] == (1, 32)


def test_errors(tagger, tmp_path):
    with pytest.raises(ValueError, match=r"expected task to be one of text-classification, .* but got 'translation'"):
        pipeline("translation", tagger)
    with pytest.raises(ValueError, match=r"aggregation_strategy to be one of none, simple, .* but got 'last'"):
        pipeline("ner", tagger)("a", aggregation_strategy="last")
    classifier = pipeline("text-classification", save(tmp_path, "ForSequenceClassification"))
    with pytest.raises(ValueError, match=r"function_to_apply to be one of .* but got 'tanh'"):
        classifier("a", function_to_apply="tanh")
    with pytest.raises(ValueError, match=r"expected a text, or a pair as .* but got '3'"):
        classifier([3])
    assert set(PIPELINES) >= {"text-classification", "token-classification", "fill-mask", "feature-extraction"}
