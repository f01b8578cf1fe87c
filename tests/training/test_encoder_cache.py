"""The outputs of a frozen encoder on disk: found again, never stale, never half written."""

import logging
import os
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

import mlx_bert.training.encoder_cache as encoder_cache
from mlx_bert.data.collate import Collator, tokenize_examples
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.encoder_cache import cache_encoder, cache_on_disk, different_texts, fingerprint
from mlx_bert.training.trainer import Trainer


@pytest.fixture
def parts(toy):
    """An encoder in evaluation mode, examples of different lengths, a collator."""
    return toy.model().bert.eval(), tokenize_examples(toy.examples(11), toy.tokenizer), Collator(toy.tokenizer.pad_id)


def no_encoder(*args, **kwargs):
    raise AssertionError("the encoder ran")


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_file_has_what_memory_has_and_is_found_again(parts, tmp_path, monkeypatch, side):
    bert, examples, _ = parts
    collate = Collator(0, side)
    wanted = cache_encoder(bert, examples, collate, 4)
    found, path = cache_on_disk(tmp_path / "cache", 10, bert, examples, collate, 4)
    for example, reference in zip(found, wanted, strict=True):
        assert reference["hidden_states"].base is None  # no padding stays in memory
        assert isinstance(example["hidden_states"], np.memmap)
        np.testing.assert_array_equal(example["hidden_states"], reference["hidden_states"])
        assert example["labels"] == reference["labels"]
    monkeypatch.setattr(encoder_cache, "LengthBucketSampler", no_encoder)
    again, same = cache_on_disk(tmp_path / "cache", 10, bert, examples, collate, 3)  # another batch size
    assert same == path
    np.testing.assert_array_equal(again[7]["hidden_states"], found[7]["hidden_states"])
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [path.name]


def test_any_change_of_encoder_or_texts_is_another_file(parts, toy):
    bert, examples, collate = parts
    digests = {fingerprint(bert, examples, collate)}
    assert fingerprint(toy.model().bert, [{**e, "labels": 9} for e in examples], collate) in digests
    digests.add(fingerprint(bert, examples[::-1], collate))
    digests.add(fingerprint(bert, examples[:-1], collate))
    changed = {**examples[0], "input_ids": examples[0]["input_ids"].copy()}
    changed["input_ids"][1] += 1
    digests.add(fingerprint(bert, [changed, *examples[1:]], collate))
    masked = {**examples[0], "attention_mask": np.r_[np.ones(len(examples[0]["input_ids"]) - 1), 0]}
    digests.add(fingerprint(bert, [masked, *examples[1:]], collate))
    digests.add(fingerprint(bert, examples, Collator(0, "left")))
    layer = bert.encoder.layers[1].mlp
    name = next(name for name, child in layer.children().items() if "weight" in child)
    layer[name].weight = layer[name].weight + mx.eye(*layer[name].weight.shape) * 1e-6
    digests.add(fingerprint(bert, examples, collate))
    bert.config = replace(bert.config, layer_norm_eps=1e-3)  # of equal weights
    digests.add(fingerprint(bert, examples, collate))
    assert len(digests) == 8
    ids = np.array([2, 5, 3])
    texts = [{"input_ids": ids, "attention_mask": ids > 2}, {"input_ids": ids, "token_type_ids": ids > 2}]
    assert different_texts([*texts, *texts], collate)[1] == [[0], [1]] * 2


def test_a_file_that_was_cut_off_or_is_of_another_kind_is_written_anew(parts, tmp_path):
    bert, examples, collate = parts
    wanted, path = cache_on_disk(tmp_path, 10, bert, examples, collate, 4)
    reference = np.array(wanted[3]["hidden_states"])
    del wanted
    for damaged in (path.read_bytes()[:-7], b"", b"no array at all"):
        path.write_bytes(damaged)
        found, _ = cache_on_disk(tmp_path, 10, bert, examples, collate, 4)
        np.testing.assert_array_equal(found[3]["hidden_states"], reference)
    for other in (np.zeros((3, 2), np.float32), np.load(path).astype(np.float64) + 1):
        np.save(path, other)
        found, _ = cache_on_disk(tmp_path, 10, bert, examples, collate, 4)
        np.testing.assert_array_equal(found[3]["hidden_states"], reference)


def test_nothing_stays_of_a_stopped_run_or_a_full_disk(parts, tmp_path, monkeypatch):
    bert, examples, collate = parts
    answers = iter([False, True])
    with pytest.raises(KeyboardInterrupt, match="stopped while the frozen encoder ran"):
        cache_on_disk(tmp_path, 10, bert, examples, collate, 4, stop=lambda: next(answers))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(encoder_cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(OSError, match="expected 1 MiB free"):
        cache_on_disk(tmp_path, 10, bert, examples, collate, 4)
    assert not list(tmp_path.iterdir())


def test_the_longest_unused_files_make_room(parts, tmp_path):
    bert, examples, collate = parts
    for name, age in (("old", 3000), ("older", 9000), ("new", 10)):
        file = tmp_path / f"encoder_outputs_{name}.npy"
        file.write_bytes(bytes(400_000))
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime - age))
    (tmp_path / "mine.npy").write_bytes(bytes(900_000))
    abandoned = tmp_path / ".encoder_outputs_x.npy.123"
    abandoned.touch()
    os.utime(abandoned, (0, 0))
    other_run = tmp_path / ".encoder_outputs_y.npy.124"
    other_run.touch()
    _, path = cache_on_disk(tmp_path, 1, bert, examples, collate, 4)  # 1 MiB
    others = {"encoder_outputs_old.npy", "encoder_outputs_new.npy", "mine.npy", other_run.name}
    assert {file.name for file in tmp_path.iterdir()} == {*others, path.name}
    os.utime(path, (0, 0))
    _, same = cache_on_disk(tmp_path, 1, bert, examples, collate, 4)
    assert same == path
    assert path.stat().st_mtime > (tmp_path / "encoder_outputs_new.npy").stat().st_mtime  # used last
    # what is kept counts, and does not go
    keep = [tmp_path / "encoder_outputs_old.npy", path]
    _, next_path = cache_on_disk(tmp_path, 1, bert, examples[1:], collate, 4, keep=keep)
    assert {file.name for file in tmp_path.iterdir()} == {*others, path.name, next_path.name}
    (tmp_path / "encoder_outputs_new.npy").write_bytes(bytes(700_000))
    cache_on_disk(tmp_path, 1, bert, examples[2:], collate, 4, keep=keep)
    assert not (tmp_path / "encoder_outputs_new.npy").exists()
    assert all(file.exists() for file in keep)


def arguments(path, **changes):
    base = {"output_dir": str(path), "epochs": 2, "batch_size": 8, "progress": False, "freeze": "backbone"}
    return TrainingArgs(**{**base, "save_every": "no", **changes})


def test_runs_train_from_disk_as_from_memory(toy, tmp_path, monkeypatch):
    found = []
    for name, folder in (("memory", None), ("disk", tmp_path / "cache"), ("again", tmp_path / "cache")):
        if name == "again":
            monkeypatch.setattr(encoder_cache, "LengthBucketSampler", no_encoder)
        args = arguments(tmp_path / name, cache_dir=folder and str(folder))
        trainer = Trainer(toy.model(), args, toy.examples(30), toy.examples(9, 1), toy.tokenizer)
        trainer.train()
        assert trainer.feed.is_cached
        found.append(np.array(trainer.model.head.output.weight))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_what_cannot_be_cached_is_said_and_trained_all_the_same(toy, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    args = arguments(tmp_path / "a", cache_dir=str(tmp_path / "file" / "cache"), epochs=1)
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(toy.model(), args, toy.examples(8), tokenizer=toy.tokenizer)
        trainer.train()
    assert not trainer.feed.is_cached
    assert "cache_dir cannot be used" in caplog.text
    args = arguments(tmp_path / "b", cache_limit_mb=1)
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(toy.model(), args, toy.examples(2400), tokenizer=toy.tokenizer)
        trainer.feed.cache(trainer.model.bert)
    assert "more than cache_limit_mb (1): it runs over them in every epoch" in caplog.text
    with pytest.raises(ValueError, match="expected cache_dir to be None without cache_encoder"):
        arguments(tmp_path, cache_dir="x", cache_encoder=False)


def test_stopping_while_the_encoder_runs_stops_the_run(toy, tmp_path):
    trainer = Trainer(toy.model(), arguments(tmp_path / "run"), toy.examples(30), tokenizer=toy.tokenizer)
    trainer._call = lambda hook, *values: setattr(trainer, "_stop", True)  # when the run begins, before the encoder
    with pytest.raises(KeyboardInterrupt, match="stopped while the frozen encoder ran"):
        trainer.train()
