"""What stands behind the encoder in a sentence-transformers folder: Pooling, Dense, LayerNorm, Normalize.

A module takes and returns the features of a batch: ``token_embeddings (B, L, D)``, ``attention_mask (B, L)`` or None,
``prompt_length`` (tokens of the prompt, first special token included), and ``sentence_embedding (B, D)`` once pooled.
Names, configs and numbers are those of sentence-transformers 6 (``sentence_transformer/modules``, ``base/modules``).

Dimensions: B batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from heads.pooling import first_pool, last_pool, max_pool, mean_pool, weighted_pool
from mlx_bert.checkpoint import (
    CONFIG,
    WEIGHTS,
    entries_of,
    load_strict,
    read_json,
    read_weights,
    write_json,
    write_safetensors,
)
from mlx_bert.inference.similarity import normalize

Features = dict[str, Any]
POOLED, TOKENS = "sentence_embedding", "token_embeddings"

# The order in which poolings are concatenated; the older configs have one flag for each.
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}

# Last component of torch's dotted path -> the function, with torch's default options.
ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "Identity": lambda x: x,
    "Tanh": mx.tanh,
    "ReLU": nn.relu,
    "ReLU6": nn.relu6,
    "GELU": nn.gelu,
    "SiLU": nn.silu,
    "Sigmoid": mx.sigmoid,
    "LeakyReLU": nn.leaky_relu,
    "ELU": nn.elu,
    "Softplus": nn.softplus,
    "Softsign": nn.softsign,
    "Mish": nn.mish,
    "Hardswish": nn.hardswish,
}


class Pooling(nn.Module):
    """Token embeddings to one vector per text: the chosen poolings of the real tokens, side by side.

    Args:
        config: ``pooling_mode`` (a name or a list) or the older flags, ``include_prompt``, and the width as
            ``embedding_dimension`` or ``word_embedding_dimension``.

    Raises:
        ValueError: no width, or a pooling that does not exist.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"[Pooling] expected embedding_dimension to be a positive integer but got {width!r}.")
        self.config = dict(config)
        self.modes = pooling_modes(config)
        self.include_prompt = bool(config.get("include_prompt", True))
        self.output_size = width * len(self.modes)

    def __call__(self, features: Features) -> Features:
        states, mask = features[TOKENS].astype(mx.float32), features["attention_mask"]
        prompt_length = 0 if self.include_prompt else features.get("prompt_length", 0)
        pooled = [pool_tokens(mode, states, mask, prompt_length) for mode in self.modes]
        return {**features, POOLED: pooled[0] if len(pooled) == 1 else mx.concatenate(pooled, axis=-1)}


def pooling_modes(config: Mapping[str, Any]) -> list[str]:
    """The poolings that a config asks for, in the order of concatenation; mean when it says nothing."""
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for mode, flag in POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if unknown := [mode for mode in modes if mode not in POOLING_FLAGS]:
        raise ValueError(f"[Pooling] expected pooling_mode to be among {', '.join(POOLING_FLAGS)} but got {unknown}.")
    return modes


def pool_tokens(mode: str, states: mx.array, mask: mx.array | None, prompt_length: int = 0) -> mx.array:
    """One pooling ``(B, L, D) -> (B, D)``.

    Args:
        mask: ``(B, L)``, non-zero for real tokens; None when all are.
        prompt_length: so many tokens from the first real one on do not count.
    """
    B, L, _ = states.shape
    real = mx.ones((B, L), mx.bool_) if mask is None else mask.astype(mx.bool_)
    first = mx.argmax(real, axis=1)[:, None]  # tokens of padding on the left
    if prompt_length:
        mask = real & (mx.arange(L) >= first + prompt_length)
    if mode == "cls":
        return first_pool(states, mask)
    if mode == "max":
        return max_pool(states, mask)
    if mode == "lasttoken":
        return last_pool(states, mask)
    if mode == "weightedmean":
        weights = (mx.arange(1, L + 1) - first) * (real if mask is None else mask)
        weights = weights.astype(mx.float32)
        return weighted_pool(states, weights / mx.maximum(mx.sum(weights, axis=1, keepdims=True), 1e-9))
    pooled = mean_pool(states, mask)
    if mode == "mean_sqrt_len_tokens":
        count = mx.full((B, 1), L) if mask is None else mx.sum(mask, axis=1, keepdims=True)
        pooled = pooled * mx.sqrt(count.astype(mx.float32))
    return pooled


class Dense(nn.Module):
    """``activation(W x + b)``, plus ``x`` (projected if need be) with ``use_residual``.

    Args:
        config: ``in_features``, ``out_features``, ``bias``, ``activation_function`` (a torch class by its dotted path),
            ``use_residual``, ``module_input_name``, ``module_output_name``.

    Raises:
        ValueError: sizes are missing, or an activation that is not known.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        if missing := [key for key in ("in_features", "out_features") if not isinstance(config.get(key), int)]:
            raise ValueError(f"[Dense] expected {' and '.join(missing)} in the module's config.json but got none.")
        self.config = dict(config)
        self.output_size = config["out_features"]
        path = config.get("activation_function", "torch.nn.modules.activation.Tanh")
        name = path.rpartition(".")[2]
        if not path.startswith("torch.nn.") or name not in ACTIVATIONS:
            raise ValueError(
                f"[Dense] activation_function {path!r} is not supported. "
                f"Supported: torch.nn's {', '.join(ACTIVATIONS)}."
            )
        self._activation = ACTIVATIONS[name]
        self.use_residual = bool(config.get("use_residual", False))
        self.linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        if self.use_residual and config["in_features"] != config["out_features"]:
            self.residual = nn.Linear(config["in_features"], config["out_features"], bias=False)
        self.source, self.target = _names(config)

    def __call__(self, features: Features) -> Features:
        x = features[self.source].astype(self.linear.weight.dtype)
        y = self._activation(self.linear(x))
        if self.use_residual:
            y = y + (self.residual(x) if "residual" in self else x)
        return {**features, self.target: y}


class LayerNorm(nn.Module):
    """Layer normalisation of the pooled vectors; ``config["dimension"]`` is their width."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(config.get("dimension"), int):
            raise ValueError(f"[LayerNorm] expected dimension to be an integer but got {config.get('dimension')!r}.")
        self.config = dict(config)
        self.output_size = config["dimension"]
        self.norm = nn.LayerNorm(config["dimension"])

    def __call__(self, features: Features) -> Features:
        return {**features, POOLED: self.norm(features[POOLED])}


class Normalize(nn.Module):
    """Vectors of length 1."""

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config = dict(config or {})
        self.output_size = None  # as it comes in
        self.source, self.target = _names(self.config)

    def __call__(self, features: Features) -> Features:
        if self.source not in features:
            return features
        return {**features, self.target: normalize(features[self.source])}


def _names(config: Mapping[str, Any]) -> tuple[str, str]:
    """The features that a module reads and writes."""
    source = config.get("module_input_name") or POOLED
    return source, config.get("module_output_name") or source


MODULES: dict[str, type[nn.Module]] = {
    "Pooling": Pooling,
    "Dense": Dense,
    "LayerNorm": LayerNorm,
    "Normalize": Normalize,
}


def load_module(kind: str, folder: Path) -> nn.Module:
    """A module by the last component of its type in ``modules.json``, from its folder.

    Raises:
        ValueError: a type that is not supported, or weights that do not fit.
        FileNotFoundError: config or weights are missing.
    """
    name = kind.rpartition(".")[2]
    if name not in MODULES:
        raise ValueError(
            f"[SentenceEncoder] modules.json asks for {kind!r}, which is not supported. Supported: Transformer, "
            f"{', '.join(MODULES)}."
        )
    has_config = name != "Normalize" or (folder / CONFIG).is_file()
    module = MODULES[name](read_json(folder / CONFIG) if has_config else {})
    if tree_flatten(module.parameters()):
        load_strict(module, read_weights(folder), mx.float32, where=name)
    return module.eval()


def save_module(module: nn.Module, folder: Path) -> None:
    """Write a module's config, and its weights if it has any, so that sentence-transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, module.config)
    if weights := dict(tree_flatten(module.parameters())):
        write_safetensors(folder / WEIGHTS, entries_of(weights))
