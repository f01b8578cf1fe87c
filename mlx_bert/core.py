"""``BertCore``: one face over every encoder. ``BertOutput``: its hidden states and their poolings.

Dimensions: B batch, L tokens, D hidden size, H attention heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from heads.pooling import first_pool, max_pool, mean_pool
from mlx_bert.checkpoint import (
    CONFIG,
    WEIGHTS,
    FromPretrained,
    entries_of,
    float_dtype,
    load_strict,
    quantize_like,
    read_json,
    read_weights,
    ready_folder,
    write_json,
    write_safetensors,
)
from mlx_bert.encoders import find_encoder
from mlx_bert.encoders.base import EncoderConfig
from mlx_bert.graphs import Graphs, wanted

CORE_CONFIG = "bert_core_config.json"
CORE_VERSION = "1.0.0"


class BertOutput(Mapping[str, Any]):
    """Hidden states of a batch and what is pooled from them, each computed when asked for, once.

    Attributes, also as items (``output["last_hidden_state"]``):
        last_hidden_state: ``(B, L, D)``.
        pooler_output: the encoder's pooler on the first token, ``(B, D)``; ``cls_output`` for encoders without one.
        cls_output: the first real token's state, ``(B, D)``.
        mean_pooled, max_pooled: over real tokens, ``(B, D)``.
        hidden_states: ``num_hidden_layers + 1`` arrays ``(B, L, D)``, or None.
        attentions: ``num_hidden_layers`` arrays ``(B, H, L, L)``, or None.
        attention_mask: ``(B, L)`` as given, or None.
    """

    POOLINGS = ("pooler_output", "cls_output", "mean_pooled", "max_pooled")
    FIELDS = ("last_hidden_state", *POOLINGS, "hidden_states", "attentions", "attention_mask")
    _BY_TYPE = {"cls": "cls_output", "mean": "mean_pooled", "max": "max_pooled", "pooler": "pooler_output"}  # noqa: RUF012

    def __init__(
        self,
        last_hidden_state: mx.array,
        attention_mask: mx.array | None = None,
        hidden_states: list[mx.array] | None = None,
        attentions: list[mx.array] | None = None,
        pooler: nn.Module | None = None,
        pooled: mx.array | None = None,
    ) -> None:
        self.last_hidden_state = last_hidden_state
        self.attention_mask = attention_mask
        self.hidden_states = hidden_states
        self.attentions = attentions
        self._pooler = pooler
        self._pooled: dict[str, mx.array] = {} if pooled is None else {"pooler_output": pooled}

    def _pool(self, name: str) -> mx.array:
        if name not in self._pooled:
            states, mask = self.last_hidden_state, self.attention_mask
            if name == "mean_pooled":
                pooled = mean_pool(states, mask)
            elif name == "max_pooled":
                pooled = max_pool(states, mask)
            elif name == "cls_output" or self._pooler is None:
                pooled = first_pool(states, mask)
            else:
                pooled = self._pooler(self.cls_output)
            self._pooled[name] = pooled
        return self._pooled[name]

    @property
    def pooler_output(self) -> mx.array:
        return self._pool("pooler_output")

    @property
    def cls_output(self) -> mx.array:
        return self._pool("cls_output")

    @property
    def mean_pooled(self) -> mx.array:
        return self._pool("mean_pooled")

    @property
    def max_pooled(self) -> mx.array:
        return self._pool("max_pooled")

    def get_pooled_output(self, pooling_type: str = "cls") -> mx.array:
        """The pooled vectors ``(B, D)`` by name: ``"cls"``, ``"mean"``, ``"max"`` or ``"pooler"``."""
        if pooling_type not in self._BY_TYPE:
            raise ValueError(
                f"[BertOutput] expected pooling_type to be one of {', '.join(self._BY_TYPE)} but got {pooling_type!r}."
            )
        return self._pool(self._BY_TYPE[pooling_type])

    def __getitem__(self, name: str) -> Any:
        if name not in self.FIELDS:
            raise KeyError(f"BertOutput has no {name!r}. It has {', '.join(self.FIELDS)}.")
        return getattr(self, name)

    def _present(self) -> list[str]:
        return [name for name in self.FIELDS if name in self._pooled or (self.__dict__.get(name) is not None)]

    def __iter__(self) -> Iterator[str]:
        """The names of what is there already; the other poolings come when asked for."""
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())


class BertCore(FromPretrained, nn.Module):
    """An encoder of any supported architecture.

    Args:
        config: an architecture's config, or a parsed ``config.json``.
        compute_additional_pooling: prepare all poolings with each call; False leaves each until it is asked for.
    """

    def __init__(self, config: EncoderConfig | Mapping[str, Any], compute_additional_pooling: bool = True) -> None:
        super().__init__()
        config = dict(config) if isinstance(config, Mapping) else config.to_dict()
        self._architecture = find_encoder(config)
        self._stored_config = self._architecture.Config.modernise(config)
        self.config = self._architecture.Config.from_dict(self._stored_config)
        self.compute_additional_pooling = compute_additional_pooling
        self.encoder = self._architecture.Model(self.config)
        self._graphs: Graphs | None = None

    def compile_graphs(self, on: bool | None = None) -> Self:
        """Run the encoder as compiled graphs from now on, while it is not in training mode, or as it is written.

        Args:
            on: None for what :func:`mlx_bert.graphs.wanted` says; encoders and pipelines of ``mlx_bert.inference`` ask
                so when they are made.
        """
        on = wanted() if on is None else on
        self._graphs = (self._graphs or Graphs(self.encoder)) if on else None
        return self

    def __call__(
        self,
        input_ids: mx.array,
        attention_mask: mx.array | None = None,
        token_type_ids: mx.array | None = None,
        position_ids: mx.array | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        compute_pooling: bool | None = None,
    ) -> BertOutput:
        """Encode token ids.

        Args:
            input_ids: integers ``(B, L)``.
            attention_mask: ``(B, L)``, 1 for real tokens; None when nothing is padded.
            token_type_ids: segments ``(B, L)``; encoders without segments pass over them.
            position_ids: ``(B, L)``; None for the architecture's own.
            output_attentions: also return attention probabilities (slower: not fused).
            output_hidden_states: also return every layer's output.
            compute_pooling: overrides ``compute_additional_pooling`` for this call.

        Raises:
            ValueError: wrong ranks, empty or over-long rows, a mask of another shape.
        """
        inputs = input_ids, attention_mask, token_type_ids
        more = output_hidden_states or output_attentions or position_ids is not None
        if self._graphs is None or self.training or more:
            output = self.encoder(*inputs, position_ids, output_hidden_states, output_attentions)
        else:
            output = self._graphs(*inputs)
        result = BertOutput(
            output.last_hidden_state,
            attention_mask,
            output.hidden_states,
            output.attentions,
            getattr(self.encoder, "pooler", None),
            output.pooled,
        )
        if self.compute_additional_pooling if compute_pooling is None else compute_pooling:
            for name in BertOutput.POOLINGS:
                result[name]
        return result

    def get_hidden_size(self) -> int:
        """Width ``D`` of the hidden states."""
        return self.config.output_size

    def get_num_layers(self) -> int:
        """Number of Transformer layers."""
        return self.config.num_hidden_layers

    def get_config(self) -> dict[str, Any]:
        """The config as ``config.json`` spells it."""
        return self.config.to_dict()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: str | mx.Dtype | None = None,
        revision: str | None = None,
        compute_additional_pooling: bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Load a converted folder, a Hugging Face folder or a hub id (converted on first use, then cached).

        Weights go straight into unified memory, one tensor at a time. Tensors of task heads are passed over.

        Args:
            source: folder or hub id.
            dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``; None keeps the weights as stored.
            revision: branch, tag or commit of a hub id.
            compute_additional_pooling: as in the constructor; None takes the saved value.
            overrides: config values to replace, such as ``hidden_dropout_prob=0.0``.

        Raises:
            FileNotFoundError: no such folder, or files are missing.
            ValueError: an unsupported architecture, or weights that do not fit the config.
        """
        folder = ready_folder(source, revision)
        config = read_json(folder / CONFIG)
        saved = read_json(folder / CORE_CONFIG) if (folder / CORE_CONFIG).is_file() else {}
        if compute_additional_pooling is None:
            compute_additional_pooling = saved.get("compute_additional_pooling", True)
        core = cls(override(config, overrides), compute_additional_pooling)
        weights = read_weights(folder)
        own, _ = core.names.split(weights)
        core.load_weights_from({name: weights.pop(stored) for name, stored in own.items()}, dtype)
        mx.eval(core.state)  # tables of positions and the like, too: another thread cannot evaluate them
        return core.eval()

    @property
    def names(self) -> Any:
        """The architecture's reversible map between names on disk and in memory, for this config."""
        return self._architecture.NAMES.of(self.config)

    def load_weights_from(self, weights: dict[str, mx.array], dtype: str | mx.Dtype | None = None) -> None:
        """Take weights under Hugging Face's names without prefix. Empties ``weights``."""
        for name in self.config.unused_tensors:
            weights.pop(name, None)
        memory = self.names.to_memory(weights)
        if hasattr(self.encoder, "pooler") and not any(name.startswith("pooler.") for name in memory):
            self.encoder.pooler = None
        quantize_like(self.encoder, memory, self._stored_config.get("quantization"), self.names.paths_in_file)
        load_strict(self.encoder, memory, float_dtype(dtype), where=str(self.config.model_type))

    def weights_on_disk(self, prefix: bool = False) -> dict[str, mx.array]:
        """The weights under Hugging Face's names, with the task checkpoints' prefix or without.

        Raises:
            ValueError: there are adapters beside them.
        """
        weights = dict(tree_flatten(self.encoder.parameters()))
        if any(name.endswith(".lora_a") for name in weights):
            raise ValueError(
                "[BertCore] expected an encoder without adapters but it has some. Merge them first: "
                "mlx_bert.training.lora.merge_lora(model)."
            )
        return self.names.to_disk(weights, prefix)

    def stored_config(self) -> dict[str, Any]:
        """``config.json`` for the weights as they are: the file's own keys, this config's values, the present type."""
        types = {array.dtype for _, array in tree_flatten(self.encoder.parameters())}
        floating = [dtype for dtype in types if mx.issubdtype(dtype, mx.floating)]
        dtype = str(floating[0] if len(floating) == 1 else mx.float32).removeprefix("mlx.core.")
        ours = {"architectures", "torch_dtype", *self.config.__dataclass_fields__}
        kept = {key: value for key, value in self._stored_config.items() if key not in ours}
        return {**kept, **self.config.saved(), "dtype": dtype}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and ``bert_core_config.json``; transformers reads it too."""
        folder, weights = Path(folder), self.weights_on_disk()
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / WEIGHTS, entries_of(weights))
        write_json(folder / CONFIG, self.stored_config())
        settings = {"compute_additional_pooling": self.compute_additional_pooling, "bert_core_version": CORE_VERSION}
        write_json(folder / CORE_CONFIG, settings)


def override(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A config with some values replaced.

    Raises:
        ValueError: a key that the architecture does not have.
    """
    config_class = find_encoder({**config, **overrides}).Config
    fields = config_class.__dataclass_fields__
    if unknown := [key for key in overrides if key not in fields]:
        raise ValueError(f"[BertCore] unknown config keys {unknown}. Known: {', '.join(sorted(fields))}.")
    return {**config_class.modernise(config), **overrides}
