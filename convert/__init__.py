"""Hub checkpoints to folders that mlx-bert loads, and quantised ones back: ``python -m convert --help``.

The names below load on first use, so that ``--help`` works before anything is installed.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import mlx.core as mx

    from convert.conversion import Report, convert_checkpoint
    from convert.hub import fetch
    from convert.quantize import Quantization
    from convert.weights import open_weights

_PUBLIC = {
    "Quantization": "convert.quantize",
    "Report": "convert.conversion",
    "convert_checkpoint": "convert.conversion",
    "fetch": "convert.hub",
    "open_weights": "convert.weights",
}

__all__ = ["Quantization", "Report", "convert", "convert_checkpoint", "fetch", "open_weights"]


def convert(
    source: str | Path,
    output: str | Path | None = None,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    quantization: Quantization | Mapping[str, Any] | None = None,
    verify: bool = False,
) -> Path:
    """Convert a checkpoint and return the new folder; see :func:`convert.conversion.convert_checkpoint`."""
    from convert.conversion import convert_checkpoint

    return convert_checkpoint(source, output, dtype, revision, quantization, verify=verify).output


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'convert' has no attribute {name!r}. Public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
