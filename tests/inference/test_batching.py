"""Batches: every text once, within the budget, little padding; memory back to where it was."""

import ctypes

import mlx.core as mx
import numpy as np
import pytest

import mlx_bert
from mlx_bert import blas
from mlx_bert.inference import batching
from mlx_bert.inference.batching import BUCKET, bounded_cache, plan_batches, round_up, run_batches, token_budget


def padded(lengths, batch, bucket=BUCKET):
    return round_up(max(lengths[i] for i in batch), bucket) * len(batch)


@pytest.mark.parametrize("budget", [1, 64, 512, 4096])
def test_plan_is_a_partition_within_the_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 300, 500).tolist()
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    assert all(padded(lengths, batch) <= budget or len(batch) == 1 for batch in batches)
    assert lengths[batches[0][0]] == max(lengths)


def test_plan_pads_little_and_fills_batches():
    lengths = np.clip(np.random.default_rng(0).lognormal(3.4, 0.8, 2000), 3, 256).astype(int).tolist()
    batches = plan_batches(lengths, 4096)
    total = sum(padded(lengths, batch) for batch in batches)
    assert total / sum(lengths) < 1.15
    assert len(batches) < 2 * total / 4096


def test_plan_edges():
    assert plan_batches([], 64) == []
    assert plan_batches([3, 64, 5], token_budget=64) == [[1], [2, 0]]
    assert plan_batches([500], token_budget=64) == [[0]]


def test_a_cpu_takes_small_batches(monkeypatch):
    assert token_budget(2) == 256
    assert token_budget(32) == batching.CPU_BUDGET
    monkeypatch.setattr(batching.mx, "default_device", lambda: mx.Device(mx.gpu))
    assert token_budget(32) == 4096


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_a_batch_for_each_core_is_evaluated_at_once(encoder, monkeypatch, cores):
    streams = [mx.default_stream(mx.cpu), *(mx.new_stream(mx.cpu) for _ in range(cores - 1))]
    monkeypatch.setattr(batching, "compute_streams", lambda: streams)
    together, start = [], mx.async_eval
    monkeypatch.setattr(batching.mx, "async_eval", lambda arrays: (together.append(len(arrays)), start(arrays)))
    texts = [f"text {i} " * 20 for i in range(7)]
    seen = list(run_batches(texts, encoder.tokenizer, lambda batch, _: batch.input_ids * 2, batch_size=1))
    assert sorted(i for indices, _ in seen for i in indices) == list(range(7))
    batches = len(seen)
    assert together == [cores] * (batches // cores) + [batches % cores] * (batches % cores > 0)


def test_forward_sees_no_mask_when_nothing_is_padded(encoder):
    masks = []

    def forward(batch, encodings):
        masks.append(batch.attention_mask)
        return batch.input_ids

    list(run_batches(["one two three four five six"], encoder.tokenizer, forward))
    assert masks[0] is None
    list(run_batches(["one two"], encoder.tokenizer, forward))
    assert masks[1].shape == (1, BUCKET)
    assert masks[1].sum().item() == 4


def test_rows_are_padded_further_on_a_gpu(encoder, monkeypatch):
    monkeypatch.setattr(batching, "bucket_size", lambda: batching.GPU_BUCKET)
    for lengths, width in (((1, 20), 32), ((1, 40), 64)):
        texts = ["the " * length for length in lengths]
        (output,) = (output for _, output in run_batches(texts, encoder.tokenizer, lambda batch, _: batch.input_ids))
        assert output.shape == (2, width)
    monkeypatch.undo()
    assert batching.bucket_size() == BUCKET
    monkeypatch.setattr(batching.mx, "default_device", lambda: mx.Device(mx.gpu))
    assert batching.bucket_size() == batching.GPU_BUCKET == 32


def test_windows_give_every_text_once(encoder):
    texts = [f"text {i} " * (i % 40) for i in range(700)]
    seen = {}
    for indices, ids in run_batches(texts, encoder.tokenizer, lambda batch, _: batch.input_ids, batch_size=1):
        seen |= dict(zip(indices, np.asarray(ids), strict=True))
    assert sorted(seen) == list(range(700))
    for i in (0, 1, 399, 640):
        expected = encoder.tokenizer.encode([texts[i]])[0].ids
        assert seen[i][: len(expected)].tolist() == expected


def test_the_first_window_is_small():
    """Nothing is computed while it is tokenised. 400 characters are about 102 tokens."""
    windows = list(batching._windows(list(range(1000)), [400] * 1000, 1024))
    assert [len(window) for window in windows[:6]] == [21, 41, 81, 161, 161, 161]
    assert [index for window in windows for index in window] == list(range(1000))


def test_cache_limit_is_put_back():
    before = mx.set_cache_limit(123_456_789)
    try:
        with bounded_cache(1000):
            assert mx.set_cache_limit(1000) == 1000
        assert mx.set_cache_limit(before) == 123_456_789
    finally:
        mx.set_cache_limit(before)


def test_cache_limit_of_overlapping_jobs():
    """The first job to end must not free the second, nor the second keep what it found."""
    before = mx.set_cache_limit(123_456_789)

    def now():
        mx.set_cache_limit(limit := mx.set_cache_limit(0))
        return limit

    try:
        first, second = bounded_cache(2000), bounded_cache(1000)
        first.__enter__()
        second.__enter__()
        assert now() == 1000
        first.__exit__(None, None, None)
        assert now() == 1000
        third = bounded_cache(3000)
        third.__enter__()
        second.__exit__(None, None, None)
        assert now() == 3000
        third.__exit__(None, None, None)
        assert now() == 123_456_789
    finally:
        mx.set_cache_limit(before)


def test_memory_is_flat_over_varying_lengths(encoder):
    """What stays allocated after a call does not grow with the number of lengths seen."""
    random = np.random.default_rng(0)

    def calls(count):
        for length in random.integers(1, 60, count):
            encoder.encode("a " * int(length))
        mx.clear_cache()
        return mx.get_active_memory()

    first = calls(5)
    assert calls(60) <= first + 64 * 1024


def blas_threads():
    openblas = blas._openblas()
    return ctypes.CDLL(str(openblas)).scipy_openblas_get_num_threads64_() if openblas else None


@pytest.mark.skipif(mlx_bert.blas_backend != "openblas", reason="numpy's OpenBLAS is not in use")
def test_products_have_one_thread_while_batches_run_side_by_side(encoder):
    openblas = ctypes.CDLL(str(blas._openblas()))
    before = blas_threads()
    openblas.scipy_openblas_set_num_threads64_(2)
    try:
        seen = []

        def forward(batch, encodings):
            seen.append(blas_threads())
            return batch.input_ids

        list(run_batches(["one text"], encoder.tokenizer, forward))
        assert seen == [2]
        list(run_batches(["one text " * 30] * 3, encoder.tokenizer, forward, batch_size=1))
        assert seen[1:] == [1, 1]
        assert blas_threads() == 2
        outer = blas.single_threaded()
        with outer, blas.single_threaded():
            assert blas_threads() == 1
        assert blas_threads() == 2
    finally:
        openblas.scipy_openblas_set_num_threads64_(before)


def test_a_long_batch_alone_is_spread_over_the_cores(encoder, monkeypatch):
    streams = [mx.default_stream(mx.cpu), mx.new_stream(mx.cpu)]
    monkeypatch.setattr(batching, "compute_streams", lambda: streams)
    monkeypatch.setattr(batching.cpu, "SPREAD_FROM", 32)
    monkeypatch.setattr(batching, "CPU_BUDGET", 64)
    seen = []

    def forward(batch, encodings):
        seen.append((len(batching.cpu._own.streams), batching.blas._users > 0))
        return batch.input_ids

    for texts in (["word " * 60], ["word " * 60, "word " * 60], ["word"]):
        list(run_batches(texts, encoder.tokenizer, forward, batch_size=1, max_length=64))
        seen.append(None)
    assert seen[:2] == [(2, True), None]  # alone: both streams, and one thread for each product
    assert [spread for spread, _ in seen[2:4]] == [0, 0]  # two batches have a stream each
    assert seen[5] == (2, False)  # too short: by_rows leaves it in one piece, and products have all threads
