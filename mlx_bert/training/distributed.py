"""Data-parallel training: the processes (ranks) of a run, what they tell each other, each one's share of the batches.

``mlx.launch`` starts the ranks. Everything here works with one rank too, and then does nothing. Only one collective
runs at a time, on the CPU's stream and on arrays that are computed already: a GPU never waits in a kernel for another
machine, which Metal would end after some seconds.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from mlx_bert.checkpoint import DTYPE_NAMES, DTYPES
from mlx_bert.data.samplers import BatchIndices

CHUNK_BYTES = 32 << 20  # of one collective
Result = TypeVar("Result")
Flat = dict[str, mx.array]


class World:
    """The ranks of a run; without a launcher the only one.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.

    Raises:
        ConnectionError: a launcher started this process, but the others cannot be reached.
    """

    def __init__(self) -> None:
        self.rank, self.size, self._group = 0, 1, None
        if _is_alone():
            return
        try:
            self._group = mx.distributed.init(strict="MLX_RANK" in os.environ)
        except RuntimeError as error:
            raise ConnectionError(
                f"[distributed] rank {os.environ.get('MLX_RANK')} cannot join the others: {error}. "
                "Check the addresses in the host file and that their ports are free."
            ) from None
        self.rank, self.size = self._group.rank(), self._group.size()

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes and prints."""
        return self.rank == 0

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have alike, on every rank."""
        return {"size": self.size}

    def total(self, arrays: Flat, numbers: Iterable[float] = ()) -> tuple[Flat, list[float]]:
        """Sums over all ranks, the same bits on each.

        Args:
            arrays: float32, of the same names and shapes on every rank.
            numbers: summed in float32 beside them.
        """
        numbers = list(numbers)
        if self.size == 1:
            return arrays, numbers
        summed: Flat = {}
        for names in _chunks(arrays):
            flat = mx.concatenate([arrays[name].reshape(-1) for name in names])
            parts = mx.split(self._sum(flat), np.cumsum([arrays[name].size for name in names])[:-1].tolist())
            summed |= {name: part.reshape(arrays[name].shape) for name, part in zip(names, parts, strict=True)}
        return summed, self._sum(mx.array(numbers, dtype=mx.float32)).tolist() if numbers else []

    def share(self, value: Any) -> Any:
        """Rank 0's value on every rank.

        Args:
            value: what JSON can hold; that of other ranks does not matter.
        """
        if self.size == 1:
            return value
        data = json.dumps(value, default=float).encode() if self.is_main else b""
        (length,) = self._sum(mx.array([len(data)], dtype=mx.int64)).tolist()
        return json.loads(bytes(self._sum(_padded(data, length))))

    def share_arrays(self, arrays: Mapping[str, mx.array] | None) -> Flat:
        """Rank 0's arrays on every rank, bit for bit.

        Args:
            arrays: of any type; None on the other ranks will do.
        """
        if self.size == 1:
            return dict(arrays or {})
        own = dict(arrays or {}) if self.is_main else {}
        described = self.share([[name, a.shape, DTYPE_NAMES[a.dtype]] for name, a in own.items()])
        shared: Flat = {}
        for name, shape, dtype in described:
            empty = mx.zeros(shape, DTYPES[dtype])
            raw = self._sum((own[name] if self.is_main else empty).reshape(-1).view(mx.uint8))
            shared[name] = raw.view(empty.dtype).reshape(shape)
        return shared

    def on_main(self, function: Callable[[], Result]) -> Result:
        """Call a function on rank 0 alone; every rank gets its result (what JSON can hold), or its error."""
        if self.size == 1:
            return function()
        outcome: dict[str, Any] = {}
        if self.is_main:
            try:
                outcome["result"] = function()
            except (ValueError, OSError, ImportError) as error:
                outcome |= {"error": type(error).__name__, "message": str(error)}
        outcome = self.share(outcome)
        if "error" in outcome:
            raise ERRORS.get(outcome["error"], ValueError)(outcome["message"])
        return outcome["result"]

    def gather(self, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Every rank's arrays, in the order of the ranks; names, shapes and types may differ."""
        if self.size == 1:
            return [dict(arrays)]
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        data = buffer.getvalue()
        lengths = self._gather(mx.array([len(data)], dtype=mx.int64)).tolist()
        rows = np.array(self._gather(_padded(data, max(lengths)))).reshape(self.size, -1)
        found = []
        for row, length in zip(rows, lengths, strict=True):
            with np.load(io.BytesIO(row[:length].tobytes()), allow_pickle=False) as archive:
                found.append({name: archive[name] for name in archive.files})
        return found

    def require_same(self, what: str, value: str) -> None:
        """Check that all ranks have the same value.

        Raises:
            ValueError: they differ.
        """
        values = [str(found["value"]) for found in self.gather({"value": np.array(value)})]
        if len(set(values)) > 1:
            shown = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(values))
            raise ValueError(
                f"[distributed] expected the same {what} on every rank but got {shown}. Give all the same."
            )

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            self._sum(mx.zeros((1,)))

    def _sum(self, array: mx.array) -> mx.array:
        return self._collective(mx.distributed.all_sum, array)

    def _gather(self, array: mx.array) -> mx.array:
        return self._collective(mx.distributed.all_gather, array)

    def _collective(self, operation: Callable[..., mx.array], array: mx.array) -> mx.array:
        mx.eval(array)
        try:
            result = operation(array, group=self._group, stream=mx.cpu)
            mx.eval(result)
        except RuntimeError as error:
            raise ConnectionError(
                f"[distributed] rank {self.rank} lost another rank: {error}. See that one's message, then start all "
                "again with --resume."
            ) from None
        return result


ERRORS = {kind.__name__: kind for kind in (FileExistsError, FileNotFoundError, OSError, ImportError)}


def _is_alone() -> bool:
    """Whether the launcher started one process: it gives that an empty host file, which MLX cannot read."""
    path = os.environ.get("MLX_HOSTFILE")
    try:
        return path is not None and not Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return False  # joining says what is wrong with it


def _padded(data: bytes, length: int) -> mx.array:
    row = np.zeros(length, dtype=np.uint8)
    row[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return mx.array(row)


def _chunks(arrays: Flat) -> list[list[str]]:
    """Names in groups of at most ``CHUNK_BYTES``, or of one larger array."""
    chunks: list[list[str]] = []
    room = 0
    for name, array in arrays.items():
        if array.nbytes > room:
            chunks.append([])
            room = CHUNK_BYTES
        chunks[-1].append(name)
        room -= array.nbytes
    return chunks


class RankShares:
    """This rank's share of a sampler's batches: as many on every rank, so that none runs out before the others.

    Args:
        sampler: ``batches(epoch)`` and ``len``; the same on every rank.
        world: the ranks.
        split: cut each batch into one part per rank, of like lengths, so that they compute equally long; else each
            rank takes whole batches by turns. A part may be empty where a batch has fewer examples than there are
            ranks, and so may the last turn.
    """

    def __init__(self, sampler: Any, world: World, split: bool) -> None:
        self.sampler = sampler
        self.world = world
        self.split = split

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have alike."""
        return {"sampler": self.sampler, "split": self.split}

    def __len__(self) -> int:
        """Batches of this rank per epoch, the same for every epoch and rank."""
        return len(self.sampler) if self.split else -(-len(self.sampler) // self.world.size)

    def batches(self, epoch: int = 0) -> list[BatchIndices]:
        """This rank's batches of an epoch, in order."""
        rank, size = self.world.rank, self.world.size
        whole = self.sampler.batches(epoch)
        if self.split:
            return [BatchIndices(batch.indices[rank::size], batch.task) for batch in whole]
        own = whole[rank::size]
        return own + [BatchIndices(np.zeros(0, dtype=np.int64))] * (len(self) - len(own))
