"""Search among codes: against the definition by brute force, and against sentence-transformers on usearch."""

import numpy as np
import pytest
from sentence_transformers.util.quantization import semantic_search_usearch

from mlx_bert.inference import quantized_search
from mlx_bert.inference.quantization import dequantize_embeddings, quantize_embeddings
from mlx_bert.inference.quantized_search import nearest_quantized, rescored, semantic_search_quantized

RANDOM = np.random.default_rng(0)
CORPUS = RANDOM.normal(size=(700, 43)).astype(np.float32)
QUERIES = (CORPUS[:21] + 0.5 * RANDOM.normal(size=(21, 43))).astype(np.float32)
RANGES = np.stack([CORPUS.min(0), CORPUS.max(0)])
PRECISIONS = ["int8", "uint8", "binary", "ubinary"]


def by_definition(precision, top_k, multiplier, originals=None):
    """All pairs, in int64, sorted as a whole."""
    codes, queries = (quantize_embeddings(x, precision, RANGES) for x in (CORPUS, QUERIES))
    if precision.endswith("binary"):
        differing = np.unpackbits((queries[:, None] ^ codes[None]).view(np.uint8), axis=-1)
        scores = -differing.sum(-1).astype(np.int64)
        values = np.unpackbits((codes ^ (-128 if precision == "binary" else 0)).view(np.uint8), axis=-1)[:, :43]
    else:
        scores = queries.astype(np.int64) @ codes.astype(np.int64).T
        values = (codes.astype(float) + (128 if precision == "int8" else 0)) * ((RANGES[1] - RANGES[0]) / 255) + RANGES[
            0
        ]
    candidates = np.argsort(-scores, axis=1, kind="stable")[:, : top_k * (multiplier or 1)]
    if not multiplier:
        return candidates, np.take_along_axis(scores, candidates, 1)
    exact = np.take_along_axis(QUERIES.astype(float) @ (values if originals is None else originals).T, candidates, 1)
    order = np.argsort(-exact, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(candidates, order, 1), np.take_along_axis(exact, order, 1)


@pytest.mark.parametrize("chunks", [(256, 1 << 24), (4, 5000)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_to_the_definition(precision, chunks, monkeypatch):
    monkeypatch.setattr(quantized_search, "QUERY_CHUNK", chunks[0])
    monkeypatch.setattr(quantized_search, "CHUNK_VALUES", chunks[1])
    codes = quantize_embeddings(CORPUS, precision, RANGES)
    for multiplier, originals in ((0, None), (2, None), (5, None), (3, CORPUS)):
        options = (
            {"rescore_multiplier": multiplier, "rescore_embeddings": originals} if multiplier else {"rescore": False}
        )
        places, scores = nearest_quantized(QUERIES, codes, precision, 7, RANGES, **options)
        expected, values = by_definition(precision, 7, multiplier, originals)
        np.testing.assert_array_equal(places, expected)
        np.testing.assert_allclose(scores, values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["int8", "binary", "ubinary"])
def test_equal_to_sentence_transformers(precision):
    """Its candidates among equal Hamming distances are arbitrary: here all are candidates, or distances compared."""
    codes = quantize_embeddings(CORPUS, precision, RANGES)
    multiplier = 2 if precision == "int8" else 70
    theirs, _ = semantic_search_usearch(
        QUERIES, codes, corpus_precision=precision, ranges=RANGES, top_k=10, rescore_multiplier=multiplier
    )
    ours = semantic_search_quantized(QUERIES, codes, precision, ranges=RANGES, rescore_multiplier=multiplier)
    assert [[hit["corpus_id"] for hit in row] for row in ours] == [[hit["corpus_id"] for hit in row] for row in theirs]
    np.testing.assert_allclose(
        [[hit["score"] for hit in row] for row in ours], [[hit["score"] for hit in row] for row in theirs], atol=1e-4
    )
    plain, _ = semantic_search_usearch(QUERIES, codes, corpus_precision=precision, ranges=RANGES, rescore=False)
    _, scores = nearest_quantized(QUERIES, codes, precision, 10, RANGES, rescore=False)
    np.testing.assert_allclose(-scores, [[hit["score"] for hit in row] for row in plain], atol=1.5)


def test_products_of_bytes_are_exact():
    """2000 columns of the largest codes sum to more than a float32 counts to."""
    codes = np.full((3, 2000), 255, np.uint8)
    codes[1, 0], codes[2, 0] = 254, 253
    _, scores = nearest_quantized(codes[:1], codes, "uint8", 3)
    assert scores[0].tolist() == [2000 * 255 * 255 - 255 * i for i in range(3)]


def test_rescoring_finds_what_codes_lose():
    exact = np.argsort(-(QUERIES @ CORPUS.T), axis=1)[:, :10]

    def recall(places):
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(places.tolist(), exact.tolist(), strict=True)])

    codes = quantize_embeddings(CORPUS, "ubinary")
    plain = recall(nearest_quantized(QUERIES, codes, "ubinary", rescore=False)[0])
    again = recall(nearest_quantized(QUERIES, codes, "ubinary", rescore_multiplier=4)[0])
    original = recall(nearest_quantized(QUERIES, codes, "ubinary", rescore_multiplier=30, rescore_embeddings=CORPUS)[0])
    assert plain < again < original
    assert original > 0.9


def test_codes_of_queries_and_files(tmp_path):
    codes = quantize_embeddings(CORPUS, "ubinary")
    np.save(tmp_path / "codes.npy", codes)
    mapped = np.load(tmp_path / "codes.npy", mmap_mode="r")
    places, scores = nearest_quantized(codes[:5], mapped, "ubinary", 1)
    assert places[:, 0].tolist() == list(range(5))
    assert not scores.any()
    one, _ = nearest_quantized(QUERIES[0], mapped, "ubinary", 3)
    np.testing.assert_array_equal(one, nearest_quantized(QUERIES[:1], codes, "ubinary", 3)[0])


def test_few_and_none():
    codes = quantize_embeddings(CORPUS[:3], "ubinary")
    assert nearest_quantized(QUERIES, codes, "ubinary", 10)[0].shape == (21, 3)
    assert nearest_quantized(QUERIES, codes[:0], "ubinary")[0].shape == (21, 0)
    assert nearest_quantized(QUERIES[:0], codes, "ubinary")[0].shape == (0, 3)
    assert semantic_search_quantized(QUERIES[:2], codes[:0], "ubinary") == [[], []]


@pytest.mark.parametrize("name", ["dot", "cosine", "euclidean"])
def test_rescored_by_other_measures(name):
    places = np.array([[3, -1, 7, 5], [-1, -1, 2, 0]])
    found, scores = rescored(QUERIES[:2], places, CORPUS.__getitem__, 3, name)
    measure = {
        "dot": lambda q, x: q @ x,
        "cosine": lambda q, x: q @ x / np.linalg.norm(q) / np.linalg.norm(x),
        "euclidean": lambda q, x: -np.linalg.norm(q - x),
    }[name]
    for row, query in enumerate(QUERIES[:2]):
        real = sorted((place for place in places[row] if place >= 0), key=lambda place: -measure(query, CORPUS[place]))
        assert found[row, : len(real)].tolist() == real[:3]
        np.testing.assert_allclose(scores[row, : len(real)], [measure(query, CORPUS[i]) for i in real[:3]], rtol=1e-5)
        assert np.isneginf(scores[row, len(real) :]).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_codes_stand_for_values(precision):
    values = dequantize_embeddings(quantize_embeddings(CORPUS, precision, RANGES), precision, RANGES, 43)
    if precision.endswith("binary"):
        np.testing.assert_array_equal(values, CORPUS > 0)
    else:
        assert (np.abs(values - CORPUS) <= (RANGES[1] - RANGES[0]) / 255 * 1.001).all()
    np.testing.assert_array_equal(dequantize_embeddings(CORPUS, "float32"), CORPUS)


def test_errors():
    codes = quantize_embeddings(CORPUS, "int8", RANGES)
    with pytest.raises(ValueError, match="a quantised corpus but got precision 'float32'"):
        nearest_quantized(QUERIES, CORPUS, "float32")
    with pytest.raises(ValueError, match=r"a uint8 corpus \(N, W\) of uint8 but got int8 \(700, 43\)"):
        nearest_quantized(QUERIES, codes, "uint8")
    with pytest.raises(ValueError, match="expected ranges or calibration_embeddings for int8"):
        nearest_quantized(QUERIES, codes, "int8")
    with pytest.raises(ValueError, match="rescore_multiplier of at least 1 but got 0"):
        nearest_quantized(QUERIES, codes, "int8", ranges=RANGES, rescore_multiplier=0)
    with pytest.raises(ValueError, match="ubinary codes of 3 bytes for the queries but got uint8 of 6"):
        nearest_quantized(QUERIES, quantize_embeddings(CORPUS[:, :20], "ubinary"), "ubinary")
    with pytest.raises(ValueError, match="expected floating queries to rescore with"):
        nearest_quantized(codes[:2], codes, "int8", rescore_embeddings=CORPUS)
    with pytest.raises(ValueError, match="expected ranges to read int8 codes"):
        dequantize_embeddings(codes, "int8")
    places, _ = nearest_quantized(QUERIES, codes, "int8", calibration_embeddings=CORPUS)
    np.testing.assert_array_equal(places, nearest_quantized(QUERIES, codes, "int8", ranges=RANGES)[0])
