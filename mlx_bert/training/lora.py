"""LoRA and DoRA: train small factors beside frozen matrices, chosen by the paths of their layers.

LoRA (Hu et al. 2021, arXiv 2106.09685): ``y = W x + b + s B A x`` with ``s = alpha / rank``.
DoRA (Liu et al. 2024, arXiv 2402.09353): the rows of ``W + s B A`` are brought to a trained length.

Dimension key: I input width, O output width, r rank.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_bert.checkpoint import entries_of, new_folder, read_json, write_json, write_safetensors

ADAPTERS = "adapters.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
TRAINED = ("lora_a", "lora_b", "magnitude")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Settings of adapters.

    Attributes:
        patterns: which linear layers, as shell patterns over their paths (``"*.attention.*"``).
        rank: r, the width of the factors.
        alpha: the update's factor is ``alpha / rank``.
        dropout: probability of dropping an input of the factors, in training.
        dora: also train the length of each row of the weight.
    """

    patterns: tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    dora: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", tuple(self.patterns))
        if not self.patterns:
            raise ValueError("[lora] expected at least one pattern but got none. Give for example '*.attention.*'.")
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"[lora] expected rank >= 1, alpha > 0 and dropout in [0, 1) but got {self.rank}, {self.alpha} and "
                f"{self.dropout}. Correct them."
            )


class LoRALinear(nn.Module):
    """A frozen linear layer with trained factors beside it; it begins as the layer alone.

    Args:
        linear: ``nn.Linear`` or ``nn.QuantizedLinear``, weight ``(O, I)``.
        config: rank, alpha, dropout, dora.
    """

    def __init__(self, linear: nn.Module, config: LoRAConfig) -> None:
        super().__init__()
        self.linear = linear
        self._scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        weight = dense_weight(linear)
        bound = 1 / math.sqrt(weight.shape[1])
        self.lora_a = mx.random.uniform(-bound, bound, (weight.shape[1], config.rank))
        self.lora_b = mx.zeros((config.rank, weight.shape[0]))
        if config.dora:
            self.magnitude = _row_lengths(weight)
        linear.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        """``(..., I)`` -> ``(..., O)``."""
        update = (self._scale * (self.dropout(x) @ self.lora_a) @ self.lora_b).astype(x.dtype)
        if "magnitude" not in self:
            return self.linear(x) + update
        bias = self.linear.get("bias")
        output = self.linear(x) if bias is None else self.linear(x) - bias
        factor = self.magnitude / mx.stop_gradient(_row_lengths(self._adapted(dense_weight(self.linear))))
        output = (output + update) * factor.astype(x.dtype)
        return output if bias is None else output + bias

    def _adapted(self, weight: mx.array) -> mx.array:
        """``W + s B A``, ``(O, I)`` float32."""
        return weight.astype(mx.float32) + self._scale * (self.lora_a @ self.lora_b).T

    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same (without dropout), in the type of the old one."""
        weight = dense_weight(self.linear)
        adapted = self._adapted(weight)
        if "magnitude" in self:
            adapted = adapted * (self.magnitude / _row_lengths(adapted))[:, None]
        result = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in self.linear)
        result.weight = adapted.astype(weight.dtype)
        if "bias" in self.linear:
            result.bias = self.linear.bias
        return result


def dense_weight(linear: nn.Module) -> mx.array:
    """The weight ``(O, I)`` of a linear layer, dequantised if need be."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight
    return mx.dequantize(
        linear.weight, linear.scales, linear.get("biases"), linear.group_size, linear.bits, mode=linear.mode
    )


def _row_lengths(weight: mx.array) -> mx.array:
    return mx.linalg.norm(weight.astype(mx.float32), axis=1)


def apply_lora(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Put adapters beside the linear layers that match, and freeze all else but them and what is outside ``bert``.

    Args:
        model: changed in place.
        config: patterns over the paths of ``model.named_modules()``.

    Returns:
        The paths of the adapted layers.

    Raises:
        ValueError: a pattern matches no linear layer, or adapters are there already.
    """
    if lora_layers(model):
        raise ValueError("[lora] expected a model without adapters but it has some. Merge them first (merge_lora).")
    linear = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear | nn.QuantizedLinear)}
    chosen: dict[str, nn.Module] = {}
    for pattern in config.patterns:
        found = {path: module for path, module in linear.items() if fnmatch.fnmatchcase(path, pattern)}
        if not found:
            shown = ", ".join(sorted(linear)[:8])
            raise ValueError(
                f"[lora] the pattern {pattern!r} matches no linear layer. Layers are, for example: {shown}. Correct it."
            )
        chosen |= found
    adapted = {path: LoRALinear(module, config) for path, module in chosen.items()}
    _replace(model, adapted)
    freeze_all_but_lora(model)
    return sorted(adapted)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers of a model by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoRALinear)}


def freeze_all_but_lora(model: nn.Module) -> None:
    """Freeze the encoder (``model.bert``, or the model if it has none) but for its adapters."""
    getattr(model, "bert", model).freeze()
    for layer in lora_layers(model).values():
        layer.unfreeze(keys=list(TRAINED), recurse=False)
        layer.linear.freeze()


def merge_lora(model: nn.Module) -> dict[str, LoRALinear]:
    """Replace each adapted layer by a plain one that computes the same.

    Returns:
        The adapted layers by path: what :func:`unmerge_lora` takes to put them back, exactly.
    """
    layers = lora_layers(model)
    _replace(model, {path: layer.merged() for path, layer in layers.items()})
    return layers


def unmerge_lora(model: nn.Module, layers: dict[str, LoRALinear]) -> None:
    """Put the adapted layers of :func:`merge_lora` back."""
    _replace(model, layers)


@contextmanager
def merged_lora(model: nn.Module) -> Iterator[None]:
    """Within, the model has plain layers, as for saving; a model without adapters stays as it is."""
    layers = merge_lora(model)
    try:
        yield
    finally:
        unmerge_lora(model, layers)


def _replace(model: nn.Module, modules: dict[str, Any]) -> None:
    if modules:
        model.update_modules(tree_unflatten(list(modules.items())))


def save_adapters(model: nn.Module, folder: str | Path, config: LoRAConfig) -> None:
    """Write the adapters alone: ``adapters.safetensors`` and ``adapter_config.json``.

    Raises:
        ValueError: the model has no adapters.
    """
    arrays = _adapter_arrays(model)
    if not arrays:
        raise ValueError("[lora] expected a model with adapters but it has none. Apply them first (apply_lora).")
    with new_folder(folder, overwrite=True) as partial:
        write_safetensors(partial / ADAPTERS, entries_of(arrays))
        write_json(partial / ADAPTER_CONFIG, asdict(config))


def load_adapters(model: nn.Module, folder: str | Path) -> LoRAConfig:
    """Apply saved adapters to the model that they were trained on.

    Raises:
        FileNotFoundError: no adapters there.
        ValueError: they belong to another model.
    """
    folder = Path(folder)
    config = LoRAConfig(**read_json(folder / ADAPTER_CONFIG))
    saved = mx.load(str(folder / ADAPTERS), format="safetensors")
    apply_lora(model, config)
    mine = _adapter_arrays(model)
    differing = sorted(mine.keys() ^ saved.keys())
    differing += [name for name in mine.keys() & saved.keys() if mine[name].shape != saved[name].shape]
    if differing:
        merge_lora(model)  # new factors are zero: this is the model as it came
        raise ValueError(
            f"[lora] the adapters in {folder} do not fit this model: {', '.join(differing[:5])}. Use its own."
        )
    model.update(tree_unflatten(list(saved.items())))
    return config


def _adapter_arrays(model: nn.Module) -> dict[str, mx.array]:
    return {
        f"{path}.{name}": layer[name] for path, layer in lora_layers(model).items() for name in TRAINED if name in layer
    }


def config_from_args(args: Any) -> LoRAConfig | None:
    """The adapters that ``TrainingArgs`` asks for, or None."""
    if args.lora is None:
        return None
    patterns: Sequence[str] = [pattern.strip() for pattern in args.lora.split(",") if pattern.strip()]
    return LoRAConfig(
        patterns=tuple(patterns), rank=args.lora_rank, alpha=args.lora_alpha, dropout=args.lora_dropout, dora=args.dora
    )
