"""Factories: an encoder, or an encoder with a head, from names, configs or plain keywords."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heads import HeadConfig, HeadType, get_default_config_for_head_type
from mlx_bert.core import BertCore, override
from mlx_bert.encoders.base import EncoderConfig
from mlx_bert.model import BertWithHead


def create_bert_core(
    model_name: str | Path | None = None,
    config: EncoderConfig | Mapping[str, Any] | None = None,
    **options: Any,
) -> BertCore:
    """Create an encoder: pretrained by name, else new from a config, else new from keywords.

    Args:
        model_name: folder or hub id of a checkpoint.
        config: an architecture's config, or a mapping of its fields; ``model_type`` is ``"bert"`` unless given.
        options: config values that replace the others (``hidden_size=768``); for a checkpoint also the arguments of
            :meth:`BertCore.from_pretrained`.

    Example:
        >>> create_bert_core(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)

    Raises:
        ValueError: an unknown config key, or values that do not fit together.
    """
    if model_name is not None:
        return BertCore.from_pretrained(model_name, **options)
    pooling = options.pop("compute_additional_pooling", True)
    if isinstance(config, EncoderConfig):
        config = config.to_dict()
    config = {"model_type": options.pop("model_type", "bert"), **(config or {})}
    return BertCore(override(config, options), pooling)


def create_bert_with_head(
    bert_config: EncoderConfig | Mapping[str, Any] | None = None,
    head_config: HeadConfig | Mapping[str, Any] | None = None,
    head_type: HeadType | str | None = None,
    bert_name: str | Path | None = None,
    freeze_bert: bool = False,
    freeze_bert_layers: int | None = None,
    num_labels: int = 2,
    id2label: Mapping[int | str, str] | None = None,
    **options: Any,
) -> BertWithHead:
    """Create an encoder with a new head.

    Args:
        bert_config: config of a new encoder, if no ``bert_name`` is given.
        head_config: the head's config; ``input_size`` may be left out. Wins over ``head_type``.
        head_type: a head with its recommended options; ``"binary_classification"`` if neither is given.
        bert_name: folder or hub id of a pretrained encoder.
        freeze_bert: train the head alone.
        freeze_bert_layers: freeze the embeddings and this many bottom layers.
        num_labels: number of classes, labels or values.
        id2label: names of the classes.
        options: further options of the head (``pooling_type="mean"``).

    Raises:
        ValueError: an unknown option, or a head that does not fit the encoder.
    """
    bert = create_bert_core(bert_name, bert_config)
    if head_config is None:
        kind = HeadType.BINARY_CLASSIFICATION if head_type is None else head_type
        head_config = get_default_config_for_head_type(kind, bert.get_hidden_size(), num_labels, **options)
    elif isinstance(head_config, HeadConfig):
        head_config = head_config.replace(**options)
    else:
        head_config = {"input_size": bert.get_hidden_size(), "output_size": num_labels, **head_config, **options}
    return BertWithHead(bert, head_config, freeze_bert, freeze_bert_layers, id2label)
