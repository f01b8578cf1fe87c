"""The mean of several checkpoints' weights: often a little better than any one of them, at no cost in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_bert.checkpoint import WEIGHTS


def average_checkpoints(folders: Sequence[str | Path]) -> dict[str, mx.array]:
    """The mean of the arrays of checkpoints, summed in float64; whole numbers are the last one's.

    Args:
        folders: checkpoints of one run, oldest first (``checkpoints.last_checkpoints``, ``best_checkpoints``).

    Returns:
        The arrays under the names that ``checkpoints.load_model_arrays`` takes.

    Raises:
        ValueError: no folder, or checkpoints of different models.
    """
    if not folders:
        raise ValueError("[average] expected at least one checkpoint but got none. Set save_every.")
    files = [mx.load(str(Path(folder) / WEIGHTS), format="safetensors") for folder in folders]
    mean: dict[str, mx.array] = {}
    for name in dict.fromkeys(name for arrays in files for name in arrays):
        if len({tuple(arrays[name].shape) if name in arrays else None for arrays in files}) > 1:
            raise ValueError(f"[average] the checkpoints differ in {name}. Give those of one run.")
        newest = files[-1][name]
        if not mx.issubdtype(newest.dtype, mx.floating):
            mean[name] = newest
            continue
        total = np.zeros(newest.shape, dtype=np.float64)
        for arrays in files:
            total += np.array(arrays[name].astype(mx.float32))
        mean[name] = mx.array((total / len(files)).astype(np.float32)).astype(newest.dtype)
    return mean
