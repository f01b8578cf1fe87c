"""Embedding files in windows that are kept as they are done: a job goes on after a kill, and over several processes.

The work lies beside the output in ``OUTPUT.partial``: a manifest, and a ``.npy`` file for each finished window.
The output is joined from them at the end. A window is embedded by itself, so it has the same bits whoever does it.

Dimensions: N texts, W texts of a window, P processes, D values of an embedding.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_bert.checkpoint import new_file, read_json, write_json
from mlx_bert.inference.embedding_files import Part, quantize_parts, value_ranges, write_embeddings
from mlx_bert.inference.text_files import Record, TextFiles

MANIFEST = "job.json"
WINDOW = 4096

Encode = Callable[[Sequence[str]], np.ndarray]


class EmbeddingJob:
    """Embeds files of texts into one file.

    Args:
        source: the texts. They are read once here, so that bad rows show before any work is done.
        output: ``.npy``, ``.jsonl`` or ``.parquet``; appears when complete.
        settings: all that the embeddings depend on besides the texts, as JSON has it: model, prompt, lengths.
        window: W, texts that are sorted and batched together; as many are lost by a kill, at most.
        group: processes that share the work. The first one keeps what all have done; none needs a common disk.

    Attributes:
        count: N.
        folder: where the finished windows lie.

    Raises:
        ValueError: a bad row, or a window below 1.
    """

    def __init__(
        self,
        source: TextFiles,
        output: Path,
        settings: Mapping[str, Any],
        window: int = WINDOW,
        group: mx.distributed.Group | None = None,
    ) -> None:
        if window < 1:
            raise ValueError(f"[embed] expected a window of at least 1 text but got {window}.")
        self.source, self.output, self.window, self.group = source, output, window, group
        self.rank, self.processes = (0, 1) if group is None else (group.rank(), group.size())
        self.count = source.check()
        self.folder = output.with_name(output.name + ".partial")
        shared = {**settings, "window": window, "texts": self.count, "text_column": source.column}
        self._shared = json.loads(json.dumps(shared))
        self._input = json.loads(json.dumps(source.identity()))

    # --- what is done -------------------------------------------------------------------------------------------------

    def open(self, resume: bool) -> int:
        """Look for earlier work.

        Returns:
            The number of texts that are done.

        Raises:
            FileExistsError: there is some, and ``resume`` is False.
            ValueError: it was done with other settings or other texts.
        """
        if self.rank or not (self.folder / MANIFEST).is_file():
            return 0
        if not resume:
            raise FileExistsError(
                f"[embed] {self.folder} holds {self._done_texts():,} of {self.count:,} embeddings of a job that "
                "did not finish. Continue it with --resume, or remove the folder."
            )
        before, now = read_json(self.folder / MANIFEST), self._manifest()
        if changed := [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]:
            shown = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in changed)
            raise ValueError(
                f"[embed] {self.folder} holds work of another job: {shown}. Give the same again, or remove the folder."
            )
        for leftover in self.folder.glob(".*"):  # of a file that was being written
            leftover.unlink()
        return self._done_texts()

    def _manifest(self) -> dict[str, Any]:
        return {**self._shared, "input": self._input}

    def _path(self, number: int) -> Path:
        return self.folder / f"window-{number:08d}.npy"

    def _numbers(self) -> range:
        return range(max(1, -(-self.count // self.window)))  # no texts make one window of none

    def _rows(self, number: int) -> int:
        return min(self.window, self.count - number * self.window)

    def _missing(self) -> list[int]:
        def is_done(number: int) -> bool:
            try:
                return len(np.load(self._path(number), mmap_mode="r" if self._rows(number) else None)) == self._rows(
                    number
                )
            except (OSError, ValueError):
                return False

        return [number for number in self._numbers() if not is_done(number)]

    def _done_texts(self) -> int:
        return self.count - sum(self._rows(number) for number in self._missing())

    def _windows(self) -> Iterator[list[Record]]:
        records = iter(self.source)
        for number in self._numbers():
            window = list(islice(records, self.window))
            if len(window) != self._rows(number):
                break
            yield window
        else:
            if next(records, None) is None and self.source.identity() == self._input:
                return
        raise ValueError("[embed] the input was changed while it was read. Remove the .partial folder and start again.")

    # --- doing it -----------------------------------------------------------------------------------------------------

    def run(self, load: Callable[[], Encode], on_texts: Callable[[int], Any] = lambda _: None) -> None:
        """Embed what is missing.

        Args:
            load: gives the function that embeds texts, ``(n, D)`` float32; not called when nothing is missing.
            on_texts: called with the number of texts that were just done, by all processes together.

        Raises:
            OSError: the disk is full; what is done stays.
            ValueError: the processes do not have the same model, settings or texts.
        """
        self._agree()
        missing = set(self._from_first(self._missing() if self.rank == 0 else []))
        if not missing:
            return
        encode = load()
        with self._room():
            for turn in self._turns(missing):
                mine = turn[self.rank][1] if self.rank < len(turn) else []
                result = encode([record.text for record in mine])
                for (number, records), embeddings in zip(turn, self._gather(result), strict=False):
                    if self.rank == 0:
                        self._keep(number, embeddings[: len(records)])
                    on_texts(len(records))

    def _turns(self, missing: set[int]) -> Iterator[list[tuple[int, list[Record]]]]:
        """The missing windows, as many at a time as there are processes."""
        turn: list[tuple[int, list[Record]]] = []
        for number, records in enumerate(self._windows()):
            if number in missing:
                turn.append((number, records))
            if len(turn) == self.processes:
                yield turn
                turn = []
        if turn:
            yield turn

    def _keep(self, number: int, embeddings: np.ndarray) -> None:
        if not (self.folder / MANIFEST).is_file():
            self.folder.mkdir(exist_ok=True)
            write_json(self.folder / MANIFEST, self._manifest())
        with new_file(self._path(number), "wb") as file:
            np.save(file, embeddings)

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                f"[embed] the disk is full. {self._done_texts():,} of {self.count:,} embeddings are kept in "
                f"{self.folder}. Make room and continue with --resume."
            ) from None

    def parts(self, precision: str = "float32") -> Iterator[Part]:
        """Records and embeddings of each window, in the order of the texts. All must be done."""

        def stored() -> Iterator[np.ndarray]:
            return (np.load(self._path(number)) for number in self._numbers())

        pairs = zip(self._windows(), stored(), strict=True)
        if precision == "float32":
            return pairs
        return quantize_parts(pairs, precision, value_ranges(stored()) if precision.endswith("int8") else None)

    def finish(self, precision: str = "float32") -> int:
        """Join the windows into the output and remove the folder. For the first process.

        Returns:
            N.
        """
        joined = self.folder / f"joined{self.output.suffix}"
        with self._room():
            count = write_embeddings(self.parts(precision), joined)
        os.replace(joined, self.output)
        shutil.rmtree(self.folder)
        return count

    # --- between processes --------------------------------------------------------------------------------------------

    def _agree(self) -> None:
        sizes = [[name, size] for name, size, _ in self._input]  # the time of change differs from machine to machine
        digest = hashlib.sha256(json.dumps([self._shared, sizes], sort_keys=True).encode()).digest()
        if (
            len({each.tobytes() for each in self._gather(np.frombuffer(digest, np.uint8)[None].astype(np.float32), 1)})
            > 1
        ):
            raise ValueError("[embed] the processes have different models, options or input files. Make them equal.")

    def _gather(self, mine: np.ndarray, rows: int | None = None) -> np.ndarray:
        """What each process has, at most ``rows`` (W): ``(n, D) -> (P, rows, D)``, the rest zeros."""
        if self.group is None:
            return mine[None]
        rows = rows or self.window
        padded = np.zeros((rows, mine.shape[1]), np.float32)
        padded[: len(mine)] = mine
        with mx.stream(mx.gpu if mx.cuda.is_available() else mx.cpu):  # NCCL needs the GPU, all others the CPU
            everyone = mx.distributed.all_gather(mx.array(padded), group=self.group)
            mx.eval(everyone)
        return np.asarray(everyone).reshape(self.processes, rows, -1)

    def _from_first(self, values: list[int]) -> list[int]:
        """The first process's list, in all."""
        if self.group is None:
            return values
        size = int(self._gather(np.array([[len(values)]]), 1)[0, 0, 0])
        if not size:
            return []
        column = np.zeros((size, 1))
        column[: len(values), 0] = values
        return self._gather(column, size)[0, :, 0].astype(int).tolist()
