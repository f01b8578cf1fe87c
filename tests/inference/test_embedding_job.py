"""Jobs that are interrupted, refused, or out of room; and fingerprints."""

import errno
import json
import os
import shutil
import sys

import mlx.core as mx
import numpy as np
import pytest

from mlx_bert.inference.embedding_files import value_ranges, write_embeddings
from mlx_bert.inference.embedding_job import EmbeddingJob
from mlx_bert.inference.fingerprint import fingerprint
from mlx_bert.inference.quantization import quantize_embeddings
from mlx_bert.inference.text_files import Record, TextFiles

VECTORS = np.random.default_rng(0).normal(size=(110, 9)).astype(np.float32)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("".join(f"{number}\n" for number in range(len(VECTORS))))
    return path


def job_of(texts, window=20, **settings):
    return EmbeddingJob(TextFiles(texts), texts.with_name("out.npy"), {"model": "m", **settings}, window)


def look_up(texts):
    return VECTORS[[int(text) for text in texts]]


def stop_after(count):
    """An encoder whose process dies after so many windows."""

    def encode(texts):
        nonlocal count
        count -= 1
        if count < 0:
            raise KeyboardInterrupt
        return look_up(texts)

    return lambda: encode


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_interrupted_and_resumed(texts, precision):
    job = job_of(texts)
    assert job.open(resume=True) == 0
    with pytest.raises(KeyboardInterrupt):
        job.run(stop_after(2))
    job = job_of(texts)
    assert job.open(resume=True) == 40
    seen = []
    job.run(lambda: look_up, seen.append)
    assert seen == [20, 20, 20, 10]
    assert job.finish(precision) == 110
    expected = quantize_embeddings(VECTORS, precision)
    stored = np.load(texts.with_name("out.npy"))
    assert stored.dtype == expected.dtype
    np.testing.assert_array_equal(stored, expected)
    assert sorted(entry.name for entry in texts.parent.iterdir()) == ["numbers.txt", "out.npy"]


def test_a_finished_job_needs_no_model(texts):
    job = job_of(texts)
    job.run(lambda: look_up)
    job = job_of(texts)
    assert job.open(resume=True) == 110
    job.run(lambda: pytest.fail("loaded"))
    assert job.finish() == 110


def test_a_damaged_window_is_done_again(texts):
    job = job_of(texts)
    job.run(lambda: look_up)
    path = job.folder / "window-00000001.npy"
    path.write_bytes(path.read_bytes()[:-40])
    np.save(job.folder / "window-00000002.npy", VECTORS[:3])
    assert job.open(resume=True) == 70
    job.run(lambda: look_up)
    job.finish()
    np.testing.assert_array_equal(np.load(texts.with_name("out.npy")), VECTORS)


def test_earlier_work_is_not_taken_unasked(texts):
    with pytest.raises(KeyboardInterrupt):
        job_of(texts).run(stop_after(1))
    with pytest.raises(FileExistsError, match=r"out\.npy\.partial holds 20 of 110 embeddings .* with --resume"):
        job_of(texts).open(resume=False)
    with pytest.raises(ValueError, match=r"work of another job: model was 'm' and is 'other'. Give the same"):
        job_of(texts, model="other").open(resume=True)
    with pytest.raises(ValueError, match="window was 20 and is 30"):
        job_of(texts, window=30).open(resume=True)
    with pytest.raises(ValueError, match="prompt was None and is 'query: '"):
        job_of(texts, prompt="query: ").open(resume=True)
    os.utime(texts, ns=(1, 1))
    with pytest.raises(ValueError, match=r"input was \[\['numbers.txt', 330, .* and is \[\['numbers.txt', 330, 1\]\]"):
        job_of(texts).open(resume=True)


def test_a_file_that_was_being_written_is_cleared_away(texts):
    with pytest.raises(KeyboardInterrupt):
        job_of(texts).run(stop_after(1))
    leftover = job_of(texts).folder / ".window-00000001.npy.tmp"
    leftover.write_bytes(b"half")
    assert job_of(texts).open(resume=True) == 20
    assert not leftover.exists()


def test_nothing_is_left_of_a_job_that_did_nothing(texts):
    with pytest.raises(KeyboardInterrupt):
        job_of(texts).run(stop_after(0))
    assert not job_of(texts).folder.exists()


@pytest.mark.parametrize(
    "change",
    [lambda text: text + "0\n", lambda text: text[:-4], lambda text: text[::-1], lambda text: text.replace("3", "4")],
)
def test_an_input_that_changes_meanwhile_is_noticed(texts, change):
    job = job_of(texts)
    job.run(lambda: look_up)
    texts.write_text(change(texts.read_text()))
    os.utime(texts, ns=(1, 1))  # a file that is written within the clock's tick has the old time
    with pytest.raises(ValueError, match="the input was changed while it was read"):
        job.finish()
    assert not texts.with_name("out.npy").exists()


def test_a_full_disk_keeps_what_is_done(texts, monkeypatch):
    job = job_of(texts)
    with pytest.raises(KeyboardInterrupt):
        job.run(stop_after(2))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mlx_bert.checkpoint.os.fsync", full)
        message = r"the disk is full. 40 of 110 embeddings are kept in .*partial. Make room and continue with --resume"
        with pytest.raises(OSError, match=message):
            job.run(lambda: look_up)
    assert not [entry for entry in job.folder.iterdir() if entry.name.startswith(".")]
    job.run(lambda: look_up)
    with monkeypatch.context() as patch:
        patch.setattr("mlx_bert.checkpoint.os.fsync", full)
        with pytest.raises(OSError, match="110 of 110 embeddings are kept"):
            job.finish()
    assert not texts.with_name("out.npy").exists()
    assert job.finish() == 110


def test_no_texts_make_an_empty_file(tmp_path):
    (tmp_path / "none.txt").write_text("")
    job = job_of(tmp_path / "none.txt")
    job.run(lambda: lambda texts: np.zeros((len(texts), 9), np.float32))
    assert job.finish() == 0
    assert np.load(tmp_path / "out.npy").shape == (0, 9)


def test_a_window_has_texts(texts):
    with pytest.raises(ValueError, match="a window of at least 1 text but got 0"):
        job_of(texts, window=0)


def test_ranges_of_parts():
    np.testing.assert_array_equal(
        value_ranges([VECTORS[:0], VECTORS[:50], VECTORS[50:]]), np.stack([VECTORS.min(0), VECTORS.max(0)])
    )
    assert value_ranges([VECTORS[:1]]) is None


def test_parquet_without_texts_or_pyarrow(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    assert write_embeddings([([], VECTORS[:0])], tmp_path / "none.parquet") == 0
    assert pq.read_table(tmp_path / "none.parquet").schema.field("embedding").type.list_size == 9
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'Install it: pip install "mlx-bert\[parquet\]"'):
        write_embeddings([([Record("a")], VECTORS[:1])], tmp_path / "one.parquet")


def test_fingerprints_tell_models_apart(tiny_bert_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bert_folder, copy)
    before = fingerprint(tiny_bert_folder)
    (copy / "README.md").write_text("a card")
    assert fingerprint(copy) == before
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-6}))
    changed = fingerprint(copy)
    assert changed != before
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-4] + b"\0\0\0\1")
    assert fingerprint(copy) not in (before, changed)


class TwoProcesses:
    """A group of which this process is one, and the other sends what ``other`` makes of our own."""

    def __init__(self, monkeypatch, other, rank=0):
        self.number = rank
        turn = -1 if rank else 1
        monkeypatch.setattr(mx.distributed, "all_gather", lambda x, group: mx.concatenate([x, other(x)][::turn]))

    def rank(self):
        return self.number

    def size(self):
        return 2


def test_processes_that_differ_are_refused(texts, monkeypatch):
    job = EmbeddingJob(TextFiles(texts), texts.with_name("out.npy"), {}, 20, TwoProcesses(monkeypatch, lambda x: x + 1))
    with pytest.raises(ValueError, match="the processes have different models, options or input files"):
        job.run(lambda: look_up)
    assert not job.folder.exists()


def test_an_odd_number_of_windows_is_shared(texts, monkeypatch):
    """Six windows for two, then one that is missing for two: the second process has nothing to do."""
    group = TwoProcesses(monkeypatch, lambda x: x)
    job = EmbeddingJob(TextFiles(texts), texts.with_name("out.npy"), {}, 20, group)
    seen = []
    job.run(lambda: lambda texts: seen.append(len(texts)) or look_up(texts))
    assert seen == [20, 20, 20]
    for number in (1, 3):  # in truth the other's work, which the stand-in cannot do
        np.save(job.folder / f"window-{number:08d}.npy", VECTORS[number * 20 :][:20])
    (job.folder / "window-00000005.npy").unlink()
    job.run(lambda: look_up)
    assert job.finish() == 110
    np.testing.assert_array_equal(np.load(texts.with_name("out.npy")), VECTORS)


def test_the_first_process_alone_keeps_what_is_done(texts, monkeypatch):
    """The others, on machines of their own, embed their share and write nothing."""
    said = iter([None, [[2.0]], [[0.0], [1.0]]])  # by the first: the digest is ours, two windows are missing

    def first(x):
        found = next(said, None)
        return x if found is None else mx.array(found)

    group = TwoProcesses(monkeypatch, first, rank=1)
    job = EmbeddingJob(TextFiles(texts), texts.with_name("out.npy"), {}, 20, group)
    job.folder.mkdir()
    np.save(job.folder / "window-00000003.npy", VECTORS[60:80])
    before = sorted(path.name for path in job.folder.iterdir())
    assert job.open(resume=False) == 0  # what lies here is not asked
    seen, told = [], []
    job.run(lambda: lambda texts: seen.extend(texts) or look_up(texts), told.append)
    assert seen == [str(number) for number in range(20, 40)]  # the second of the two
    assert told == [20, 20]
    assert sorted(path.name for path in job.folder.iterdir()) == before
