"""A decoder of mlx-lm as backbone for heads: the states after its last norm, without the language-model head.

The config names it: ``{"model_type": "mlx_lm", "decoder": {...the decoder's own config.json...}}``; or load a decoder's
folder with ``BertCore.from_pretrained(folder, model_type="mlx_lm")``. Attention stays causal, so pool the last token.

Dimensions: B batch, L tokens, D hidden size.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders.base import EncoderConfig, EncoderOutput, NameMap, check_inputs

IN_MEMORY, IN_FILE, HEAD = "decoder.", "model.", "lm_head."
HALF = mx.bfloat16  # to compute in on a GPU: what decoders are trained in, and of whose range some make use
UNBOUNDED = 1 << 20  # tokens, for decoders that name no maximum


def language_model(decoder: Mapping[str, Any]) -> nn.Module:
    """mlx-lm's model for a decoder's config, with weights that nobody has computed.

    Raises:
        ImportError: mlx-lm is not installed.
        ValueError: mlx-lm does not have this architecture, or it is not built as a model with a head.
    """
    name = str(decoder.get("model_type"))
    try:
        from mlx_lm.utils import MODEL_REMAPPING
    except ImportError as error:
        raise ImportError(f"[mlx_lm] a decoder as backbone needs mlx-lm ({error}). pip install mlx-lm.") from None
    module = f"mlx_lm.models.{MODEL_REMAPPING.get(name, name)}"
    if not re.fullmatch(r"[\w.-]+", name) or importlib.util.find_spec(module) is None:
        raise ValueError(f"[mlx_lm] expected a decoder that mlx-lm has but got model_type {name!r}. See mlx_lm/models.")
    architecture = importlib.import_module(module)
    model = architecture.Model(architecture.ModelArgs.from_dict(dict(decoder)))
    if not hasattr(getattr(model, "model", None), "layers"):
        raise ValueError(f"[mlx_lm] expected {name} to keep its layers in `model`. This decoder is not supported.")
    return model


class DecoderNames(NameMap):
    """Names as the decoder has them, whichever it is; mlx-lm itself turns a file's tensors into those of its model."""

    def split(self, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        names = list(names)
        heads = [name for name in names if name.startswith(HEAD)]
        return {name.removeprefix(IN_FILE): name for name in names if not name.startswith(HEAD)}, heads

    def disk_paths(self, memory_path: str) -> list[str]:
        return [memory_path.removeprefix(IN_MEMORY)]

    def to_memory(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        named = {IN_FILE + name: weights.pop(name) for name in list(weights)}
        model = language_model(self._bound_config().decoder)
        if hasattr(model, "sanitize"):
            named = model.sanitize(named)
        return {IN_MEMORY + name.removeprefix(IN_FILE): array for name, array in named.items() if IN_FILE in name}

    def to_disk(self, weights: Mapping[str, mx.array], prefix: bool = False) -> dict[str, mx.array]:
        start = IN_FILE if prefix else ""
        return {start + name.removeprefix(IN_MEMORY): array for name, array in weights.items()}


NAMES = DecoderNames(prefix=IN_FILE, table={})


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """The decoder's own config under ``decoder``; the sizes beside it are taken from there."""

    model_type: str = "mlx_lm"
    decoder: dict[str, Any]

    @classmethod
    def modernise(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        if "decoder" in config:
            return dict(config)
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        new = {key: config[key] for key in (*sizes, "quantization") if key in config}
        new["max_position_embeddings"] = config.get("max_position_embeddings") or UNBOUNDED
        decoder = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}
        return {**new, "model_type": "mlx_lm", "decoder": decoder}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        if isinstance(config.get("decoder"), Mapping):  # sizes may be left to the decoder's config
            config = {**cls.modernise(config["decoder"]), **config}
        return super().from_dict(config)


def real_tokens_first(attention_mask: mx.array) -> tuple[mx.array, mx.array]:
    """The order ``(B, L)`` that brings each row's real tokens to its start, and the order that brings them back.

    A token that sees nothing behind it never sees padding that stands behind all real tokens: so no decoder needs to
    know of padding, on whichever side it came.
    """
    places = mx.arange(attention_mask.shape[1])
    order = mx.argsort(mx.where(attention_mask.astype(mx.bool_), places, places + places.size), axis=1)
    return order, mx.argsort(order, axis=1)


class Model(nn.Module):
    """The backbone. It has no pooler."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.decoder = language_model(config.decoder).model

    @property
    def layers(self) -> list[nn.Module]:
        return self.decoder.layers

    @property
    def embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def __call__(
        self,
        input_ids: mx.array,
        attention_mask: mx.array | None = None,
        token_type_ids: mx.array | None = None,
        position_ids: mx.array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Encode token ids; a token sees itself and those before it.

        Args:
            input_ids: integers ``(B, L)``.
            attention_mask: ``(B, L)``, 1 for real tokens, padding on either side; None when nothing is padded.
            token_type_ids: not used: decoders have no segments.
            position_ids: must be None: positions count real tokens.
            output_hidden_states, output_attentions: must be False: mlx-lm keeps them to itself.

        Raises:
            ValueError: wrong shapes, or an argument that must be left out.
        """
        check_inputs(self.config, input_ids, attention_mask)
        if position_ids is not None or output_hidden_states or output_attentions:
            raise ValueError(
                "[mlx_lm] expected no position_ids, output_hidden_states or output_attentions, which mlx-lm's decoders "
                "neither take nor give. Leave them out."
            )
        if attention_mask is None:
            return EncoderOutput(self.decoder(input_ids))
        order, back = real_tokens_first(attention_mask)
        states = self.decoder(mx.take_along_axis(input_ids, order, axis=1))
        return EncoderOutput(mx.take_along_axis(states, back[..., None], axis=1))
