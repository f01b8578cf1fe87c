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
from mlx_bert.inference.text_files import Record, import_parquet

Part = tuple[Sequence[Record], np.ndarray]
Parts = Iterable[Part]
NPY_HEADER_BYTES = 128


def write_jsonl(parts: Parts, file: TextIO) -> int:
    """One JSON object a line: ``{"id": ..., "text": ..., "embedding": [...]}``, without id where there is none.

    Returns:
        The number of lines.
    """
    count = 0
    for records, embeddings in parts:
        for record, row in zip(records, embeddings, strict=True):
            values = row.tolist() if row.dtype != np.float32 else [float(f"{value:.8g}") for value in row.tolist()]
            name = {} if record.id is None else {"id": record.id}
            line = {**name, "text": record.text, "embedding": values}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        count += len(records)
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


def write_parquet(parts: Parts, file: BinaryIO) -> int:
    """Columns ``id`` (where there are ids), ``text`` and ``embedding``, a list of D values; a row group each part.

    Returns:
        The number of rows.
    """
    parquet = import_parquet()
    import pyarrow as pa

    count, writer = 0, None
    try:
        for records, embeddings in parts:
            columns = {"text": pa.array([record.text for record in records], pa.string())}
            if records and records[0].id is not None:
                kind = pa.int64() if isinstance(records[0].id, int) else pa.string()
                columns = {"id": pa.array([record.id for record in records], kind), **columns}
            flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1))
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
            table = pa.table(columns)
            writer = writer or parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
            count += len(records)
    finally:
        if writer:
            writer.close()
    return count


WRITERS: dict[str, tuple[str, Callable[[Parts, Any], int]]] = {
    ".npy": ("wb", write_npy),
    ".jsonl": ("w", write_jsonl),
    ".ndjson": ("w", write_jsonl),
    ".parquet": ("wb", write_parquet),
}


def check_output(path: str | Path) -> Path:
    """``path`` if embeddings can be written there.

    Raises:
        ValueError: another ending.
        FileNotFoundError: its folder does not exist.
        FileExistsError: it exists.
        ImportError: a Parquet file, and pyarrow is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"[embed] expected an output ending in {', '.join(WRITERS)} but got {path}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"[embed] the folder {path.parent} does not exist. Create it first.")
    if path.exists():
        raise FileExistsError(f"[embed] {path} exists already. Choose another name or remove it first.")
    if path.suffix.lower() == ".parquet":
        import_parquet()
    return path


def write_embeddings(parts: Parts, path: Path) -> int:
    """Write to a file whose ending names the format. Returns the number of embeddings."""
    mode, write = WRITERS[path.suffix.lower()]
    with new_file(path, mode) as file:
        return write(parts, file)


def quantize_parts(parts: Parts, precision: str, ranges: np.ndarray | None = None) -> Iterator[Part]:
    """:func:`quantize_embeddings` over a stream, with the result that the whole at once would give.

    Args:
        parts: records and embeddings.
        precision: as for :func:`quantize_embeddings`.
        ranges: lowest and highest values ``(2, D)`` of the whole. Without them, embeddings wait in a temporary file
            until they are known, for int8 and uint8.
    """
    if not precision.endswith("int8") or ranges is not None:
        for records, embeddings in parts:
            yield records, quantize_embeddings(embeddings, precision, ranges=ranges)
        return
    with tempfile.TemporaryFile() as spool, tempfile.TemporaryFile() as words:
        sizes: list[int] = []

        def spooled() -> Iterator[np.ndarray]:
            for records, embeddings in parts:
                np.save(spool, embeddings)
                words.write(json.dumps(list(records)).encode() + b"\n")
                sizes.append(len(embeddings))
                yield embeddings

        ranges = value_ranges(spooled())
        spool.seek(0)
        words.seek(0)
        for _ in sizes:
            records, embeddings = [Record(*each) for each in json.loads(words.readline())], np.load(spool)
            yield records, quantize_embeddings(embeddings, precision, ranges=ranges)


def value_ranges(embeddings: Iterable[np.ndarray]) -> np.ndarray | None:
    """Lowest and highest value of each dimension over parts ``(n, D)``: ``(2, D)``.

    None for fewer than two embeddings, which have no range: :func:`quantize_embeddings` refuses them.
    """
    count, low, high = 0, None, None
    for part in embeddings:
        if len(part):
            count += len(part)
            low = part.min(axis=0) if low is None else np.minimum(low, part.min(axis=0))
            high = part.max(axis=0) if high is None else np.maximum(high, part.max(axis=0))
    return None if count < 2 else np.stack([low, high])
