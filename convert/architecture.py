"""Whether a checkpoint is what its ``config.json`` says, before anything is written.

Some checkpoints carry the ``model_type`` of one architecture and the weights of another, with code of their own on the
Hub; read as what they claim to be, they would give plausible nonsense. And a file may lack tensors, or have others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_bert.checkpoint import TensorEntry
from mlx_bert.encoders import find_encoder
from mlx_bert.encoders.base import NameMap

# Types whose code is part of transformers: a checkpoint that brings its own (auto_map) is something else.
NATIVE_TYPES = {"bert", "roberta", "xlm-roberta", "camembert"}
# Keys of known impostors -> the values that the genuine architecture may have.
TELLING_KEYS: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),  # jina v2: alibi; jina v3: rotary
    "feed_forward_type": ("original", None),  # jina v2: geglu
    "lora_adaptations": (None,),  # jina v3
}
# First component of the names of task heads (transformers' For... classes), prefix of the encoder taken off.
HEAD_ROOTS = {
    *("classifier", "cls", "lm_head", "qa_outputs", "pre_classifier", "score", "dense", "pooler", "head", "decoder"),
    *("vocab_transform", "vocab_layer_norm", "vocab_projector", "predictions", "sop_classifier", "sequence_summary"),
    *("generator_predictions", "generator_lm_head", "discriminator_predictions", "lm_predictions"),
}


def check_config(config: Mapping[str, Any]) -> ModuleType:
    """The encoder's file for a config that is what it claims to be.

    Raises:
        ValueError: an unsupported ``model_type``, or a key that gives an impostor away.
    """
    architecture = find_encoder(config)
    model_type = config["model_type"]
    if model_type not in NATIVE_TYPES:
        return architecture
    for key, genuine in TELLING_KEYS.items():
        if config.get(key) not in genuine:
            raise _impostor(model_type, key, config[key])
    own_code = config.get("auto_map")
    if isinstance(own_code, Mapping) and any(str(name).startswith("AutoModel") for name in own_code):
        raise _impostor(model_type, "auto_map", own_code.get("AutoModel", next(iter(own_code.values()))))
    return architecture


def _impostor(model_type: str, key: str, value: Any) -> ValueError:
    return ValueError(
        f"[convert] config.json says model_type {model_type!r}, but its key {key!r} ({str(value)[:100]!r}) belongs to "
        "another architecture, which is not supported. Choose a checkpoint of the original architecture."
    )


@dataclass
class Parts:
    """A checkpoint's tensors by what they belong to.

    Attributes:
        encoder: name without prefix -> name in the file.
        heads: names of known task heads.
        strangers: names that belong to neither; they are kept in the file.
        model: the encoder with weights that nobody has computed: for its modules and shapes.
        names: its reversible name map.
    """

    encoder: dict[str, str]
    model: nn.Module
    names: NameMap
    heads: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


def check_tensors(architecture: ModuleType, config: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> Parts:
    """Compare names and shapes with the architecture's. A pooler may be missing, and a head's tied decoder.

    Args:
        entries: tensors by today's names, none of them quantised.

    Raises:
        ValueError: missing, unexpected or misshapen tensors of the encoder, named with both shapes.
    """
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(entries):  # before a forged number builds a billion layers
        raise ValueError(f"[convert] config.json says {layers} layers, but there are only {len(entries)} tensors.")
    try:
        model = architecture.Model(architecture.Config.from_dict(config))
        wanted = {name: array.shape for name, array in _on_disk(architecture.NAMES, model).items()}
    except (TypeError, AttributeError, OverflowError, ZeroDivisionError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"[convert] config.json has values that make no model: {reason}. Check it.") from None
    own, others = architecture.NAMES.split(entries)
    found = {name: entries[stored].shape for name, stored in own.items()}
    missing = sorted(wanted.keys() - found.keys())
    if all(name.startswith("pooler.") for name in missing) and not any(name.startswith("pooler.") for name in found):
        missing = []
    problems = [f"missing {name} {wanted[name]}" for name in missing]
    problems += [f"unexpected {own[name]} {found[name]}" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{own[name]} expected shape {wanted[name]} but got {found[name]}"
        for name in sorted(found.keys() & wanted.keys())
        if found[name] != wanted[name]
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise ValueError(
            f"[convert] the weights are not those of a {config['model_type']} as config.json describes it: {shown}. "
            "Is the download complete, and does config.json belong to this file?"
        )
    is_head = {name: name.split(".")[0] in HEAD_ROOTS for name in others}
    heads = [name for name in others if is_head[name]]
    strangers = [name for name in others if not is_head[name]]
    return Parts(own, model, architecture.NAMES, heads, strangers)


def _on_disk(names: NameMap, model: nn.Module) -> dict[str, Any]:
    return names.to_disk(dict(tree_flatten(model.parameters())))
