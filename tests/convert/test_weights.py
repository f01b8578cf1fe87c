"""Finding a checkpoint's tensors in any of its formats, and refusing folders that reach outside themselves."""

from __future__ import annotations

import json
import os
import struct

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert.paths import inside
from convert.weights import open_weights

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b.weight": torch.randn(5).half(), "c": torch.tensor([1, 2])}


def write_shards(folder, extension: str, index: str, names=("shard-1", "shard-2")):
    save = save_file if extension == "safetensors" else torch.save
    files = [f"{name}.{extension}" for name in names]
    parts = [{"a.weight": TENSORS["a.weight"]}, {"b.weight": TENSORS["b.weight"], "c": TENSORS["c"]}]
    for part, file in zip(parts, files, strict=True):
        save(part, folder / file)
    weight_map = {name: file for part, file in zip(parts, files, strict=True) for name in part}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


def assert_same(entries):
    assert entries.keys() == TENSORS.keys()
    for name, entry in entries.items():
        array = entry.load()
        assert (entry.shape, entry.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(np.array(array), TENSORS[name].numpy())


@pytest.mark.parametrize(
    ("extension", "index"),
    [("safetensors", "model.safetensors.index.json"), ("bin", "pytorch_model.bin.index.json")],
)
def test_shards(tmp_path, extension, index):
    write_shards(tmp_path, extension, index)
    assert_same(open_weights(tmp_path))


def test_one_file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert_same(open_weights(tmp_path))


def test_loads_again_and_again(tmp_path):
    """An entry keeps nothing: each load reads the file."""
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    entry = open_weights(tmp_path)["x"]
    mx.eval(entry.load())
    save_file({"x": torch.ones(2)}, tmp_path / "model.safetensors")
    assert entry.load().tolist() == [1, 1]


def test_safetensors_come_before_bin(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert_same(open_weights(tmp_path))


def test_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        open_weights(tmp_path)
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(FileNotFoundError, match="TensorFlow weights only"):
        open_weights(tmp_path)


def test_missing_shard(tmp_path):
    files = write_shards(tmp_path, "safetensors", "model.safetensors.index.json")
    (tmp_path / files[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks the shard 'shard-2\.safetensors'"):
        open_weights(tmp_path)


def test_index_and_shards_disagree(tmp_path):
    write_shards(tmp_path, "safetensors", "model.safetensors.index.json")
    index = tmp_path / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": {**data["weight_map"], "lost": "shard-1.safetensors"}}))
    with pytest.raises(ValueError, match=r"lack 1 tensors of the index.*'lost'"):
        open_weights(tmp_path)
    save_file(TENSORS, tmp_path / "shard-1.safetensors")
    with pytest.raises(ValueError, match="comes twice in the shards"):
        open_weights(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"x": 3}])
def test_malformed_index(tmp_path, weight_map):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"has no weight_map|names a shard that is not text"):
        open_weights(tmp_path)


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("name", ["../outside.bin", "a/../../outside.bin", "{absolute}", "..", "C:\\x", "link.bin"])
def test_shard_outside_the_folder(tmp_path, index, name):
    outside = tmp_path / "outside.bin"
    save_file(TENSORS, outside)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(outside)
    shard = name.format(absolute=outside)
    (folder / index).write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, shard)}))
    with pytest.raises(ValueError, match=r"expected a path inside|is a link to a place outside"):
        open_weights(folder)


def test_weights_that_link_outside(tmp_path):
    save_file(TENSORS, tmp_path / "secret")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to("../secret")
    with pytest.raises(ValueError, match="is a link to a place outside"):
        open_weights(folder)


def test_links_of_the_hub_cache_are_followed(tmp_path):
    """models--x/snapshots/<commit>/model.safetensors -> ../../blobs/<hash>, also from a module's folder."""
    snapshot = tmp_path / "models--x" / "snapshots" / "0123"
    (snapshot / "2_Dense").mkdir(parents=True)
    blobs = tmp_path / "models--x" / "blobs"
    blobs.mkdir()
    save_file(TENSORS, blobs / "abc")
    for folder, up in ((snapshot, "../.."), (snapshot / "2_Dense", "../../..")):
        (folder / "model.safetensors").symlink_to(f"{up}/blobs/abc")
        assert_same(open_weights(folder))
    (snapshot / "config.json").symlink_to("../../../other")
    with pytest.raises(ValueError, match="is a link to a place outside"):
        inside(snapshot, "config.json")


def test_relative_folder(tmp_path, monkeypatch):
    save_file(TENSORS, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert_same(open_weights("."))


def rewrite_header(path, change):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["a.weight"].update(data_offsets=[0, 1 << 40]), "does not fit"),
        (lambda h: h["a.weight"].update(shape=[1 << 40, 4]), "does not fit"),
        (lambda h: h["a.weight"].update(shape=[-3, 4]), "not a natural number"),
        (lambda h: h["a.weight"].update(dtype="F999"), "malformed or has a type that MLX lacks"),
        (lambda h: h["a.weight"].pop("dtype"), "malformed"),
    ],
)
def test_forged_header(tmp_path, change, message):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    rewrite_header(path, change)
    with pytest.raises(ValueError, match=message):
        open_weights(tmp_path)


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    size = path.stat().st_size
    for length in (0, 7, 8, 40, size - 1):
        os.truncate(path, length) if length < path.stat().st_size else None
        with pytest.raises(ValueError, match="is not a valid safetensors file"):
            open_weights(tmp_path)
        save_file(TENSORS, path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(ValueError, match="its header claims"):
        open_weights(tmp_path)


def test_metadata_that_mlx_refuses(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    rewrite_header(path, lambda header: header.update(__metadata__={"format": ["pt"]}))
    with pytest.raises(ValueError, match=r"model\.safetensors (cannot be read|is not a valid)"):
        open_weights(tmp_path)["c"].load()
