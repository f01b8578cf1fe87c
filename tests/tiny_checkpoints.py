"""What the checkpoints of the converter's tests are made of."""

from __future__ import annotations

import functools
from pathlib import Path

import mlx.core as mx
import torch
from mlx.utils import tree_flatten

from mlx_bert.checkpoint import TensorEntry, write_json, write_safetensors
from mlx_bert.encoders import bert

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), ".", "!"]
TEXTS = ["abc def", "a", "hello there world.", "the quick brown fox jumps over the lazy dog!"]


def tiny_config(**options):
    from transformers import BertConfig

    return BertConfig(
        **{
            "vocab_size": len(VOCABULARY),
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": 64,
            **options,
        }
    )


def write_zeros(folder: Path, kind: str = "safetensors", shards: int = 1, **options) -> Path:
    """A BERT of any size whose weights are zeros, written piece by piece.

    Args:
        kind: ``"safetensors"``, ``"bin"`` or ``"legacy"`` (torch's format before 1.6).
        shards: number of files.
        options: of the config.
    """
    config = tiny_config(**options).to_dict()
    write_json(folder / "config.json", config)
    model = bert.Model(bert.Config.from_dict(config))
    shapes = {name: array.shape for name, array in bert.NAMES.to_disk(dict(tree_flatten(model.parameters()))).items()}
    names, weight_map = list(shapes), {}
    stem, extension = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    for shard in range(shards):
        file = f"{stem}.{extension}" if shards == 1 else f"{stem}-{shard + 1:05}-of-{shards:05}.{extension}"
        own = names[shard::shards]
        weight_map |= dict.fromkeys(own, file)
        if kind == "safetensors":
            load = {name: functools.partial(mx.zeros, shapes[name]) for name in own}
            entries = [TensorEntry(name, shapes[name], mx.float32, load[name]) for name in own]
            write_safetensors(folder / file, entries)
        else:
            weights = {name: torch.zeros(shapes[name]) for name in own}
            torch.save(weights, folder / file, _use_new_zipfile_serialization=kind == "bin")
    if shards > 1:
        write_json(folder / f"{stem}.{extension}.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder
