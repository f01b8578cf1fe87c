"""Embeddings to files as they come, in bounded memory; a file appears when it is complete.

Dimensions: N texts, D values of an embedding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from mlx_bert.checkpoint import new_file
from mlx_bert.inference.quantization import quantize_embeddings

Parts = Iterable[tuple[Sequence[str], np.ndarray]]
NPY_HEADER_BYTES = 128


def write_jsonl(parts: Parts, file: TextIO) -> int:
    """One JSON object a line: ``{"text": ..., "embedding": [...]}``. Returns the number of lines."""
    count = 0
    for texts, embeddings in parts:
        for text, row in zip(texts, embeddings, strict=True):
            values = row.tolist() if row.dtype != np.float32 else [float(f"{value:.8g}") for value in row.tolist()]
            file.write(json.dumps({"text": text, "embedding": values}, ensure_ascii=False) + "\n")
        file.flush()
        count += len(texts)
    return count


def write_npy(parts: Parts, file: BinaryIO) -> int:
    """A numpy array ``(N, D)`` in the order of the texts; ``numpy.load(path, mmap_mode="r")`` reads it back.

    N is not known before the end, so the header is written twice, with room for any N.

    Returns:
        The number of rows.
    """
    file.write(b" " * NPY_HEADER_BYTES)
    count, width, dtype = 0, 0, np.dtype(np.float32)
    for _, embeddings in parts:
        file.write(np.ascontiguousarray(embeddings).data)
        count, width, dtype = count + len(embeddings), embeddings.shape[1], embeddings.dtype
    description = np.lib.format.dtype_to_descr(dtype)
    header = f"{{'descr': {description!r}, 'fortran_order': False, 'shape': ({count}, {width}), }}"
    body = header.ljust(NPY_HEADER_BYTES - 11) + "\n"
    file.seek(0)
    file.write(b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body.encode("latin1"))
    return count


WRITERS: dict[str, tuple[str, Callable[[Parts, Any], int]]] = {
    ".npy": ("wb", write_npy),
    ".jsonl": ("w", write_jsonl),
    ".ndjson": ("w", write_jsonl),
}


def check_output(path: str | Path) -> Path:
    """``path`` if embeddings can be written there.

    Raises:
        ValueError: another ending.
        FileNotFoundError: its folder does not exist.
        FileExistsError: it exists.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"[embed] expected an output ending in {', '.join(WRITERS)} but got {path}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"[embed] the folder {path.parent} does not exist. Create it first.")
    if path.exists():
        raise FileExistsError(f"[embed] {path} exists already. Choose another name or remove it first.")
    return path


def write_embeddings(parts: Parts, path: Path) -> int:
    """Write to a file whose ending names the format. Returns the number of embeddings."""
    mode, write = WRITERS[path.suffix.lower()]
    with new_file(path, mode) as file:
        return write(parts, file)


def quantize_parts(parts: Parts, precision: str) -> Iterator[tuple[Sequence[str], np.ndarray]]:
    """:func:`quantize_embeddings` over a stream, with the result that the whole at once would give.

    Ranges for int8 and uint8 are known only at the end: embeddings wait in a temporary file until then.
    """
    if not precision.endswith("int8"):
        for texts, embeddings in parts:
            yield texts, quantize_embeddings(embeddings, precision)
        return
    with tempfile.TemporaryFile() as spool, tempfile.TemporaryFile() as words:
        sizes, low, high = [], np.inf, -np.inf
        for texts, embeddings in parts:
            np.save(spool, embeddings)
            words.write(json.dumps(list(texts)).encode() + b"\n")
            sizes.append(len(embeddings))
            low, high = np.minimum(low, embeddings.min(axis=0)), np.maximum(high, embeddings.max(axis=0))
        spool.seek(0)
        words.seek(0)
        ranges = None if sum(sizes) < 2 else np.stack([low, high])  # one embedding has no range: refused there
        for _ in sizes:
            texts, embeddings = json.loads(words.readline()), np.load(spool)
            yield texts, quantize_embeddings(embeddings, precision, ranges=ranges)
