"""Token classification against transformers' pipeline: strategies, windows, words."""

import itertools

import mlx.core as mx
import numpy as np
import pytest
from pipeline_cases import (
    LONG,
    RELATIVE,
    TEXTS,
    assert_alike,
    assert_same_in_any_batch,
    save,
    save_byte_tokenizer,
    theirs,
)

from mlx_bert.factory import create_bert_with_head
from mlx_bert.inference.pipelines import TokenClassification, pipeline
from mlx_bert.tokenizer import Tokenizer

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
STRATEGIES = ["none", "simple", "first", "average", "max"]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    return save(tmp_path_factory.mktemp("tagger"), "ForTokenClassification", LABELS)


@pytest.fixture(scope="module")
def byte_tagger(tmp_path_factory):
    """The same with a byte-level tokenizer, which has no prefix for parts of words."""
    folder = save(tmp_path_factory.mktemp("bytes"), "ForTokenClassification", LABELS)
    save_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=["tagger", "byte_tagger"])
def pipes(request):
    folder = request.getfixturevalue(request.param)
    return pipeline("ner", folder), theirs("token-classification", folder)


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies(pipes, strategy):
    ours, reference = pipes
    options = {"aggregation_strategy": strategy}
    for inputs in (TEXTS[0], TEXTS, [TEXTS[1]], "", LONG):
        assert_alike(ours(inputs, **options), reference(inputs, **options))
    for ignored in ([], ["O", "B-PER", "PER"], ["LOC"]):
        options["ignore_labels"] = ignored
        assert_alike(ours(TEXTS, **options), reference(TEXTS, **options))
    for entity in ours(TEXTS[1], aggregation_strategy=strategy, ignore_labels=[]):
        assert TEXTS[1][entity["start"] : entity["end"]].strip()[0] in entity["word"]
    assert_same_in_any_batch(ours, [*TEXTS, "", LONG], aggregation_strategy=strategy)


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize(
    ("strategy", "stride"), [(name, 5) for name in STRATEGIES[1:]] + [("simple", 0), ("average", 0), ("max", 40)]
)
def test_long_texts_in_windows(pipes, strategy, stride):
    ours, reference = pipes
    options = {"aggregation_strategy": strategy, "stride": stride}
    for inputs, ignored in ((LONG, []), ([LONG, TEXTS[0], ""], ["O"]), (TEXTS[3], [])):
        wanted = reference(inputs, ignore_labels=ignored, **options)
        assert_alike(ours(inputs, ignore_labels=ignored, **options), wanted)
    assert max(entity["end"] for entity in ours(LONG, ignore_labels=[], **options)) > 400
    assert_same_in_any_batch(ours, [LONG, TEXTS[0]], **options)


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_words(pipes, strategy):
    ours, reference = pipes
    rows = [text.split() for text in (*TEXTS, LONG)]
    for inputs in (rows[0], rows, [rows[1]]):
        for delimiter in (" ", "", "--"):
            options = {"aggregation_strategy": strategy, "is_split_into_words": True, "delimiter": delimiter}
            assert_alike(ours(inputs, **options), reference(inputs, **options))
    if strategy != "none":
        options = {"aggregation_strategy": strategy, "is_split_into_words": True, "stride": 7}
        assert_alike(ours(rows, **options), reference(rows, **options))
    assert_same_in_any_batch(ours, rows, aggregation_strategy=strategy, is_split_into_words=True)


def test_padding_to_the_left_changes_nothing_where_positions_are_relative(tiny_bert_folder):
    mx.random.seed(5)
    model = create_bert_with_head(bert_config=RELATIVE, head_type="token_classification", initializer_range=1.0)
    right, left = Tokenizer.from_pretrained(tiny_bert_folder), Tokenizer.from_pretrained(tiny_bert_folder)
    left.padding_side = "left"
    wanted = TokenClassification(model, right)(TEXTS, ignore_labels=[])
    assert_alike(TokenClassification(model, left)(TEXTS, ignore_labels=[]), wanted)
    assert len({entity["score"] for entity in wanted[0]}) == len(wanted[0])


def test_a_crf_gives_its_best_path_and_the_probabilities_of_its_labels(tiny_bert_folder):
    mx.random.seed(4)
    model = create_bert_with_head(
        bert_name=tiny_bert_folder, head_type="token_classification", num_labels=3, use_crf=True,
        id2label={0: "O", 1: "B-X", 2: "I-X"}, initializer_range=1.0,
    )  # fmt: skip
    crf = {"transitions": (3, 3), "start_transitions": (3,), "end_transitions": (3,)}
    model.head.load_state_arrays({**model.head.state_arrays(), **{k: 2 * mx.random.normal(v) for k, v in crf.items()}})
    tokenizer = Tokenizer.from_pretrained(tiny_bert_folder)
    pipe = TokenClassification(model, tokenizer)
    text = "the good dog ran"
    batch = tokenizer([text])
    logits = np.array(model(*batch)["logits"])[0]
    start, end, moves = (np.array(model.head[name]) for name in ("start_transitions", "end_transitions", "transitions"))
    paths = np.array(list(itertools.product(range(3), repeat=len(logits))))
    scores = logits[np.arange(len(logits)), paths].sum(1) + start[paths[:, 0]] + end[paths[:, -1]]
    scores += moves[paths[:, :-1], paths[:, 1:]].sum(1)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    best = paths[scores.argmax()]
    wanted = [shares[paths[:, place] == label].sum() for place, label in enumerate(best)]
    found = pipe(text, ignore_labels=[])
    assert [entity["entity"] for entity in found] == [["O", "B-X", "I-X"][label] for label in best[1:-1]]
    assert [entity["score"] for entity in found] == pytest.approx(wanted[1:-1], abs=1e-5)
    assert list(best[1:-1]) != list(logits[1:-1].argmax(1))  # the transitions decide something
    assert_same_in_any_batch(pipe, [text, "a bad night in the city", "rain"], ignore_labels=[])


def test_errors(tagger):
    pipe = pipeline("token-classification", tagger)
    with pytest.raises(ValueError, match=r"aggregation_strategy to be one of none, simple, .* but got 'last'"):
        pipe("a", aggregation_strategy="last")
    with pytest.raises(ValueError, match="aggregation_strategy other than 'none' with stride"):
        pipe("a", stride=4)
    with pytest.raises(ValueError, match="expected a stride from 0 to 61 but got 62"):
        pipe("a", stride=62, aggregation_strategy="simple")
    with pytest.raises(ValueError, match="expected a list of words with is_split_into_words but got 'a b'"):
        pipe("a b", is_split_into_words=True)
    with pytest.raises(ValueError, match="expected a text but got '1'"):
        pipe([["a", 1]], is_split_into_words=True)
    with pytest.raises(ValueError, match=r"expected a text but got \"\['a'\]\""):
        pipe([["a"]])
