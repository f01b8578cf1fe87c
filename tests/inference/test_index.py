"""The index on disk: what it finds against exact search, additions that fail, and what it refuses."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.index import EmbeddingIndex
from mlx_bert.inference.search import nearest
from mlx_bert.inference.stored_vectors import StoredVectors, row_bytes
from mlx_bert.inference.text_files import Record

RANDOM = np.random.default_rng(0)
WORDS = ["the", "movie", "was", "good", "bad", "a", "day"]
TEXTS = list(dict.fromkeys(" ".join(RANDOM.choice(WORDS, RANDOM.integers(1, 12))) for _ in range(400)))
QUERIES = TEXTS[::40]


@pytest.fixture(scope="module")
def vectors(tiny_bert_folder):
    return SentenceEncoder.from_pretrained(tiny_bert_folder).encode(TEXTS)


@pytest.fixture(scope="module")
def built(tiny_bert_folder, tmp_path_factory):
    """An index that no test changes."""
    return EmbeddingIndex.build(tmp_path_factory.mktemp("built") / "index", tiny_bert_folder, TEXTS, window=64)


@pytest.fixture
def index(built, tmp_path):
    """A copy to change."""
    built.save(tmp_path / "index")
    return EmbeddingIndex.load(tmp_path / "index")


def ids(results):
    return [[hit["id"] for hit in hits] for hits in results]


def recall(results, expected):
    return np.mean([len({*found} & {*right}) / len(right) for found, right in zip(ids(results), expected, strict=True)])


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_exact_search_is_exact(tiny_bert_folder, vectors, tmp_path, metric):
    index = EmbeddingIndex.build(tmp_path / "index", tiny_bert_folder, TEXTS, metric=metric)
    places, scores = nearest(vectors[::40], vectors, 7, metric)
    results = index.search(QUERIES, 7, exact=True)
    assert ids(results) == places.tolist()
    np.testing.assert_allclose([[hit["score"] for hit in hits] for hits in results], scores, atol=1e-3)
    assert all(hit["text"] == TEXTS[hit["id"]] for hits in results for hit in hits)
    assert recall(index.search(QUERIES, 7), places.tolist()) > 0.95
    found = index.search(QUERIES, 1)
    assert [hits[0]["text"] for hits in found] == QUERIES or metric == "dot"


@pytest.mark.parametrize(
    ("dtype", "stored", "multiplier", "least"),
    [
        ("f32", "float32", 4, 0.95),
        ("f16", "float32", 4, 0.95),
        ("i8", "float32", 4, 0.9),
        ("i8", "int8", 4, 0.8),
        ("binary", "float32", 25, 0.8),
    ],
)
def test_recall(tiny_bert_folder, vectors, tmp_path, dtype, stored, multiplier, least):
    index = EmbeddingIndex.build(tmp_path / "index", tiny_bert_folder, TEXTS, dtype=dtype, vectors=stored)
    expected = nearest(vectors[::40], vectors, 10)[0].tolist()
    assert recall(index.search(QUERIES, rescore_multiplier=multiplier), expected) >= least
    few = recall(index.search(QUERIES, rescore_multiplier=1), expected)
    assert few <= recall(index.search(QUERIES, rescore_multiplier=30), expected)
    assert recall(index.search(QUERIES, exact=True), expected) >= (1 if stored == "float32" else 0.8)


def test_scores_are_those_of_the_stored_embeddings(tiny_bert_folder, vectors, tmp_path):
    index = EmbeddingIndex.build(tmp_path / "index", tiny_bert_folder, TEXTS, dtype="binary")
    for query, hits in zip(QUERIES, index.search(QUERIES, 5), strict=True):
        scores = [hit["score"] for hit in hits]
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = unit @ unit[TEXTS.index(query)]
        np.testing.assert_allclose(scores, [cosines[hit["id"]] for hit in hits], atol=1e-5)
        assert scores == sorted(scores, reverse=True)


def test_one_query_many_and_vectors(built, vectors):
    one = built.search(QUERIES[3], 4)
    assert ids([one]) == ids(built.search(QUERIES[3:4], 4))
    assert ids([built.search(vectors[120], 4)]) == ids([one])
    assert ids(built.search(vectors[[120, 0]], 4))[0] == ids([one])[0]
    assert built.search([], 4) == []
    assert len(built.search(QUERIES[0], 10_000)) == len(TEXTS)
    assert len(built.search(QUERIES[0], 10_000, exact=True)) == len(TEXTS)


def test_a_graph_may_find_fewer(index, vectors):
    keys = np.array([[3, 7, 7, 7, 7, 7, 7, 7], [9, 5, 7, 7, 7, 7, 7, 7]], np.uint64)  # what stands behind is left over
    index._graph = SimpleNamespace(search=lambda coded, count: SimpleNamespace(keys=keys, counts=np.array([1, 2])))
    first, second = index.search(vectors[[3, 5]], 2)
    assert (ids([first]), ids([second])) == ([[3]], [[5, 9]])


def test_bits_that_fill_no_byte(tiny_bert_folder, vectors, tmp_path):
    index = EmbeddingIndex.build(tmp_path / "index", tiny_bert_folder, TEXTS[:60], dtype="binary", truncate_dim=12)
    assert [hits[0]["id"] for hits in index.search(TEXTS[:5], 2, rescore_multiplier=25)] == list(range(5))


def test_it_is_found_again(built, tiny_bert_folder):
    again = EmbeddingIndex.load(built.folder)
    assert len(again) == len(TEXTS)
    assert again.search(QUERIES, 5) == built.search(QUERIES, 5)
    assert again.settings["model"] == str(tiny_bert_folder)
    assert not list(built.folder.parent.glob(".*"))


def test_documents_are_added(index, built, tiny_bert_folder, vectors, tmp_path):
    split = 150
    grown = EmbeddingIndex.build(tmp_path / "grown", tiny_bert_folder, TEXTS[:split])
    assert grown.add(TEXTS[split:], window=50) == len(TEXTS) - split
    assert grown.add([]) == 0
    assert len(grown) == len(TEXTS)
    for each in (grown, EmbeddingIndex.load(tmp_path / "grown")):
        assert ids(each.search(QUERIES, 5, exact=True)) == ids(index.search(QUERIES, 5, exact=True))
        assert recall(each.search(QUERIES), nearest(vectors[::40], vectors, 10)[0].tolist()) > 0.95
    assert len(list((tmp_path / "grown").glob("graph-*"))) == 1
    index.search("a new day", 1)  # its graph is open
    seen = []
    index.add([Record("a new day", "new"), Record("a newer day", 9999)], on_documents=seen.append)
    assert seen == [2]
    assert index.search("a new day", 1)[0]["id"] == "new"
    assert len(built) == len(TEXTS)


def test_an_empty_index_grows(tiny_bert_folder, tmp_path):
    index = EmbeddingIndex.build(tmp_path / "index", tiny_bert_folder, [])
    assert index.search("a day") == []
    assert EmbeddingIndex.load(tmp_path / "index").search(["a day"], exact=True) == [[]]
    index.add([Record("a day", "x")])
    assert ids([index.search("a day")]) == [["x"]]


def test_prompts_and_lengths_are_kept(tiny_bert_folder, tmp_path):
    options = {"query_prompt": "good ", "document_prompt": "bad ", "truncate_dim": 20, "max_length": 6}
    index = EmbeddingIndex.build(tmp_path / "index", tiny_bert_folder, TEXTS, **options)
    encoder = SentenceEncoder.from_pretrained(tiny_bert_folder, max_seq_length=6, truncate_dim=20)
    stored = encoder.encode(TEXTS, prompt="bad ")
    expected = nearest(encoder.encode(QUERIES, prompt="good "), stored, 5)
    results = EmbeddingIndex.load(tmp_path / "index").search(QUERIES, 5, exact=True)
    np.testing.assert_allclose([[hit["score"] for hit in hits] for hits in results], expected[1], atol=1e-5)
    assert index.settings["dimension"] == 20


def test_embeddings_at_hand_are_taken(tiny_bert_folder, built, vectors, tmp_path, monkeypatch):
    texts = []
    encode = SentenceEncoder.encode
    with monkeypatch.context() as patch:
        patch.setattr(SentenceEncoder, "encode", lambda self, x, *a, **o: texts.extend(x) or encode(self, x, *a, **o))
        index = EmbeddingIndex.build(tmp_path / "index", tiny_bert_folder, TEXTS, embeddings=vectors, window=100)
    assert texts == TEXTS[:1]
    assert ids(index.search(QUERIES, 5, exact=True)) == ids(built.search(QUERIES, 5, exact=True))
    for given, message in (
        (vectors[::-1], "the first embedding is not the model's for the first document"),
        (vectors[:-1], "one for each embedding, but got more"),
        (np.concatenate([vectors, vectors[:1]]), f"expected {len(TEXTS) + 1} documents but got {len(TEXTS)}"),
        (vectors[:, :9], r"embeddings \(N, 32\) but got"),
    ):
        with pytest.raises(ValueError, match=message):
            EmbeddingIndex.build(tmp_path / "other", tiny_bert_folder, TEXTS, embeddings=given)
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


# --- additions that fail ----------------------------------------------------------------------------------------------


def test_a_failed_addition_leaves_nothing(index, tmp_path):
    before = index.search(QUERIES, 5, exact=True)

    def documents():
        yield from ("a good good day", "a bad bad day")
        raise RuntimeError("lost")

    twice = [[Record("x", "n"), Record("y", "n")], [Record("x", 5)], [Record("x", "5")]]  # 5 is there
    for documents_given, error in (*((given, ValueError) for given in twice), (documents(), RuntimeError)):
        with pytest.raises(error):
            index.add(documents_given, window=1)
        for each in (index, EmbeddingIndex.load(index.folder)):
            assert len(each) == len(TEXTS)
            assert each.search(QUERIES, 5, exact=True) == before
    size = index.settings["documents_bytes"]
    assert (index.folder / "documents.jsonl").stat().st_size > size  # what the addition had written
    index.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "documents.jsonl").stat().st_size == size
    assert index.add(["good good good bad"]) == 1
    assert index.search("good good good bad", 1, exact=True)[0]["id"] == len(TEXTS)


def killed_while_adding(folder):
    def documents():
        yield from ("a good good day", "a bad bad day")
        os.kill(os.getpid(), signal.SIGKILL)

    EmbeddingIndex.load(folder).add(documents(), window=1)


def test_a_killed_addition_leaves_nothing(index):
    process = multiprocessing.get_context("spawn").Process(
        target=killed_while_adding, args=(index.folder,), daemon=True
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    again = EmbeddingIndex.load(index.folder)
    assert len(again) == len(TEXTS)
    assert again.add(["good good good bad"]) == 1
    assert again.search("good good good bad", 1)[0]["id"] == len(TEXTS)
    assert len((index.folder / "documents.jsonl").read_text().splitlines()) == len(TEXTS) + 1


def test_a_failed_build_leaves_nothing(tiny_bert_folder, tmp_path):
    with pytest.raises(ValueError, match="document id 'a' comes twice"):
        EmbeddingIndex.build(tmp_path / "index", tiny_bert_folder, [Record("x", "a"), Record("y", "a")])
    assert not list(tmp_path.iterdir())


def test_two_may_not_add_at_once(index):
    other = EmbeddingIndex.load(index.folder)

    def documents():
        with pytest.raises(OSError, match="another process is adding to"):
            other.add(["b"])
        yield "a good good good day"

    index.add(documents())
    with pytest.raises(ValueError, match=r"was changed since it was loaded. Load it again"):
        other.add(["b"])


# --- what is refused --------------------------------------------------------------------------------------------------


def test_another_model_is_refused(index, tiny_bert_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_bert_folder, other)
    assert EmbeddingIndex.load(index.folder, other).search(QUERIES[0], 1)[0]["text"] == QUERIES[0]
    path = other / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_norm_eps": 1e-3}))
    with pytest.raises(ValueError, match=r"was built with another model than .*other is now. Give the model"):
        EmbeddingIndex.load(index.folder, other)
    moved = index.settings | {"model": str(other)}
    (index.folder / "index.json").write_text(json.dumps(moved))
    index = EmbeddingIndex.load(index.folder)
    with pytest.raises(ValueError, match="was built with another model"):
        index.search("a day")
    with pytest.raises(ValueError, match="was built with another model"):
        index.add(["a day"])
    with pytest.raises(ValueError, match="queries of 32 values but got 31"):
        index.search(np.zeros((2, 31), np.float32))


def test_damage_is_noticed(index):
    graph = index.folder / index.settings["graph"]
    content = graph.read_bytes()
    for damaged, message in ((content[:-100], "is missing or damaged"), (b"\0" * len(content), "cannot be read")):
        graph.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"graph-\d+.usearch {message}.*Build the index again"):
            EmbeddingIndex.load(index.folder).search(QUERIES)
    graph.unlink()
    with pytest.raises(ValueError, match=r"graph-\d+.usearch is missing or damaged"):
        EmbeddingIndex.load(index.folder).search(QUERIES)
    os.truncate(index.folder / "vectors.bin", 1000)
    with pytest.raises(ValueError, match=r"vectors.bin is missing or cut off"):
        EmbeddingIndex.load(index.folder)
    (index.folder / "index.json").write_text('{"format": 7}')
    with pytest.raises(ValueError, match="format 1 but got 7"):
        EmbeddingIndex.load(index.folder)
    (index.folder / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"is no index. Make one: mlx-bert search build"):
        EmbeddingIndex.load(index.folder)


def test_without_usearch(index, tiny_bert_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    assert len(index.search(QUERIES, 2, exact=True)) == len(QUERIES)
    for call in (
        lambda: index.search(QUERIES),
        lambda: index.add(["a"]),
        lambda: EmbeddingIndex.build(tmp_path / "new", tiny_bert_folder, TEXTS),
    ):
        with pytest.raises(ImportError, match=r'needs usearch. Install it: pip install "mlx-bert\[search\]"'):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "i4"}, "dtype to be one of f32, f16, i8, binary but got 'i4'"),
        ({"metric": "manhattan"}, "metric to be one of cosine, dot, euclidean but got 'manhattan'"),
        ({"metric": "dot", "dtype": "i8"}, "dtype f32 or f16 for metric dot but got 'i8'"),
        ({"vectors": "int4"}, "vectors to be one of float32, int8 but got 'int4'"),
    ],
)
def test_bad_options(tiny_bert_folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingIndex.build(tmp_path / "index", tiny_bert_folder, TEXTS, **options)


def test_bad_calls(built, tiny_bert_folder):
    with pytest.raises(FileExistsError, match="exists already"):
        EmbeddingIndex.build(built.folder, tiny_bert_folder, TEXTS)
    with pytest.raises(FileExistsError, match="exists already"):
        built.save(built.folder)
    with pytest.raises(ValueError, match="top_k of at least 1 but got 0"):
        built.search("a", 0)
    with pytest.raises(ValueError, match="rescore_multiplier of at least 1 but got 0"):
        built.search("a", rescore_multiplier=0)


def test_an_index_is_replaced_on_request(index, tiny_bert_folder):
    EmbeddingIndex.build(index.folder, tiny_bert_folder, ["a day"], overwrite=True)
    assert len(EmbeddingIndex.load(index.folder)) == 1


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_stored_vectors(tmp_path, kind):
    values = RANDOM.normal(size=(9, 7)).astype(np.float32)
    values[3] = 0
    (tmp_path / "rows").write_bytes(row_bytes(values, kind) + b"more")
    stored = StoredVectors(tmp_path / "rows", kind, 9, 7)
    tolerance = 0 if kind == "float32" else np.abs(values).max() / 127 / 2 * 1.001
    np.testing.assert_allclose(stored[2:5], values[2:5], rtol=0, atol=tolerance)
    np.testing.assert_allclose(stored[np.array([8, 0])], values[[8, 0]], rtol=0, atol=tolerance)
    assert (stored.shape, len(stored)) == ((9, 7), 9)
