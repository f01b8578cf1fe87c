"""What a run is made of besides its settings and data, described so that a resumed run can be held against it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

LONG = 32  # entries from which a list is described by its length and a checksum
DEEPEST = 5


def describe(thing: Any, depth: int = 0) -> Any:
    """An object's settings as JSON values.

    What has a method ``settings()`` is described by its result; other objects by their attributes, arrays by shape and
    checksum, modules and functions by name. So samplers, collators and objectives need no code for this, unless an
    attribute says nothing about the training or differs from run to run.

    Args:
        thing: anything.
        depth: how deep it lies within what is described.
    """
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, Enum):
        return thing.value
    if isinstance(thing, Mapping):
        return {str(key): describe(value, depth + 1) for key, value in thing.items()}
    if isinstance(thing, (mx.array, np.ndarray, np.generic)):
        array = np.array(thing.astype(mx.float32) if getattr(thing, "dtype", None) == mx.bfloat16 else thing)
        return array.item() if array.ndim == 0 else f"{array.shape} {zlib.crc32(np.ascontiguousarray(array)):08x}"
    if isinstance(thing, (Sequence, set, frozenset)):
        entries = [
            describe(entry, depth + 1) for entry in (sorted(thing) if isinstance(thing, (set, frozenset)) else thing)
        ]
        if len(entries) < LONG:
            return entries
        return f"{len(entries)} entries {zlib.crc32(json.dumps(entries).encode()):08x}"
    name = getattr(thing, "__qualname__", None)
    if name is not None or isinstance(thing, nn.Module):
        return name or type(thing).__qualname__
    own = {"class": type(thing).__qualname__}
    if callable(settings := getattr(thing, "settings", None)):
        return own | {str(key): describe(value, depth + 1) for key, value in settings().items()}
    if depth < DEEPEST:
        own |= {key: describe(value, depth + 1) for key, value in getattr(thing, "__dict__", {}).items()}
    return own


def setup_of(model: nn.Module, objective: Any, sampler: Any, collate: Any, data: str, ranks: int) -> dict[str, Any]:
    """The description of a run's parts by name, JSON values.

    Args:
        model: its head's configuration counts: losses, class counts, weights of tasks.
        objective, sampler, collate: as in ``Trainer``.
        data: digest of the training examples.
        ranks: processes that train together.
    """
    head = getattr(model, "head", None)
    config = getattr(head, "config", None)
    parts = {
        "number of ranks": ranks,
        "training data": data,
        "head": {
            "class": type(head).__qualname__,
            "config": config.to_dict() if hasattr(config, "to_dict") else describe(config),
            "tasks": describe(getattr(head, "task_configs", None)),
        },
        "objective": describe(objective),
        "sampler": describe(sampler),
        "collator": describe(collate),
    }
    return json.loads(json.dumps(parts, default=describe))


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """What differs between two descriptions, one text each."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = list(dict.fromkeys((*before, *now)))
        return [text for name in names
                for text in differences(before.get(name), now.get(name), f"{path}.{name}".strip("."))]  # fmt: skip
    return [] if json.dumps(before) == json.dumps(now) else [f"{path} was {before!r} and is {now!r}".lstrip()]
