"""The on-disk format: streaming writer, lazy strict reader, atomic files and folders."""

import json
import struct
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import safetensors.numpy

import mlx_bert
from mlx_bert.checkpoint import (
    INDEX,
    TensorEntry,
    entries_of,
    finite_or_null,
    float_dtype,
    load_strict,
    new_file,
    new_folder,
    normalise_name,
    read_header,
    read_json,
    read_weights,
    ready_folder,
    write_json,
    write_safetensors,
)


def arrays() -> dict[str, mx.array]:
    mx.random.seed(0)
    return {
        "float32": mx.random.normal((3, 4)),
        "bfloat16": mx.random.normal((5,)).astype(mx.bfloat16),
        "float16": mx.random.normal((2, 2, 2)).astype(mx.float16),
        "transposed": mx.arange(6).reshape(2, 3).T,
        "empty": mx.zeros((0, 3)),
        "scalar": mx.array(2.5),
        "bool": mx.array([True, False]),
        "uint32": mx.array([1, 2**32 - 1], dtype=mx.uint32),
    }


def test_round_trip(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", entries_of(arrays()), {"note": "x"})
    read = read_weights(tmp_path)
    for name, array in arrays().items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert mx.array_equal(read[name], array), name


def test_other_readers_agree(tmp_path):
    written = {name: array for name, array in arrays().items() if name != "bfloat16"}
    write_safetensors(tmp_path / "model.safetensors", entries_of(written))
    read = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert read.keys() == written.keys()
    for name, array in written.items():
        assert np.array_equal(read[name], np.array(array))


def test_only_one_tensor_is_loaded_at_a_time(tmp_path):
    mx.clear_cache()
    names = [f"t{number}" for number in range(16)]
    entries = [TensorEntry(name, (512, 512), mx.float32, lambda: mx.random.normal((512, 512))) for name in names]
    base = mx.get_active_memory()
    mx.reset_peak_memory()
    write_safetensors(tmp_path / "model.safetensors", entries)
    assert mx.get_peak_memory() - base < 4 * 512 * 512 * 4  # of 16 tensors


def test_an_entry_must_keep_its_promise(tmp_path):
    entry = TensorEntry("a", (2, 3), mx.float32, lambda: mx.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"expected 'a' to be mlx.core.float32 \(2, 3\) but got"):
        write_safetensors(tmp_path / "model.safetensors", [entry])
    assert not list(tmp_path.iterdir())
    good = entries_of({"a": mx.zeros(1)})
    with pytest.raises(ValueError, match="tensor 'a' comes twice"):
        write_safetensors(tmp_path / "model.safetensors", good + good)


def write_raw(path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        (b"{}", b"", 2**60, "header claims"),
        (b"{}", b"", 3, "header claims"),
        (b"nope", b"", None, "header is not JSON"),
        (b"[" * 5000 + b"]" * 5000, b"", None, "header is not"),
        (b"[]", b"", None, "header is not an object"),
        (b'{"a": 1}', b"", None, "malformed"),
        (b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}', b"1234", None, "malformed or has a type"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', b"1234", None, "natural number"),
        (b'{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}', b"1234", None, "natural number"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', b"1234", None, "truncated"),
        (b'{"a": {"dtype": "F32", "shape": [99999999999], "data_offsets": [0, 4]}}', b"1234", None, "does not fit"),
        (
            b'{"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},'
            b' "b": {"dtype": "U8", "shape": [3], "data_offsets": [2, 5]}}',
            b"12345",
            None,
            "overlap",
        ),
    ],
)
def test_broken_safetensors_are_refused(tmp_path, header, data, length, message):
    write_raw(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path)


def test_too_short_a_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="it has 3 bytes"):
        read_header(tmp_path / "model.safetensors")


def test_shards_are_read_by_the_index(tmp_path):
    write_safetensors(tmp_path / "one.safetensors", entries_of({"a": mx.array([1.0])}))
    write_safetensors(tmp_path / "two.safetensors", entries_of({"b": mx.array([2.0])}))
    write_json(tmp_path / INDEX, {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    assert {name: array.item() for name, array in read_weights(tmp_path).items()} == {"a": 1.0, "b": 2.0}
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks two.safetensors"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_an_index_may_not_leave_its_folder(tmp_path, name):
    write_json(tmp_path / INDEX, {"weight_map": {"a": name}})
    with pytest.raises(ValueError, match="outside its folder"):
        read_weights(tmp_path)


def test_missing_weights_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="Convert it first: python -m convert"):
        read_weights(tmp_path)
    write_json(tmp_path / INDEX, {})
    with pytest.raises(ValueError, match="has no weight_map"):
        read_weights(tmp_path)


def test_what_mlx_cannot_read_is_said(tmp_path):
    write_raw(
        tmp_path / "model.safetensors",
        b'{"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}',
        b"12345678",
    )
    with pytest.raises(ValueError, match="MLX cannot read"):
        read_weights(tmp_path)


def test_old_names_are_read_as_new_ones(tmp_path):
    assert normalise_name("bert.embeddings.LayerNorm.gamma") == "bert.embeddings.LayerNorm.weight"
    assert normalise_name("bert.embeddings.LayerNorm.beta") == "bert.embeddings.LayerNorm.bias"
    assert normalise_name("embeddings.position_ids") is None
    assert normalise_name("classifier.weight") == "classifier.weight"
    both = {"n.gamma": mx.zeros(1), "n.weight": mx.zeros(1)}
    write_safetensors(tmp_path / "model.safetensors", entries_of(both))
    with pytest.raises(ValueError, match=r"'n.weight' comes twice"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ("[1]", "to hold a JSON object"), ("\udce9", "not valid JSON")]
)
def test_broken_json(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_json(tmp_path / "other.json")


def test_floats_that_json_has_not_become_null():
    data = {"r2": float("-inf"), "list": [float("nan"), 1.5, "x"], "n": None, "pair": (1, True)}
    assert finite_or_null(data) == {"r2": None, "list": [None, 1.5, "x"], "n": None, "pair": [1, True]}


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"word": "é"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"word": "é"}
    with pytest.raises(RuntimeError), new_file(tmp_path / "a.json") as file:  # noqa: PT012
        file.write("half")
        raise RuntimeError
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"word": "é"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as partial:  # noqa: PT012
        (partial / "half").write_text("x")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "out") as partial:
        (partial / "one").write_text("1")
    with pytest.raises(FileExistsError, match="exists already"), new_folder(tmp_path / "out"):
        pass
    with new_folder(tmp_path / "out", overwrite=True) as partial:
        (partial / "two").write_text("2")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_strict_loading_names_every_problem():
    weights = {"weight": mx.zeros((2, 3)), "extra": mx.zeros(1)}
    with pytest.raises(ValueError, match=r"Does config\.json belong") as caught:
        load_strict(nn.Linear(2, 2), weights)
    message = str(caught.value)
    assert "missing bias (2,)" in message
    assert "unexpected extra (1,)" in message
    assert "weight expected shape (2, 2) but got (2, 3)" in message


def test_float_dtype():
    assert float_dtype("bfloat16") == mx.bfloat16
    assert float_dtype(None) is None
    with pytest.raises(ValueError, match="expected dtype to be one of float32, float16, bfloat16 but got 'int8'"):
        float_dtype("int8")


def test_ready_folder_takes_what_can_be_read_as_it_is(tiny_bert_folder):
    assert ready_folder(tiny_bert_folder) == tiny_bert_folder


def test_ready_folder_converts_older_formats_once(tiny_bert_folder, tmp_path, monkeypatch):
    import torch
    from transformers import BertModel

    monkeypatch.setenv("MLX_BERT_CACHE", str(tmp_path / "cache"))
    old = tmp_path / "old"
    old.mkdir()
    model = BertModel.from_pretrained(tiny_bert_folder)
    torch.save(model.state_dict(), old / "pytorch_model.bin")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (old / name).write_bytes((tiny_bert_folder / name).read_bytes())
    ready = ready_folder(old)
    assert ready.parent == tmp_path / "cache"
    assert read_weights(ready).keys() == read_weights(tiny_bert_folder).keys()
    assert ready_folder(old) == ready

    import convert

    def too_late(source, output):  # another process converts the same, and is faster
        ready.rename(output)
        raise OSError("the folder is there")

    monkeypatch.setattr(convert, "convert", too_late)
    monkeypatch.setenv("MLX_BERT_CACHE", str(tmp_path / "cache"))
    (old / "note.txt").write_text("so that the key is another one")
    assert read_weights(ready_folder(old)).keys() == read_weights(tiny_bert_folder).keys()
    assert len(list((tmp_path / "cache").iterdir())) == 1


LOADED = sorted(name for name in mlx_bert.__all__ if hasattr(getattr(mlx_bert, name), "from_pretrained"))


@pytest.mark.parametrize("name", sorted({*LOADED} - {"SentenceTransformerMTL"}))  # which takes its encoder's folder
def test_a_constructor_refuses_a_path(name):
    for path in ("a/model", Path("a/model")):
        message = rf"\[{name}\] .* but got the path 'a/model'\. Use {name}\.from_pretrained"
        with pytest.raises(ValueError, match=message):
            getattr(mlx_bert, name)(path)
    assert {"BertCore", "SentenceEncoder", "CrossEncoder", "TextPredictor", "MultiheadClassifier"} <= {*LOADED}
