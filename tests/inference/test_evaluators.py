"""Evaluators give sentence-transformers' numbers."""

import numpy as np
import pytest
from sentence_transformers.sentence_transformer import evaluation as theirs

from mlx_bert.inference.evaluators import (
    ALL_SIMILARITIES,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    RerankingEvaluator,
    TripletEvaluator,
)

WORDS = ["old", "song", "a", "loud", "concert", "rain", "cold", "storm", "bread", "soup", "pizza", "wind", "guitar"]
RANDOM = np.random.default_rng(4)
TEXTS = list(dict.fromkeys(" ".join(RANDOM.choice(WORDS, RANDOM.integers(2, 7))) for _ in range(70)))[:60]


@pytest.fixture(scope="module", params=["plain", "prompts"])
def models(request, minilm_source, encoder, reference):
    """Our encoder and sentence-transformers', also with different prompts for queries and documents."""
    if request.param == "plain":
        return encoder, reference
    from sentence_transformers import SentenceTransformer

    from mlx_bert.inference.encode import SentenceEncoder

    prompts = {"query": "find: ", "document": "about "}
    ours = SentenceEncoder.from_pretrained(minilm_source, prompts=prompts)
    return ours, SentenceTransformer(str(minilm_source), device="cpu", prompts=prompts)


def same(found, expected, atol=1e-6):
    assert found.keys() >= expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=atol), name


def test_embedding_similarity(models):
    ours, reference = models
    scores = RANDOM.integers(0, 6, 30)
    evaluator = EmbeddingSimilarityEvaluator(TEXTS[:30], TEXTS[30:], scores, name="sts")
    expected = theirs.EmbeddingSimilarityEvaluator(
        TEXTS[:30], TEXTS[30:], scores, similarity_fn_names=list(ALL_SIMILARITIES), name="sts", write_csv=False
    )(reference)
    found = evaluator(ours)
    same(found, {name: value for name, value in expected.items() if "max" not in name})
    assert evaluator.primary_metric == "sts_spearman_cosine"
    assert len(found) == 8


def test_triplets(models):
    ours, reference = models
    columns = TEXTS[:20], TEXTS[20:40], TEXTS[40:]
    evaluator = TripletEvaluator(*columns, margin=0.05)
    expected = theirs.TripletEvaluator(
        *columns, margin=0.05, similarity_fn_names=list(ALL_SIMILARITIES), write_csv=False
    )(reference)
    found = evaluator(ours)
    same(found, {name: value for name, value in expected.items() if name != "max_accuracy"})
    assert evaluator.primary_metric == "cosine_accuracy"
    assert 0 < found["cosine_accuracy"] < 1


def test_information_retrieval(models):
    ours, reference = models
    corpus = {f"d{number}": text for number, text in enumerate(TEXTS)}
    queries = {f"q{number}": f"{text.split()[0]} {text.split()[-1]}" for number, text in enumerate(TEXTS[:12])}
    random = np.random.default_rng(1)
    relevant = {name: {f"d{place}" for place in random.choice(60, 1 + n % 4)} for n, name in enumerate(queries)}
    relevant["q3"] = set()
    for number in range(6):
        relevant[f"q{number}"] |= {f"d{number}"} if number != 3 else set()
    evaluator = InformationRetrievalEvaluator(
        queries, corpus, relevant, similarities=ALL_SIMILARITIES, map_at=(5, 100), ndcg_at=(3, 10), name="find"
    )
    functions = {name: _score(name) for name in ALL_SIMILARITIES}
    expected = theirs.InformationRetrievalEvaluator(
        queries, corpus, relevant, map_at_k=[5, 100], ndcg_at_k=[3, 10], name="find", write_csv=False,
        score_functions=functions,
    )(reference)  # fmt: skip
    found = evaluator(ours)
    same(found, expected)
    assert evaluator.primary_metric == "find_cosine_ndcg@10"
    assert len(found) == len(expected) == 4 * (4 * 3 + 1 + 2 + 2)
    assert 0 < found["find_cosine_ndcg@10"] < 1


def _score(name):
    from sentence_transformers.util import SimilarityFunction

    return SimilarityFunction.to_similarity_fn(name)


@pytest.mark.parametrize("at_k", [2, 10])
def test_reranking(models, at_k):
    ours, reference = models
    samples = [
        {
            "query": TEXTS[number].split()[0],
            "positive": TEXTS[number : number + 1 + number % 3],
            "negative": TEXTS[40 + number : 44 + number + number % 4],
        }
        for number in range(10)
    ]
    samples[2]["positive"] = samples[2]["positive"][0]
    samples.append({"query": "rain", "positive": [], "negative": ["snow"]})
    found = RerankingEvaluator(samples, at_k)(ours)
    same(found, theirs.RerankingEvaluator(samples, at_k, write_csv=False)(reference))
    assert found.keys() == {"map", f"mrr@{at_k}", f"ndcg@{at_k}"}
    assert 0 < found["map"] < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: EmbeddingSimilarityEvaluator(["a"], ["b"], [1, 2]),
            r"\[EmbeddingSimilarityEvaluator\] expected as many of each, at least one, but got .*'scores': 2",
        ),
        (lambda: EmbeddingSimilarityEvaluator(["a"], ["b"], [1], ["l1"]), r"expected one of cosine, .* but got 'l1'"),
        (lambda: TripletEvaluator([], [], []), r"\[TripletEvaluator\] expected as many of each, at least one"),
        (
            lambda: InformationRetrievalEvaluator({"q": "a"}, {"d": "b"}, {"q": []}),
            r"expected queries with relevant documents but got none",
        ),
        (
            lambda: InformationRetrievalEvaluator({"q": "a"}, {"d": "b"}, {"q": ["e"]}),
            r"document 'e', relevant for query 'q', is not in the corpus",
        ),
        (
            lambda: RerankingEvaluator([{"query": "a", "positive": "b", "negative": []}]),
            r"\[RerankingEvaluator\] expected samples with positives and negatives but got none",
        ),
        (lambda: TripletEvaluator(["a"], [3], ["b"]), r"\[evaluate\]"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
