"""Quantising a checkpoint, and undoing it: one tensor at a time, under Hugging Face's names.

A quantised matrix ``x.weight`` becomes packed ``x.weight`` (uint32), ``x.scales`` and, in affine mode, ``x.biases``.
Groups lie along the last axis, so the parts of a matrix that memory holds fused (q, k, v) are quantised one by one.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from convert.architecture import Parts
from mlx_bert.checkpoint import TensorEntry, quantization_of


@dataclass(frozen=True)
class Mode:
    """What a quantisation mode of MLX takes; the first of each is the default."""

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]


MODES = {
    "affine": Mode((8, 2, 3, 4, 5, 6), (64, 32, 128)),
    "mxfp4": Mode((4,), (32,)),
    "mxfp8": Mode((8,), (32,)),
    "nvfp4": Mode((4,), (16,)),
}
EMBEDDING_BITS = 8  # below, an encoder loses most through its word embeddings
# all-MiniLM-L6-v2 in affine mode, as --verify reports it.
KNOWN_COSINES = "8 bits 0.9994, 6 bits 0.991, 4 bits 0.87"


@dataclass(frozen=True)
class Quantization:
    """How to quantise.

    Args:
        mode: ``"affine"`` (scale and bias per group), ``"mxfp4"``, ``"mxfp8"`` or ``"nvfp4"`` (floating types).
        bits: bits of a weight; None for the mode's default: 8, 4, 8 and 4.
        group_size: weights that share a scale; None for the mode's default: 64, 32, 32 and 16.
        overrides: regular expression -> bits, or None to leave floating, for matrices whose name in the file it is
            found in; the last one that matches counts. Without a match, word embeddings get 8 bits at least.

    Raises:
        ValueError: an unknown mode, bits or group size that the mode does not have, or a bad expression.
    """

    mode: str = "affine"
    bits: int | None = None
    group_size: int | None = None
    overrides: Mapping[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"[quantize] expected mode to be one of {', '.join(MODES)} but got {self.mode!r}.")
        allowed = MODES[self.mode]
        for key, values in (("bits", allowed.bits), ("group_size", allowed.group_sizes)):
            if getattr(self, key) is None:
                object.__setattr__(self, key, values[0])
            if getattr(self, key) not in values:
                wanted = " or ".join(str(value) for value in sorted(values))
                raise ValueError(
                    f"[quantize] mode {self.mode!r} expects {key} to be {wanted} but got {getattr(self, key)!r}."
                )
        for pattern, bits in self.overrides.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"[quantize] {pattern!r} is not a regular expression: {error}.") from None
            if bits is not None:
                self._with_bits(bits)

    def to_dict(self) -> dict[str, Any]:
        """As ``config.json["quantization"]`` has it, and as ``mx.quantize`` takes it."""
        return {"mode": self.mode, "bits": self.bits, "group_size": self.group_size}

    def of_matrix(self, name: str, is_embedding: bool) -> Quantization | None:
        """How one matrix is quantised, by its name in the file; None if it stays floating."""
        for pattern, bits in reversed(self.overrides.items()):
            if re.search(pattern, name):
                return None if bits is None else self._with_bits(bits)
        if is_embedding and self.bits < EMBEDDING_BITS:
            return self._with_bits(EMBEDDING_BITS)
        return Quantization(**self.to_dict())

    def _with_bits(self, bits: int) -> Quantization:
        """The same with other bits: in this mode if it has them, else in a floating mode that has, else affine."""
        modes = [self.mode, *(("mxfp8",) if self.mode != "affine" else ()), "affine"]
        mode = next((mode for mode in modes if bits in MODES[mode].bits), "affine")
        return Quantization(mode, bits, self.group_size if mode == self.mode else None)

    def warn_if_coarse(self) -> None:
        """Say what fewer than 8 bits cost an encoder."""
        if self.bits < 8:
            warnings.warn(
                "[quantize] encoders lose quality below 8 bits (all-MiniLM-L6-v2, smallest cosine to float32: "
                f"{KNOWN_COSINES}). Check yours with --verify.",
                stacklevel=3,
            )


def matrices_to_quantize(parts: Parts, quantization: Quantization) -> tuple[dict[str, Quantization], list[str]]:
    """The encoder's linear layers and embedding tables by their names in the file: how to quantise, and which not to.

    Norms, biases, poolers and heads keep their floating type, as do matrices whose rows don't divide into groups.

    Raises:
        ValueError: overrides that treat the parts of one fused projection (q, k and v) differently.
    """
    chosen: dict[str, Quantization] = {}
    left: list[str] = []
    for path, module in _leaves(parts.model):
        if not isinstance(module, nn.Linear | nn.Embedding) or path.startswith("pooler"):
            continue
        stored = [parts.encoder[f"{disk}.weight"] for disk in parts.names.disk_paths(path)]
        how = {name: quantization.of_matrix(name, isinstance(module, nn.Embedding)) for name in stored}
        first = how[stored[0]]
        if any(other != first for other in how.values()):
            raise ValueError(
                f"[quantize] expected one way for {', '.join(stored)}, which are one matrix in memory. "
                "Widen the expression of the override."
            )
        if first is None or module.weight.shape[-1] % first.group_size:
            left += stored
        else:
            chosen |= how
    return chosen, sorted(left)


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(path, module) for path, module in model.named_modules() if not module.children()]


def quantize_entry(entry: TensorEntry, quantization: Quantization) -> list[TensorEntry]:
    """The entries that take the place of one floating matrix. The matrix is quantised when the first is loaded."""
    options = quantization.to_dict()
    stem = entry.name.removesuffix(".weight")
    parts = ("weight", "scales", "biases")
    packed = mx.quantize(mx.zeros(entry.shape, dtype=entry.dtype), **options)  # lazy: only its shapes are used
    ready: dict[str, mx.array] = {}

    def load(part: str) -> mx.array:
        if part not in ready:
            arrays = mx.quantize(entry.load(), **options)
            mx.eval(*arrays)
            ready.update(zip(parts, arrays, strict=False))
        return ready.pop(part)

    return [
        TensorEntry(f"{stem}.{part}", array.shape, array.dtype, lambda part=part: load(part))
        for part, array in zip(parts, packed, strict=False)
    ]


def dequantized(
    entries: Mapping[str, TensorEntry], quantization: Mapping[str, Any] | None, dtype: mx.Dtype | None = None
) -> dict[str, TensorEntry]:
    """Entries of a quantised checkpoint as floating tensors again.

    Args:
        entries: tensors by name.
        quantization: ``config.json["quantization"]``.
        dtype: type of what was packed; None for that of the scales (affine) or bfloat16.

    Raises:
        ValueError: scales without that entry, or shapes that don't belong together.
    """
    stems = [name.removesuffix(".scales") for name in entries if name.endswith(".scales")]
    if stems and not isinstance(quantization, Mapping):
        raise ValueError("[quantize] the weights are quantised but config.json has no 'quantization'. Don't guess.")
    result = dict(entries)
    for stem in stems:
        names = [f"{stem}.{part}" for part in ("weight", "scales", "biases")]
        if names[0] not in entries:
            raise ValueError(f"[quantize] {names[1]!r} has no {names[0]!r} beside it. The file is incomplete.")
        options = _options(quantization, stem)
        pieces = [result.pop(name) for name in names if name in result]
        result[names[0]] = _unpack(names[0], pieces, options, dtype)
    return result


def _options(quantization: Mapping[str, Any], stem: str) -> dict[str, Any]:
    """The options of one matrix, which may have an entry of its own."""
    return Quantization(**quantization_of(quantization, [stem])).to_dict()


def _unpack(name: str, pieces: list[TensorEntry], options: dict[str, Any], dtype: mx.Dtype | None) -> TensorEntry:
    if dtype is None:
        dtype = pieces[1].dtype if options["mode"] == "affine" else mx.bfloat16

    def load() -> mx.array:
        return mx.dequantize(*(piece.load() for piece in pieces), **options).astype(dtype)

    packed = pieces[0].shape
    if len(packed) != 2 or pieces[0].dtype != mx.uint32:
        raise ValueError(f"[quantize] expected {name!r} to be a packed matrix but got {pieces[0].dtype} {packed}.")
    columns = packed[1] * 32 // options["bits"]
    if pieces[1].shape != (packed[0], columns // options["group_size"]):
        raise ValueError(
            f"[quantize] the scales of {name!r} have shape {pieces[1].shape}, which does not fit {options}. "
            "config.json['quantization'] does not belong to this file."
        )
    return TensorEntry(name, (packed[0], columns), dtype, load)
