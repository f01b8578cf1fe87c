"""The type that a model computes in."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from mlx_bert.checkpoint import CONFIG, float_dtype, read_json
from mlx_bert.encoders import find_encoder
from mlx_bert.inference.multihead_files import MULTIHEAD_ENCODER
from mlx_bert.model import ENCODER_FOLDER

STORED = "stored"


def on_gpu() -> bool:
    """Whether the default device is a GPU."""
    return mx.default_device().type == mx.DeviceType.gpu


def compute_dtype(dtype: str | mx.Dtype | None, folder: str | Path) -> mx.Dtype | None:
    """The type to load a model's weights in; None as stored.

    What is asked for counts: a floating type, or ``"stored"``. Otherwise it is float32 on a CPU, which has no fast
    16-bit arithmetic. On a GPU it is float16, or the type that the architecture's file calls ``HALF`` where the
    activations leave float16's range; quantised weights stay as they are stored.

    Args:
        dtype: what is asked for, or None.
        folder: the encoder's, with its ``config.json``, or one that has the encoder's folder in it.

    Raises:
        ValueError: a name that is no floating type (see :func:`mlx_bert.checkpoint.float_dtype`), or an architecture
            that is not supported.
    """
    if isinstance(dtype, str) and dtype == STORED:
        return None
    if dtype is not None:
        return float_dtype(dtype, [STORED])
    if not on_gpu():
        return mx.float32
    places = (Path(folder, part, CONFIG) for part in ("", ENCODER_FOLDER, MULTIHEAD_ENCODER))
    config = next((read_json(path) for path in places if path.is_file()), None)
    if config is None or config.get("quantization"):  # without one loading says what is missing
        return None
    return getattr(find_encoder(config), "HALF", mx.float16)
