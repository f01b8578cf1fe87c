"""The outputs of a frozen encoder, computed once per text, so that training a head costs only the head.

An example may be of several texts (choices, documents, triplets); a text that several have is kept once. The outputs
are kept in memory, or in memory-mapped files that later runs find again. A file's name is a digest of the encoder
and of the texts: whatever changes in them leads to another file, and a file gets its name when it is complete. Several
ranks each run the encoder on a share of the batches and send each other the outputs.

Dimension key: L tokens, D hidden size, T tokens of all texts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_bert.checkpoint import new_file
from mlx_bert.data.collate import TEXT_KEYS, Arrays, token_count, with_states
from mlx_bert.data.readers import Example
from mlx_bert.data.samplers import BatchIndices, LengthBucketSampler
from mlx_bert.training.distributed import World

logger = logging.getLogger(__name__)
MIB = 1 << 20
PREFIX = "encoder_outputs_"
FORMAT = "1"  # part of each digest
ABANDONED = 24 * 3600  # seconds after which a half-written file is taken for that of a killed run


class TextCollator(Protocol):
    """What the cache needs of a collator whose examples have the same texts in every epoch."""

    padding_side: str

    def texts(self, example: Example) -> list[Example]:
        """What the encoder reads of an example, text by text: ``input_ids`` and maybe masks and types."""

    def pad_texts(self, texts: Sequence[Example]) -> Arrays:
        """Batch such texts."""


def different_texts(examples: Sequence[Example], collator: TextCollator) -> tuple[list[Example], list[list[int]]]:
    """Each text of the examples once; and where the texts of each example stand among these."""
    found: dict[tuple[tuple[str, bytes], ...], int] = {}
    texts, places = [], []
    for example in examples:
        own = []
        for text in collator.texts(example):
            key = tuple((name, np.asarray(values, dtype=np.int32).tobytes()) for name, values in text.items())
            if key not in found:
                found[key] = len(texts)
                texts.append(text)
            own.append(found[key])
        places.append(own)
    return texts, places


def can_cache(parts: Sequence[Sequence[Example]], collator: TextCollator, hidden_size: int, limit_mb: int) -> bool:
    """Whether the float32 outputs of all parts of the data, each cached by itself, fit the limit together."""
    texts = [text for examples in parts for text in different_texts(examples, collator)[0]]
    needed = sum(token_count(text) for text in texts) * hidden_size * 4
    if needed > limit_mb * MIB:
        logger.warning(
            "[cache] the encoder's outputs of %d texts take %d MiB, more than cache_limit_mb (%d): it runs over them "
            "in every epoch. Raise the limit, with cache_dir to keep them on disk.",
            len(texts),
            -(-needed // MIB),
            limit_mb,
        )
        return False
    return True


def cache_encoder(
    bert: Any,
    examples: Sequence[Example],
    collator: TextCollator,
    batch_size: int,
    progress: Any = None,
    stop: Callable[[], bool] = bool,
    world: World | None = None,
) -> list[Example]:
    """Add ``hidden_states`` float32 ``(L, D)`` to each example, a list of them where it is of several texts.

    Args:
        bert: the encoder, in evaluation mode.
        examples: tokenised.
        collator: of the examples; it pads the batches.
        batch_size: texts per forward pass.
        progress: wraps the batches, for example in a progress bar.
        stop: whether to give up, asked before each batch.
        world: ranks that share the batches and all get the result; None for this process alone.

    Raises:
        KeyboardInterrupt: ``stop`` said so, on any rank.
    """
    texts, places = different_texts(examples, collator)
    outputs = {
        index: states.copy() for index, states in _outputs(bert, texts, collator, batch_size, progress, stop, world)
    }
    return _joined(examples, places, outputs)


def _joined(
    examples: Sequence[Example], places: Sequence[Sequence[int]], outputs: Mapping[int, np.ndarray]
) -> list[Example]:
    return [
        with_states(example, [outputs[place] for place in own]) for example, own in zip(examples, places, strict=True)
    ]


def cache_on_disk(
    folder: Path,
    limit_mb: int,
    bert: Any,
    examples: Sequence[Example],
    collator: TextCollator,
    batch_size: int,
    progress: Any = None,
    stop: Callable[[], bool] = bool,
    world: World | None = None,
    keep: Sequence[Path] = (),
) -> tuple[list[Example], Path]:
    """As :func:`cache_encoder`, with ``hidden_states`` in a memory-mapped file, which is reused if it is there.

    Args:
        folder: of the files; made if missing.
        limit_mb: most MiB of all files in it; the longest unused ones go to make room.
        bert, examples, collator, batch_size, progress, stop, world: as for :func:`cache_encoder`. Where one rank lacks
            the file, all run the encoder.
        keep: files that must not go.

    Returns:
        The examples, and the file.

    Raises:
        OSError: the disk is full or cannot be written; no file is left.
        KeyboardInterrupt: ``stop`` said so; no file is left.
    """
    texts, places = different_texts(examples, collator)
    path = folder / f"{PREFIX}{fingerprint(bert, texts, collator)}.npy"
    order = np.argsort([token_count(text) for text in texts], kind="stable")  # as batches come
    lengths = [token_count(texts[index]) for index in order]
    shape = (sum(lengths), bert.get_hidden_size())
    complete = _is_complete(path, shape)
    outputs = _outputs(bert, texts, collator, batch_size, progress, stop, world, needed=not complete)
    try:
        if not complete:
            folder.mkdir(parents=True, exist_ok=True)
            _make_room(folder, 4 * shape[0] * shape[1], limit_mb * MIB, (path, *keep))
            with new_file(path, "wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for place, (index, states) in enumerate(outputs):
                    assert index == order[place]
                    file.write(np.ascontiguousarray(states, dtype="<f4"))
    finally:
        if world and world.size > 1:  # the others wait for this rank's share, whether it has the file or cannot write
            for _ in outputs:
                pass
    path.touch()  # used now
    rows = np.load(path, mmap_mode="r")
    starts = np.cumsum([0, *lengths])
    mapped = {
        int(index): rows[start : start + length]
        for index, start, length in zip(order, starts[:-1], lengths, strict=True)
    }
    return _joined(examples, places, mapped), path


def fingerprint(bert: Any, texts: Sequence[Example], collator: TextCollator) -> str:
    """A digest of all that the outputs depend on: configuration and weights of the encoder, ids and masks in order."""
    digest = hashlib.sha256(FORMAT.encode())
    digest.update(json.dumps(bert.config.to_dict(), sort_keys=True, default=str).encode())
    digest.update(collator.padding_side.encode())
    for name, array in sorted(tree_flatten(bert.parameters())):
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array))
    for text in texts:
        for key in TEXT_KEYS:
            if key in text:
                ids = np.ascontiguousarray(text[key], dtype=np.int32)
                digest.update(f"{key} {len(ids)}".encode())
                digest.update(ids)
    return digest.hexdigest()[:32]


def _outputs(
    bert: Any,
    texts: Sequence[Example],
    collator: TextCollator,
    batch_size: int,
    progress: Any,
    stop: Callable[[], bool],
    world: World | None,
    needed: bool = True,
) -> Iterator[tuple[int, np.ndarray]]:
    """Each text's index and states ``(L, D)``, short texts first; nothing where they are not needed on any rank."""
    rank, size = (world.rank, world.size) if world else (0, 1)
    gather = world.gather if world else lambda arrays: [arrays]
    if not any(found["needed"] for found in gather({"needed": np.array(needed)})):
        return

    def states(batch: BatchIndices) -> np.ndarray:
        arrays = collator.pad_texts([texts[index] for index in batch.indices])
        encoded = bert(
            arrays["input_ids"], arrays.get("attention_mask"), arrays.get("token_type_ids"), compute_pooling=False
        )
        return np.array(encoded.last_hidden_state.astype(mx.float32))

    sampler = LengthBucketSampler([token_count(text) for text in texts], batch_size, shuffle=False)
    batches = sampler.batches()
    turns = [batches[start : start + size] for start in range(0, len(batches), size)]
    for turn in progress(turns) if progress else turns:
        own = {"stop": np.array(stop())}
        if rank < len(turn) and not own["stop"]:
            own["states"] = states(turn[rank])
        shares = gather(own)
        if any(share["stop"] for share in shares):
            raise KeyboardInterrupt("[cache] stopped while the frozen encoder ran over the texts. Start again.")
        for batch, share in zip(turn, shares, strict=False):
            for index, row in zip(batch.indices, share["states"], strict=True):
                length = token_count(texts[index])
                yield int(index), row[:length] if collator.padding_side == "right" else row[len(row) - length :]


def _is_complete(path: Path, shape: tuple[int, int]) -> bool:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # none there, or cut off
        return False
    return rows.shape == shape and rows.dtype == np.float32


def _make_room(folder: Path, needed: int, limit: int, keep: Sequence[Path]) -> None:
    """Remove the longest unused files until ``needed`` bytes fit both the limit and the disk."""
    for path in folder.glob(f".{PREFIX}*"):
        if time.time() - path.stat().st_mtime > ABANDONED:
            path.unlink(missing_ok=True)
    files = {path: path.stat() for path in folder.glob(f"{PREFIX}*.npy") if path not in keep}
    total = needed + sum(path.stat().st_size for path in keep if path.exists())
    total += sum(status.st_size for status in files.values())
    for path, status in sorted(files.items(), key=lambda item: item[1].st_mtime):
        if total > limit or shutil.disk_usage(folder).free < needed:
            path.unlink(missing_ok=True)
            total -= status.st_size
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"[cache] expected {-(-needed // MIB)} MiB free in {folder} but got {free // MIB}.")
