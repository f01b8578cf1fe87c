"""Whether a checkpoint is what its ``config.json`` says, before anything is written.

Some checkpoints carry the ``model_type`` of one architecture and the weights of another, with code of their own on the
Hub; read as what they claim to be, they would give plausible nonsense. And a file may lack tensors, or have others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from convert.task_heads import todays_head_names, zero_biases
from mlx_bert.checkpoint import TensorEntry
from mlx_bert.encoders import CLAIMANTS, find_encoder
from mlx_bert.encoders.base import NameMap

# Keys of known impostors -> the values that genuine architectures may have.
TELLING_KEYS: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", "sans_pos", None),
    "feed_forward_type": ("original", None),
    "lora_adaptations": (None,),
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
    model_type = config.get("model_type")
    if not isinstance(model_type, str | None):
        raise ValueError(
            f"[convert] expected model_type to be text but got {str(model_type)[:100]!r}. Check config.json."
        )
    architecture = find_encoder(config)
    if architecture in CLAIMANTS:  # told by these very keys
        return architecture
    model_type, known = config["model_type"], architecture.Config.modernise(config)  # without what it accounts for
    for key, genuine in TELLING_KEYS.items():
        if known.get(key) not in genuine:
            raise _impostor(model_type, key, known[key])
    own_code = known.get("auto_map")
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
        entries: all tensors to write, by name.
        encoder: the encoder's among them, from the name without prefix to the name in the file.
        heads: names of known task heads.
        strangers: names that belong to neither; they are kept in the file.
        renamed: the file had the names of an architecture's own code, which became transformers'.
        reduced: tensors without a place under transformers' names (adapters) were left out on the way.
        model: the encoder, with weights that nobody has computed: for its modules and shapes.
        names: its reversible name map.
    """

    entries: dict[str, TensorEntry]
    encoder: dict[str, str]
    heads: list[str]
    strangers: list[str]
    renamed: bool
    reduced: bool
    model: nn.Module
    names: NameMap


def check_tensors(
    architecture: ModuleType,
    config: Mapping[str, Any],
    entries: Mapping[str, TensorEntry],
    always_rename: bool = False,
) -> Parts:
    """Compare names and shapes with the architecture's. A pooler may be missing, and a head's tied decoder.

    Names of an architecture's own code become transformers', unless something would be lost.

    Args:
        architecture: the encoder's file.
        config: the parsed ``config.json``.
        entries: tensors by name, none of them quantised.
        always_rename: rename even so.

    Raises:
        ValueError: missing, unexpected or misshapen tensors of the encoder, named with both shapes.
    """
    layers = config.get("num_hidden_layers", config.get("n_layers"))  # the second is DistilBERT's
    if isinstance(layers, int) and layers > 24 * max(len(entries), 1):  # before a forged number builds a billion layers
        raise ValueError(f"[convert] config.json says {layers} layers, but there are only {len(entries)} tensors.")
    try:
        fitted = architecture.Config.from_dict(config)
        model = architecture.Model(fitted)
        names = architecture.NAMES.of(fitted)
        wanted = {name: array.shape for name, array in names.to_disk(dict(tree_flatten(model.parameters()))).items()}
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, LookupError) as error:
        if str(error).startswith("["):
            raise  # says already which key is wrong
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"[convert] config.json has values that make no model: {reason}. Check it.") from None
    own, others = names.split(entries)
    kept = dict(entries)
    renamed = reduced = False
    if names.older and not own.keys() <= wanted.keys() | fitted.unused_tensors:
        prefix = names.prefix if any(name != stored for name, stored in own.items()) else ""
        native = _renamed(names, prefix, {name: entries[own[name]] for name in own.keys() - fitted.unused_tensors})
        todays = {name: name for name in others} | todays_head_names(config, others)
        kept = {**native, **{new: replace(entries[name], name=new) for name, new in todays.items()}}
        kept |= zero_biases(config, kept)
        native_own, native_others = names.split(kept)
        _compare(config, wanted, native_own, kept, fitted.unused_tensors)
        reduced = sum(entry.nbytes for entry in native.values()) < sum(entries[name].nbytes for name in own.values())
        renamed = always_rename or not reduced
        if renamed:
            own, others = native_own, native_others
        else:
            kept, reduced = dict(entries), False
    else:
        _compare(config, wanted, own, entries, fitted.unused_tensors)
    is_head = {name: name.split(".")[0] in HEAD_ROOTS for name in others}
    heads = [name for name in others if is_head[name]]
    strangers = [name for name in others if not is_head[name]]
    return Parts(kept, own, heads, strangers, renamed, reduced, model, names)


def _compare(
    config: Mapping[str, Any],
    wanted: Mapping[str, tuple[int, ...]],
    own: Mapping[str, str],
    entries: Mapping[str, TensorEntry],
    unused: frozenset[str],
) -> None:
    found = {name: entries[stored].shape for name, stored in own.items() if name not in unused}
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


def _renamed(names: NameMap, prefix: str, entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Entries under today's names, each computed when loaded: a fused matrix of the old file may become several."""

    def build() -> dict[str, mx.array]:
        return names.to_native({name: entry.load() for name, entry in entries.items()})

    pending = build()
    shapes = {name: (array.shape, array.dtype) for name, array in pending.items()}

    def load(name: str) -> mx.array:
        if name not in pending:
            pending.clear()
            pending.update(build())
        return pending.pop(name)

    return {
        prefix + name: TensorEntry(prefix + name, shape, dtype, lambda name=name: load(name))
        for name, (shape, dtype) in shapes.items()
    }
