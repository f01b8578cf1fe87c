"""The format on disk: a folder with ``config.json`` and ``model.safetensors`` under Hugging Face's tensor names.

Reading is lazy and strict; writing streams one tensor at a time and never leaves a half-written file or folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OLDER_TOKENIZERS = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model")
MAX_HEADER_BYTES = 100_000_000  # the bound that the safetensors format sets

# safetensors' names for the types that MLX has.
DTYPES: dict[str, mx.Dtype] = {
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "U16": mx.uint16,
    "I16": mx.int16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "U64": mx.uint64,
    "I64": mx.int64,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "F32": mx.float32,
    "F64": mx.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOAT_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that is not in memory yet: what the header needs, and how to get it."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    load: Callable[[], mx.array]

    @property
    def nbytes(self) -> int:
        size = self.dtype.size
        for length in self.shape:
            size *= length
        return size


def entries_of(weights: Mapping[str, mx.array]) -> list[TensorEntry]:
    """Entries for arrays at hand. Shape and type of a lazy array are known without evaluating it."""
    return [TensorEntry(name, array.shape, array.dtype, lambda a=array: a) for name, array in weights.items()]


def float_dtype(name: str | mx.Dtype | None, others: Sequence[str] = ()) -> mx.Dtype | None:
    """``"float16"`` -> ``mx.float16``; None and MLX types pass.

    Args:
        name: of a type.
        others: further names that the caller takes, for the message.

    Raises:
        ValueError: not a floating type that weights may have.
    """
    if name is None or name in FLOAT_DTYPES.values():
        return name
    if name not in FLOAT_DTYPES:
        known = ", ".join([*FLOAT_DTYPES, *others])
        raise ValueError(f"[checkpoint] expected dtype to be one of {known} but got {name!r}.")
    return FLOAT_DTYPES[name]


# --- files and folders -----------------------------------------------------------------------------------------------


@contextmanager
def new_file(path: Path, mode: str = "w") -> Iterator[Any]:
    """Write a file completely or not at all: to a temporary neighbour first, then renamed."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """Fill a folder completely or not at all: a temporary sibling is renamed to ``path`` at the end.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is False.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"[checkpoint] {path} exists already. Choose another folder or remove it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield partial
        os.chmod(partial, 0o777 & ~_umask())
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.rename(path, old / path.name)
            os.rename(partial, path)
            shutil.rmtree(old)
        else:
            os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_json(path: Path | str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or not an object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"[checkpoint] {path} does not exist. Is {path.parent} a model folder?")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"[checkpoint] {path} is not valid JSON ({error}). Download or convert it again.") from None
    if not isinstance(data, dict):
        raise ValueError(f"[checkpoint] expected {path} to hold a JSON object but got {type(data).__name__}.")
    return data


def write_json(path: Path | str, data: Any) -> None:
    """Write JSON completely or not at all, indented, in UTF-8."""
    with new_file(Path(path)) as file:
        json.dump(data, file, indent=2, ensure_ascii=False)
        file.write("\n")


def finite_or_null(data: Any) -> Any:
    """A copy for every reader of JSON: floats that are not finite, which JSON does not have, are None."""
    if isinstance(data, Mapping):
        return {key: finite_or_null(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite_or_null(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


# --- safetensors ------------------------------------------------------------------------------------------------------


def read_header(path: Path | str) -> dict[str, dict[str, Any]]:
    """Read and check a safetensors header: nothing is allocated on its word before it fits the file.

    Returns:
        name -> ``{"dtype", "shape", "data_offsets"}``, without ``__metadata__``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, forged or otherwise not a safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"[checkpoint] {path} does not exist. Is {path.parent} a model folder?")

    def broken(why: str) -> ValueError:
        return ValueError(f"[checkpoint] {path} is not a valid safetensors file: {why}. Download or convert it again.")

    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise broken(f"it has {size} bytes")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise broken(f"its header claims {length} bytes in a file of {size}")
        try:
            header = json.loads(file.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
            raise broken("its header is not JSON") from None
    if not isinstance(header, dict):
        raise broken("its header is not an object")
    header.pop("__metadata__", None)
    spans = []
    for name, info in header.items():
        try:
            dtype, shape, (start, end) = DTYPES[info["dtype"]], info["shape"], info["data_offsets"]
            numbers = [*shape, start, end]
        except (KeyError, TypeError, ValueError):
            raise broken(f"the entry of {name!r} is malformed or has a type that MLX lacks") from None
        if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
            raise broken(f"the entry of {name!r} has a shape or offset that is not a natural number")
        if end - start != TensorEntry(name, tuple(shape), dtype, mx.array).nbytes or end > size - 8 - length:
            raise broken(f"the data of {name!r} does not fit (truncated file?)")
        spans.append((start, end))
    spans.sort()
    if any(start < end for (_, end), (start, _) in itertools.pairwise(spans)):
        raise broken("tensors overlap")
    return header


def write_safetensors(
    path: Path | str, entries: Sequence[TensorEntry], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors one at a time: header first, then each is loaded, written and let go.

    ``mx.save_safetensors`` evaluates everything before it writes; this holds one tensor in memory.

    Raises:
        ValueError: a name comes twice, or a tensor does not have the shape or type its entry promised.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "mlx", **(metadata or {})}}
    offset = 0
    for entry in entries:
        if entry.name in header:
            raise ValueError(f"[checkpoint] tensor {entry.name!r} comes twice.")
        header[entry.name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with new_file(Path(path), "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for entry in entries:
            array = entry.load()
            if array.shape != tuple(entry.shape) or array.dtype != entry.dtype:
                raise ValueError(
                    f"[checkpoint] expected {entry.name!r} to be {entry.dtype} {entry.shape} "
                    f"but got {array.dtype} {array.shape}."
                )
            if not array.size:
                continue
            array = mx.contiguous(array)
            mx.eval(array)
            file.write(memoryview(array if array.dtype != mx.bfloat16 else array.view(mx.uint16)).cast("B"))
            del array
            mx.clear_cache()


def normalise_name(name: str) -> str | None:
    """Today's spelling of a tensor name, or None for a buffer that is no weight (old files carry both)."""
    if name.endswith(("position_ids", "embeddings.token_type_ids", ".rotary_emb.inv_freq")):
        return None
    if name.endswith(".gamma"):
        return name.removesuffix("gamma") + "weight"
    if name.endswith(".beta"):
        return name.removesuffix("beta") + "bias"
    return name


def weight_files(folder: Path | str) -> list[Path]:
    """The safetensors files of a folder: one, or those that the index names.

    Raises:
        FileNotFoundError: none there, or a shard is missing.
        ValueError: the index is malformed or points outside the folder.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"[checkpoint] {folder} has no {WEIGHTS}. Convert it first: python -m convert {folder} --output OUTPUT."
        )
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"[checkpoint] {folder / INDEX} has no weight_map. Download it again.")
    names = sorted({str(name) for name in weight_map.values()})
    if bad := [name for name in names if Path(name).name != name or name in {".", ".."}]:
        raise ValueError(f"[checkpoint] {folder / INDEX} names files outside its folder: {bad}. Refused.")
    if lost := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(f"[checkpoint] {folder} lacks {', '.join(lost)}. The download is incomplete.")
    return [folder / name for name in names]


def read_weights(folder: Path | str) -> dict[str, mx.array]:
    """All tensors of a folder, lazily: a tensor is read into its own unified-memory buffer when evaluated."""
    weights: dict[str, mx.array] = {}
    for path in weight_files(folder):
        header = read_header(path)
        try:
            loaded = mx.load(str(path), format="safetensors")
        except RuntimeError as error:  # float64 tensors, metadata that is no text
            raise ValueError(f"[checkpoint] MLX cannot read {path}: {error}. Convert it: python -m convert.") from None
        for name in header:
            known = normalise_name(name)
            array = loaded.pop(name)
            if known is None:
                continue
            if known in weights:
                raise ValueError(f"[checkpoint] tensor {known!r} comes twice in {path.parent}.")
            weights[known] = array
    return weights


def ready_folder(source: str | Path, revision: str | None = None) -> Path:
    """A folder that can be loaded: ``source`` itself, or its converted copy in the cache.

    A hub id, and a folder whose weights or tokenizer are in older formats, are converted on first use into
    ``$MLX_BERT_CACHE`` (``~/.cache/mlx-bert``).

    Raises:
        FileNotFoundError: neither a folder nor a hub id that can be fetched.
        ValueError: the checkpoint is not supported.
    """
    folder = Path(source).expanduser()
    if folder.is_dir() and _is_ready(folder):
        return folder
    from convert import convert, hub  # the one way up: only convert knows raw checkpoints and the hub

    raw = hub.fetch(str(source), revision)
    if _is_ready(raw):
        return raw
    newest = max((file.stat().st_mtime_ns for file in raw.iterdir()), default=0)
    key = hashlib.sha256(f"{raw.resolve()} {newest}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("MLX_BERT_CACHE") or "~/.cache/mlx-bert").expanduser() / f"{raw.name}-{key}"
    try:
        return cache if cache.is_dir() else convert(raw, cache)
    except OSError:
        if cache.is_dir():  # another process was faster
            return cache
        raise


def _is_ready(folder: Path) -> bool:
    """Whether weights and, if there is one, tokenizer are in the formats that are read without conversion."""
    has_weights = (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
    older = any((folder / name).is_file() for name in OLDER_TOKENIZERS)
    return (folder / CONFIG).is_file() and has_weights and ((folder / "tokenizer.json").is_file() or not older)


class FromPretrained:
    """What ``from_pretrained`` loads from a path. The constructor, which takes the parts, refuses one and says so."""

    def __new__(cls, *parts: Any, **options: Any) -> Self:
        if parts and isinstance(parts[0], str | Path):
            raise ValueError(
                f"[{cls.__name__}] expected the parts of a model but got the path {str(parts[0])!r}. "
                f"Use {cls.__name__}.from_pretrained({str(parts[0])!r})."
            )
        return super().__new__(cls)


# --- modules ----------------------------------------------------------------------------------------------------------


def load_strict(
    module: nn.Module, weights: dict[str, mx.array], dtype: mx.Dtype | None = None, where: str = "checkpoint"
) -> None:
    """Give a module its weights, one by one, each evaluated before the next: the peak is the result plus one tensor.

    Args:
        module: its parameter names must be exactly those of ``weights``.
        weights: emptied on the way.
        dtype: cast floating weights to it; None keeps them as stored. Packed quantised weights stay as they are.
        where: what the error messages call the source.

    Raises:
        ValueError: missing, unexpected or misshapen tensors, each named with both shapes.
    """
    wanted = dict(tree_flatten(module.parameters()))
    problems = [f"missing {name} {wanted[name].shape}" for name in sorted(wanted.keys() - weights.keys())]
    problems += [f"unexpected {name} {weights[name].shape}" for name in sorted(weights.keys() - wanted.keys())]
    problems += [
        f"{name} expected shape {wanted[name].shape} but got {weights[name].shape}"
        for name in sorted(wanted.keys() & weights.keys())
        if wanted[name].shape != weights[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"[{where}] the weights do not fit the model: {shown}. Does config.json belong to this file?")
    del wanted
    for name in list(weights):
        array = weights.pop(name)
        if dtype is not None and mx.issubdtype(array.dtype, mx.floating):
            array = array.astype(dtype)
        mx.eval(array)
        module.update(tree_unflatten([(name, array)]))


def quantization_of(quantization: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """``group_size``, ``bits`` and ``mode`` of one matrix.

    Args:
        quantization: ``config.json["quantization"]``, which may have an entry of its own for a matrix (as mlx-lm's do).
        paths: what the matrix may be called there; the first that has an entry counts.
    """
    own = next((quantization[path] for path in paths if isinstance(quantization.get(path), Mapping)), {})
    chosen = {**quantization, **own}
    return {key: chosen[key] for key in ("group_size", "bits", "mode") if key in chosen}


def dequantize(
    weights: dict[str, mx.array], names: Sequence[str], quantization: Mapping[str, Any] | None
) -> dict[str, mx.array]:
    """Some of the tensors, packed ones as floating ones. Other tools also quantise heads, which ours keep floating.

    Args:
        weights: by name in the file.
        names: the tensors to return.
        quantization: ``config.json["quantization"]``.
    """
    result = {name: weights[name] for name in names}
    for scales in [name for name in names if name.endswith(".scales")]:
        stem = scales.removesuffix(".scales")
        parts = [result.pop(f"{stem}.{part}", None) for part in ("weight", "scales", "biases")]
        result[f"{stem}.weight"] = mx.dequantize(*parts, **quantization_of(quantization or {}, [stem]))
    return result


def quantize_like(
    module: nn.Module,
    weights: Mapping[str, mx.array],
    quantization: Mapping[str, Any] | None,
    stored_paths: Callable[[str], Sequence[str]] = lambda path: [path],
) -> None:
    """Turn the layers of which ``weights`` holds ``.scales`` into quantised ones, before :func:`load_strict`.

    Args:
        module: with the names that ``weights`` has.
        weights: by name in memory.
        quantization: ``config.json["quantization"]``: ``group_size``, ``bits``, ``mode``; or None.
        stored_paths: a module's path in memory -> what ``quantization`` may call it.

    Raises:
        ValueError: scales without that entry, or values that MLX refuses.
    """
    quantised = {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}
    if not quantised:
        return
    if not quantization:
        raise ValueError("[checkpoint] the weights are quantised but config.json has no 'quantization'. Convert again.")

    def options(path: str, _: nn.Module) -> bool | dict[str, Any]:
        return path in quantised and quantization_of(quantization, stored_paths(path))

    nn.quantize(module, class_predicate=options)
