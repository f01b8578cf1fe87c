"""The folder of a :class:`mlx_bert.multihead.MultiheadClassifier`, written and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from heads import MultiTaskNLPHead
from mlx_bert.checkpoint import entries_of, read_header, read_json, write_json, write_safetensors
from mlx_bert.core import BertCore
from mlx_bert.data.labels import LabelMap
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Tokenizer

MULTIHEAD_ENCODER = "encoder"
MULTIHEAD_HEADS = "task_heads.safetensors"
MULTIHEAD_CONFIG = "multihead_config.json"


def write_multihead(
    folder: Path,
    model: BertWithHead,
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    labels: Mapping[str, LabelMap],
    class_weights: Mapping[str, Sequence[float]],
) -> None:
    """Write ``encoder/``, ``task_heads.safetensors`` and ``multihead_config.json`` into a folder.

    Args:
        folder: it is there.
        model, tokenizer: the model, whose head is a ``MultiTaskNLPHead``.
        config: the classifier's settings, JSON values.
        labels, class_weights: of each task.
    """
    model.bert.save_pretrained(folder / MULTIHEAD_ENCODER)
    tokenizer.save_pretrained(folder / MULTIHEAD_ENCODER)
    write_safetensors(folder / MULTIHEAD_HEADS, entries_of(model.head.state_arrays()))
    saved = {
        "config": dict(config),
        "head": model.head.get_config(),
        "labels": {task: names.to_dict() for task, names in labels.items()},
        "class_weights": {task: list(weights) for task, weights in class_weights.items()},
    }
    write_json(folder / MULTIHEAD_CONFIG, saved)


def read_multihead(folder: Path, dtype: str | mx.Dtype | None = None) -> tuple[BertWithHead, Tokenizer, dict[str, Any]]:
    """The model, its tokenizer, and what the folder says of it: config, head, labels and class weights.

    Args:
        folder: where it was saved.
        dtype: type of the encoder's weights; None as stored.

    Raises:
        FileNotFoundError: no such model.
        ValueError: damaged files.
    """
    saved = read_json(folder / MULTIHEAD_CONFIG)
    if lacking := {"config", "head", "labels", "class_weights"} - saved.keys():
        raise ValueError(f"[multihead] {folder / MULTIHEAD_CONFIG} lacks {', '.join(sorted(lacking))}. Save it again.")
    tokenizer = Tokenizer.from_pretrained(folder / MULTIHEAD_ENCODER)
    core = BertCore.from_pretrained(folder / MULTIHEAD_ENCODER, dtype)
    head = MultiTaskNLPHead.from_config(saved["head"])
    read_header(folder / MULTIHEAD_HEADS)
    head.load_state_arrays(mx.load(str(folder / MULTIHEAD_HEADS), format="safetensors"))
    mx.eval(head.state_arrays())
    return BertWithHead(core, head).eval(), tokenizer, saved
