"""Embeddings in one file that grows: memory-mapped to read, as float32 or a byte per value.

Dimensions: N embeddings, D values each.
"""

from __future__ import annotations

from pathlib import Path
from types import EllipsisType

import numpy as np

KINDS = ("float32", "int8")


class StoredVectors:
    """Rows of a file, as float32 ``(N, D)`` to who reads them; only what is read is in memory.

    Args:
        path: rows one after another. An int8 row is its scale (float32), and D values of which the largest is 127.
        kind: ``"float32"`` or ``"int8"``; the latter keeps cosines to about 0.001.
        count: N; what the file holds behind that is passed over.
        width: D.
    """

    def __init__(self, path: str | Path, kind: str, count: int, width: int) -> None:
        self.shape = (count, width)
        dtype = row_dtype(kind, width)
        self._rows = np.memmap(path, dtype, "r", shape=(count,)) if count else np.zeros(0, dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray | EllipsisType) -> np.ndarray:
        chosen = self._rows[rows]
        values = chosen["values"].astype(np.float32)
        return values * chosen["scale"][:, None] if "scale" in chosen.dtype.names else values


def row_dtype(kind: str, width: int) -> np.dtype:
    """How a row lies in the file.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"[search] expected vectors to be one of {', '.join(KINDS)} but got {kind!r}.")
    if kind == "float32":
        return np.dtype([("values", "<f4", (width,))])
    return np.dtype([("scale", "<f4"), ("values", "i1", (width,))])


def row_bytes(vectors: np.ndarray, kind: str) -> bytes:
    """Float32 ``(n, D)`` as they lie in the file."""
    rows = np.zeros(len(vectors), row_dtype(kind, vectors.shape[1]))
    if kind == "int8":
        largest = np.abs(vectors).max(axis=1, initial=0)
        rows["scale"] = np.where(largest == 0, 1, largest) / 127
        vectors = np.rint(vectors / rows["scale"][:, None])
    rows["values"] = vectors
    return rows.tobytes()
