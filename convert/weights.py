"""A checkpoint's tensors, whatever the file format, as entries that are read one at a time.

``.safetensors`` and PyTorch's ``.bin``, each in one file or in shards with an index.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from convert.paths import inside
from convert.unpickle import StoredTensor, read_tensors
from mlx_bert.checkpoint import DTYPES, INDEX, WEIGHTS, TensorEntry, read_header, read_json

BIN = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"

_MX_DTYPES = {
    "float64": mx.float64,
    "float32": mx.float32,
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
    "int64": mx.int64,
    "int32": mx.int32,
    "int16": mx.int16,
    "int8": mx.int8,
    "uint8": mx.uint8,
    "uint16": mx.uint16,
    "uint32": mx.uint32,
    "uint64": mx.uint64,
    "bool": mx.bool_,
}
_NAMES = {dtype: name for name, dtype in _MX_DTYPES.items()}


def open_weights(folder: Path | str) -> dict[str, TensorEntry]:
    """Find all tensors of a checkpoint folder; none is read before its ``load`` is called.

    Of several formats the first is taken: ``model.safetensors``, its shards, ``pytorch_model.bin``, its shards.

    Returns:
        Name in the file -> entry.

    Raises:
        FileNotFoundError: no weights, or a shard is missing.
        ValueError: a file is damaged, or asks for something that a file of weights must not.
    """
    folder = Path(folder)
    for name, index, opener in ((WEIGHTS, INDEX, _open_safetensors), (BIN, BIN_INDEX, _open_bin)):
        if inside(folder, name).is_file():
            return opener(folder / name)
        if inside(folder, index).is_file():
            return _open_shards(folder, index, opener)
    hint = _other_formats(folder)
    raise FileNotFoundError(f"[weights] {folder} has neither {WEIGHTS} nor {BIN}, nor an index of shards.{hint}")


def _other_formats(folder: Path) -> str:
    others = {
        "tf_model.h5": "TensorFlow",
        "flax_model.msgpack": "Flax",
        "model.onnx": "ONNX",
        "bert_model.ckpt.index": "TensorFlow 1",
    }
    for name, format in others.items():
        if (folder / name).is_file():
            return f" It holds {format} weights only, which are not supported: save it with PyTorch first."
    return " Is it a model folder, and is the download complete?"


def _open_shards(folder: Path, index: str, opener: Callable[[Path], dict[str, TensorEntry]]) -> dict[str, TensorEntry]:
    weight_map: Any = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"[weights] {folder / index} has no weight_map. Download it again.")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"[weights] {folder / index} names a shard that is not text. Download it again.")
    entries: dict[str, TensorEntry] = {}
    for shard in sorted(set(weight_map.values())):
        path = inside(folder, shard)
        if not path.is_file():
            raise FileNotFoundError(f"[weights] {folder} lacks the shard {shard!r}. The download is incomplete.")
        found = opener(path)
        if twice := entries.keys() & found.keys():
            raise ValueError(f"[weights] tensor {min(twice)!r} comes twice in the shards of {folder}.")
        entries.update(found)
    if lost := weight_map.keys() - entries.keys():
        raise ValueError(f"[weights] the shards of {folder} lack {len(lost)} tensors of the index, e.g. {min(lost)!r}.")
    return entries


def _open_safetensors(path: Path) -> dict[str, TensorEntry]:
    header = read_header(path)
    with path.open("rb") as file:
        start = 8 + struct.unpack("<Q", file.read(8))[0]
    has_float64 = any(info["dtype"] == "F64" for info in header.values())  # mx.load refuses the whole file then

    def load(name: str) -> mx.array:
        if has_float64:
            dtype, shape = DTYPES[header[name]["dtype"]], tuple(header[name]["shape"])
            strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
            position = start + header[name]["data_offsets"][0]
            return _load_stored(StoredTensor(path, position, _NAMES[dtype], dtype.size, shape, strides))
        # A fresh dictionary of lazy arrays each time: an array that stays in one stays in memory once evaluated.
        try:
            return mx.load(str(path), format="safetensors")[name]
        except (RuntimeError, KeyError) as error:  # stricter than our check of the header in small things
            raise ValueError(f"[weights] {path} cannot be read: {error}. Download it again.") from None

    return {
        name: TensorEntry(name, tuple(info["shape"]), DTYPES[info["dtype"]], lambda name=name: load(name))
        for name, info in header.items()
    }


def _open_bin(path: Path) -> dict[str, TensorEntry]:
    return {
        name: TensorEntry(name, tensor.shape, _MX_DTYPES[tensor.dtype], lambda tensor=tensor: _load_stored(tensor))
        for name, tensor in read_tensors(path).items()
    }


def _load_stored(tensor: StoredTensor) -> mx.array:
    """Map the bytes that the tensor spans, and copy them once, in order, to unified memory."""
    as_bits = tensor.dtype == "bfloat16"
    dtype = np.dtype("uint16" if as_bits else tensor.dtype)
    if 0 in tensor.shape:
        return mx.zeros(tensor.shape, dtype=_MX_DTYPES[tensor.dtype])
    elements = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True))
    flat = np.memmap(tensor.path, dtype=dtype, mode="r", offset=tensor.position, shape=(elements,))
    strides = tuple(stride * tensor.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
    array = mx.array(view, dtype=mx.float64) if tensor.dtype == "float64" else mx.array(view)
    return array.view(mx.bfloat16) if as_bits else array
