"""Embeddings in fewer bytes: one per value (int8, uint8) or one bit per value (binary, ubinary).

The numbers are those of ``sentence_transformers.quantize_embeddings``. Dimensions: N embeddings, D values each.
"""

from __future__ import annotations

import logging

import numpy as np

logger = logging.getLogger("mlx_bert")

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


def check_precision(precision: str) -> str:
    """``precision`` if it is known.

    Raises:
        ValueError: it is not.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"[encode] expected precision to be one of {', '.join(PRECISIONS)} but got {precision!r}.")
    return precision


def quantize_embeddings(
    embeddings: np.ndarray,
    precision: str,
    ranges: np.ndarray | None = None,
    calibration_embeddings: np.ndarray | None = None,
) -> np.ndarray:
    """Reduce embeddings to a byte or a bit per value.

    Args:
        embeddings: float ``(N, D)``.
        precision: ``"float32"`` (unchanged), ``"int8"``, ``"uint8"``: 256 equal steps between each dimension's ends;
            ``"binary"`` (int8), ``"ubinary"`` (uint8): one bit for each value, set where it is positive, 8 to a byte.
        ranges: lowest and highest value of each dimension ``(2, D)``, for int8 and uint8.
        calibration_embeddings: float ``(K, D)`` to take the ranges from; None takes them from ``embeddings``, which
            makes results depend on what was encoded together.

    Returns:
        ``(N, D)``, or ``(N, ceil(D / 8))`` for bits.

    Raises:
        ValueError: an unknown precision, integer input, or ranges that would come from a single embedding.
    """
    check_precision(precision)
    embeddings = np.asarray(embeddings)
    if not np.issubdtype(embeddings.dtype, np.floating):
        raise ValueError(f"[encode] expected floating embeddings to quantise but got {embeddings.dtype}.")
    if precision == "float32":
        return embeddings.astype(np.float32, copy=False)
    if precision == "ubinary":
        return np.packbits(embeddings > 0, axis=-1)
    if precision == "binary":
        return (np.packbits(embeddings > 0, axis=-1) ^ 0x80).view(np.int8)  # the byte minus 128
    dtype = np.int8 if precision == "int8" else np.uint8
    if not embeddings.size:
        return np.zeros(embeddings.shape, dtype)
    low, high = _ranges(embeddings, ranges, calibration_embeddings, precision)
    step = (high - low) / 255
    steps = np.clip(np.floor((embeddings - low) / np.where(step == 0, 1, step)), 0, 255)
    return (steps - 128 if precision == "int8" else steps).astype(dtype)


def dequantize_embeddings(
    codes: np.ndarray, precision: str, ranges: np.ndarray | None = None, width: int | None = None
) -> np.ndarray:
    """What the codes of :func:`quantize_embeddings` stand for.

    Args:
        codes: ``(N, D)``, or ``(N, ceil(D / 8))`` for bits.
        precision: with which they were made.
        ranges: the ``(2, D)`` with which they were made, for int8 and uint8.
        width: D, for bits; None keeps those that fill the last byte.

    Returns:
        ``(N, D)`` float32: the lower end of each value's step, or 0 and 1 for bits.

    Raises:
        ValueError: an unknown precision, or int8 or uint8 without ranges.
    """
    if check_precision(precision) == "float32":
        return codes
    if precision.endswith("binary"):
        packed = codes.view(np.uint8) ^ (0x80 if precision == "binary" else 0)
        return np.unpackbits(packed, axis=-1)[..., :width].astype(np.float32)
    if ranges is None:
        raise ValueError(f"[encode] expected ranges to read {precision} codes but got none. Give those of making them.")
    low, high = np.asarray(ranges, np.float32)
    step = (high - low) / 255
    return (codes.astype(np.float32) + (128 if precision == "int8" else 0)) * np.where(step == 0, 1, step) + low


def _ranges(
    embeddings: np.ndarray, ranges: np.ndarray | None, calibration: np.ndarray | None, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    if ranges is None and calibration is None:
        if embeddings.ndim == 1 or len(embeddings) == 1:
            raise ValueError(
                f"[encode] expected ranges or calibration_embeddings to quantise a single embedding to {precision}: "
                "its own range is empty. Call quantize_embeddings with embeddings of typical texts."
            )
        if len(embeddings) < 100:
            logger.warning(
                "%s ranges come from %d embeddings only; give calibration_embeddings of typical texts.",
                precision,
                len(embeddings),
            )
        calibration = embeddings
    if ranges is None:
        ranges = np.stack([np.min(calibration, axis=0), np.max(calibration, axis=0)])
    ranges = np.asarray(ranges, np.float32)
    if ranges.shape != (2, embeddings.shape[-1]):
        raise ValueError(f"[encode] expected ranges of shape (2, {embeddings.shape[-1]}) but got {ranges.shape}.")
    return ranges[0], ranges[1]
