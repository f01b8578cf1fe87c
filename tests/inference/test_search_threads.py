"""Search, mining and similarity from several threads: one thread alone may touch the device."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest

from mlx_bert.inference import quantized_search, search, similarity
from mlx_bert.inference.batching import on_device
from mlx_bert.inference.quantization import quantize_embeddings

RANDOM = np.random.default_rng(0)
QUERIES = RANDOM.normal(size=(5, 16)).astype(np.float32)
CORPUS = RANDOM.normal(size=(60, 16)).astype(np.float32)
RANGES = np.stack([CORPUS.min(axis=0), CORPUS.max(axis=0)])

CALLS = {
    "nearest": lambda kind: search.nearest(kind(QUERIES), kind(CORPUS), 5, corpus_chunk_size=20),
    "semantic_search": lambda kind: search.semantic_search(kind(QUERIES), kind(CORPUS), 5, score_function="manhattan"),
    "paraphrase_mining": lambda kind: search.paraphrase_mining_embeddings(kind(CORPUS), block=7),
    "community_detection": lambda kind: search.community_detection(kind(CORPUS), 0.3, 2, batch_size=9),
    "mine_hard_negatives": lambda kind: search.mine_hard_negatives(
        kind(QUERIES), kind(CORPUS), [[n] for n in range(5)], absolute_margin=-1.0
    ),
    "quantized": lambda kind: quantized_search.nearest_quantized(
        QUERIES, quantize_embeddings(CORPUS, "int8", RANGES), "int8", 5, RANGES
    ),
    "bits": lambda kind: quantized_search.nearest_quantized(QUERIES, quantize_embeddings(CORPUS, "ubinary"), "ubinary"),
    "similarity": lambda kind: similarity.similarity(kind(QUERIES), kind(CORPUS), "euclidean"),
    "similarity_pairwise": lambda kind: similarity.similarity_pairwise(kind(QUERIES), kind(CORPUS[:5])),
}


def comparable(found):
    return [np.asarray(part) for part in found] if isinstance(found, tuple) else found


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", [np.array, mx.array])
def test_threads_find_what_the_main_thread_finds_without_touching_the_device(name, kind, monkeypatch):
    wanted = comparable(CALLS[name](kind))
    touched = set()
    record = lambda: touched.add(threading.current_thread().name)  # noqa: E731
    for module, function in (
        (search, "as_matrix"),
        (search, "_best"),
        (similarity, "as_matrix"),
        (quantized_search, "_integer_products"),
    ):
        own = getattr(module, function)
        monkeypatch.setattr(module, function, lambda *args, own=own: (record(), own(*args))[1])
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(CALLS[name], [kind] * 6))
    assert touched == {"mlx-bert-device"}
    for each in found:
        for ours, theirs in zip(comparable(each), wanted, strict=True):
            if isinstance(ours, list | dict | tuple):
                assert ours == theirs
            else:
                np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-6)


def test_the_encoders_own_similarity(encoder):
    a, b = encoder.encode(["a cat", "the sun"]), encoder.encode(["a dog", "rain"])
    with ThreadPoolExecutor(2) as pool:
        every = list(pool.map(encoder.similarity, [a] * 4, [b] * 4))
        rows = list(pool.map(encoder.similarity_pairwise, [a] * 4, [b] * 4))
    for found, pairwise in zip(every, rows, strict=True):
        np.testing.assert_allclose(np.asarray(found), a @ b.T, atol=1e-5)
        np.testing.assert_allclose(np.asarray(pairwise), np.diag(a @ b.T), atol=1e-5)


def test_similarity_has_a_gradient_in_the_main_thread():
    loss = lambda a: similarity.similarity(a, mx.array(CORPUS)).sum()  # noqa: E731
    assert mx.abs(mx.grad(loss)(mx.array(QUERIES))).sum().item() > 0


def test_a_turn_within_a_turn():
    """A function of the user's, such as an activation, may itself compare embeddings."""
    within = lambda: on_device(lambda: similarity.similarity(QUERIES, CORPUS).shape)  # noqa: E731
    assert within() == (5, 60)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(within).result(timeout=20) == (5, 60)


def test_the_process_ends_well_after_searching_in_a_thread():
    """A thread with streams of its own, not cleared, aborts the process at its end."""
    code = """
import threading, mlx_bert, numpy as np
from mlx_bert.inference.search import community_detection, nearest
from mlx_bert.inference.similarity import similarity
rows = np.eye(4, dtype=np.float32)
def work():
    nearest(rows, rows, 2), community_detection(rows, 0.5, 1), np.asarray(similarity(rows, rows))
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
