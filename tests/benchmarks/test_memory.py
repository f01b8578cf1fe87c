"""Memory stays flat over calls of varying length, from one thread and from several together."""

import mmap

import pytest

from benchmarks import memory
from mlx_bert.inference.encode import SentenceEncoder


@pytest.mark.parametrize("threads", [1, 4])
def test_memory_is_flat(tiny_bert_folder, threads):
    encoder = SentenceEncoder.from_pretrained(tiny_bert_folder)
    rows = memory.shared_calls(encoder, 300, threads)
    assert [row["calls"] for row in rows] == [1, 30, 60, 90, 100, 120, 150, 180, 210, 240, 270, 300]
    settled = [row for row in rows if row["calls"] >= 100]
    assert settled[-1]["active MB"] <= settled[0]["active MB"] + 0.5
    assert settled[-1]["cache MB"] <= settled[0]["cache MB"] + 4
    assert memory.growth_mb(rows) < 12


def test_what_grows_is_seen(tiny_bert_folder, monkeypatch):
    """An encoder that keeps a quarter MB of every call, mapped anew: the heap may have room from earlier tests."""
    kept = []

    def keep() -> None:
        kept.append(mmap.mmap(-1, 240_000))
        kept[-1].write(b"1" * 240_000)

    encode = SentenceEncoder.encode
    monkeypatch.setattr(SentenceEncoder, "encode", lambda *args: (keep(), encode(*args))[1])
    rows = memory.shared_calls(SentenceEncoder.from_pretrained(tiny_bert_folder), 300, 1)
    assert memory.growth_mb(rows) > 30


def test_changed_results_are_noticed(tiny_bert_folder, monkeypatch):
    encode, calls = SentenceEncoder.encode, []
    monkeypatch.setattr(SentenceEncoder, "encode", lambda *args: (calls.append(1), encode(*args) + len(calls))[1])
    with pytest.raises(ValueError, match="call 1 with 2 threads gave other embeddings than the first"):
        memory.shared_calls(SentenceEncoder.from_pretrained(tiny_bert_folder), 1, 2)


def test_errors(tiny_bert_folder):
    encoder = SentenceEncoder.from_pretrained(tiny_bert_folder)
    with pytest.raises(ValueError, match="at least 1 call and 1 thread but got 0 and 1"):
        memory.shared_calls(encoder, 0, 1)
    with pytest.raises(ValueError, match="but got 5 and 0"):
        memory.shared_calls(encoder, 5, 0)
