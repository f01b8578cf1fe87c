"""Search and mining against sentence_transformers.util on random embeddings."""

import tracemalloc
from typing import ClassVar

import mlx.core as mx
import numpy as np
import pytest
import torch
from sentence_transformers import util

from mlx_bert.inference import search

RANDOM = np.random.default_rng(0)
QUERIES = RANDOM.normal(size=(9, 6)).astype(np.float32)
CORPUS = RANDOM.normal(size=(83, 6)).astype(np.float32)


def flat(results):
    return [[hit["corpus_id"] for hit in row] for row in results], [[hit["score"] for hit in row] for row in results]


@pytest.mark.parametrize("chunks", [(256, 50_000), (4, 10), (1, 1)])
@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_semantic_search(name, chunks):
    functions = {
        "cosine": util.cos_sim,
        "dot": util.dot_score,
        "euclidean": util.euclidean_sim,
        "manhattan": util.manhattan_sim,
    }
    options = {"query_chunk_size": chunks[0], "corpus_chunk_size": chunks[1]}
    ours = flat(search.semantic_search(QUERIES, CORPUS, top_k=7, score_function=name, **options))
    theirs = util.semantic_search(torch.tensor(QUERIES), torch.tensor(CORPUS), top_k=7, score_function=functions[name])
    assert ours[0] == flat(theirs)[0]
    np.testing.assert_allclose(ours[1], flat(theirs)[1], atol=1e-5)


def test_search_edges(tmp_path):
    places, scores = search.nearest(QUERIES[0], CORPUS[:3], top_k=10)
    assert places.shape == scores.shape == (1, 3)
    assert (np.diff(scores) <= 0).all()
    assert search.nearest(QUERIES[:0], CORPUS)[0].shape[0] == 0
    assert search.nearest(QUERIES, CORPUS[:0])[0].shape == (9, 0)
    np.testing.assert_array_equal(search.nearest(list(QUERIES), CORPUS.tolist())[0], search.nearest(QUERIES, CORPUS)[0])
    with pytest.raises(ValueError, match=r"expected a corpus \(N, D\) but got the shape \(0,\)"):
        search.nearest(QUERIES, [])
    np.save(tmp_path / "corpus.npy", CORPUS)
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        search.nearest(QUERIES, mapped, corpus_chunk_size=20)[0], search.nearest(QUERIES, CORPUS)[0]
    )


@pytest.mark.parametrize(("top_k", "max_pairs"), [(100, 500_000), (3, 500_000), (100, 20), (3, 7)])
def test_paraphrase_mining(top_k, max_pairs):
    ours = search.paraphrase_mining_embeddings(CORPUS, max_pairs=max_pairs, top_k=top_k, block=10, corpus_chunk_size=30)
    theirs = util.paraphrase_mining_embeddings(torch.tensor(CORPUS), max_pairs=max_pairs, top_k=top_k)
    assert [pair[1:] for pair in ours] == [tuple(pair[1:]) for pair in theirs]
    np.testing.assert_allclose([pair[0] for pair in ours], [pair[0] for pair in theirs], atol=1e-5)


def test_each_of_equal_texts_has_top_k_others():
    pairs = search.paraphrase_mining_embeddings(np.ones((20, 4), np.float32), top_k=1)
    assert 10 <= len(pairs) <= 20  # a text may not be among its own nearest two: then only one of them counts
    assert {place for _, *pair in pairs for place in pair} == set(range(20))


def test_paraphrases_of_texts(encoder):
    texts = ["The cat sits outside.", "A man plays guitar.", "A cat is sitting outdoors.", "Someone plays the guitar."]
    best = search.paraphrase_mining(encoder, texts)
    assert {pair[1:] for pair in best[:2]} == {(0, 2), (1, 3)}


@pytest.mark.parametrize(("threshold", "least"), [(0.75, 3), (0.6, 5), (0.95, 2), (0.999, 2)])
def test_community_detection(threshold, least, monkeypatch):
    centres = RANDOM.normal(size=(6, 8))
    points = (centres[RANDOM.integers(0, 6, 90)] + 0.3 * RANDOM.normal(size=(90, 8))).astype(np.float32)
    theirs = util.community_detection(torch.tensor(points), threshold=threshold, min_community_size=least)
    for members in (1, 40, search.MEMBERS):  # listed one, few and all at a time
        monkeypatch.setattr(search, "MEMBERS", members)
        assert search.community_detection(points, threshold, least, batch_size=17, corpus_chunk_size=23) == theirs
        assert search.community_detection(mx.array(points), threshold, least) == theirs
    assert threshold == 0.999 or theirs


def test_communities_of_near_duplicates_need_memory_for_their_number_not_its_square(monkeypatch):
    N = 4000
    points = (RANDOM.normal(size=48) + 0.01 * RANDOM.normal(size=(N, 48))).astype(np.float32)
    monkeypatch.setattr(search, "MEMBERS", 4 * N)
    tracemalloc.start()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    (found,) = search.community_detection(points, 0.75, 10, batch_size=32, corpus_chunk_size=500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sorted(found) == list(range(N))
    assert peak < 4 * N * 100  # N * N places are 128 MB
    assert mx.get_peak_memory() - before < points.nbytes


def test_communities_of_few():
    assert search.community_detection(CORPUS[:4], min_community_size=5) == []
    assert search.community_detection(CORPUS[:0], min_community_size=1) == []


def all_scores(query):
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    return unit(CORPUS) @ unit(query)


def test_hard_negatives_are_the_best_that_are_wrong():
    positives = [[0], [1, 2], *[[i] for i in range(3, 10)]]
    found = search.mine_hard_negatives(QUERIES, CORPUS, positives, num_negatives=4, range_min=2, range_max=20)
    for query, right, hits in zip(QUERIES, positives, found, strict=True):
        order = [i for i in np.argsort(-all_scores(query)).tolist() if i not in right]
        assert [hit["corpus_id"] for hit in hits] == order[2:6]


def test_hard_negatives_keep_their_distance():
    positives = [[int(np.argsort(-all_scores(query))[5])] for query in QUERIES]  # five wrong ones score higher
    for options, bound in (
        ({"absolute_margin": 0.1}, lambda score: score - 0.1),
        ({"relative_margin": 0.2}, lambda score: score * 0.8),
        ({"max_score": 0.3, "min_score": 0.1}, lambda score: 0.3),
    ):
        found = search.mine_hard_negatives(QUERIES, CORPUS, positives, range_max=80, **options)
        for query, (right,), hits in zip(QUERIES, positives, found, strict=True):
            scores = all_scores(query)
            allowed = [i for i in np.argsort(-scores).tolist() if scores[i] <= bound(scores[right]) and i != right]
            if "min_score" in options:
                allowed = [i for i in allowed if scores[i] >= 0.1]
            assert [hit["corpus_id"] for hit in hits] == allowed[:3]


def test_hard_negatives_beside_several_right_answers():
    """Those do not count in the range, and the margin is measured from the worst of them."""
    scores = all_scores(QUERIES[0])
    order = np.argsort(-scores).tolist()
    right = [order[0], order[1], order[4]]
    wrong = [place for place in order if place not in right]

    def mined(**options):
        (hits,) = search.mine_hard_negatives(QUERIES[:1], CORPUS, [right], num_negatives=9, **options)
        return [hit["corpus_id"] for hit in hits]

    assert mined(range_min=1, range_max=3) == wrong[1:3]
    far = [place for place in wrong if scores[place] <= scores[order[4]] - 0.1]
    assert mined(range_max=80, absolute_margin=0.1) == far[:9]


def test_errors():
    with pytest.raises(ValueError, match="top_k of at least 1 but got 0"):
        search.nearest(QUERIES, CORPUS, top_k=0)
    with pytest.raises(ValueError, match="corpus_chunk_size of at least 1 but got 0"):
        search.community_detection(CORPUS, corpus_chunk_size=0)
    with pytest.raises(ValueError, match="batch_size of at least 1 but got 0"):
        search.community_detection(CORPUS, batch_size=0)
    with pytest.raises(ValueError, match="equal widths but got 6 and 5"):
        search.nearest(QUERIES, CORPUS[:, :5])
    with pytest.raises(ValueError, match="expected one of cosine"):
        search.nearest(QUERIES, CORPUS, score_function="jaccard")
    with pytest.raises(ValueError, match="expected 9 lists of positives but got 1"):
        search.mine_hard_negatives(QUERIES, CORPUS, [[0]])
    with pytest.raises(ValueError, match="range_min < range_max but got 5 and 5"):
        search.mine_hard_negatives(QUERIES, CORPUS, [[0]] * 9, range_min=5, range_max=5)
    with pytest.raises(ValueError, match="expected a positive for query 0"):
        search.mine_hard_negatives(QUERIES, CORPUS, [[]] * 9, absolute_margin=0.1)


def test_negative_texts_are_those_the_encoder_confuses(encoder):
    pairs = [
        ("How do I bake bread?", "Knead flour, water and yeast, then bake the dough."),
        ("How do I bake bread?", "Let the dough rise before you put it into the oven."),
        ("Where do cats sleep?", "Cats sleep in warm places."),
    ]
    corpus = ["Buy bread at the bakery.", "A dog sleeps in its basket.", "Where do cats sleep?", "Stocks fell today."]
    found = search.mine_negative_texts(encoder, pairs, corpus, num_negatives=2)
    assert found[0] == found[1]
    assert found[0][0] == "Buy bread at the bakery."
    assert found[2][0] == "A dog sleeps in its basket."
    assert [len(row) for row in found] == [2, 2, 2]
    right = {text for anchor, text in pairs[:2]}
    assert right.isdisjoint(found[0])
    assert "Where do cats sleep?" not in found[2]  # the anchor itself
    assert search.mine_negative_texts(encoder, pairs, corpus, 2, max_score=-2.0) == [[], [], []]


def test_negative_texts_are_embedded_with_prompts():
    class Recorder:
        seen: ClassVar[list] = []

        def encode(self, texts, batch_size, prompt=None):
            self.seen.append((texts, prompt))
            return RANDOM.normal(size=(len(texts), 4)).astype(np.float32)

    search.mine_negative_texts(Recorder(), [("a", "b"), ("a", "c")], ["d"], 1, prompts=("find: ", "about "))
    assert Recorder.seen == [(["a"], "find: "), (["b", "c", "d"], "about ")]
