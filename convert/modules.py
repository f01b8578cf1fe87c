"""The sentence-transformers side of a folder: ``modules.json`` and the modules behind the Transformer.

Layout (sentence_transformers/base/model.py): the Transformer in the root, each other module in ``<idx>_<Class>``. Old
repositories have the Transformer in ``0_Transformer``; it moves to the root.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.paths import inside
from convert.weights import open_weights
from mlx_bert.checkpoint import CONFIG, WEIGHTS, TensorEntry, read_json, write_json, write_safetensors

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
LENGTH_CONFIG = re.compile(r"sentence_[\w-]+_config\.json", re.ASCII)  # sentence_bert_config.json and older names
# Last component of a module's type -> whether it has weights.
KNOWN = {"Transformer": False, "Pooling": False, "Normalize": False, "Dropout": False, "Dense": True, "LayerNorm": True}
WEIGHT_NAMES = {
    "Dense": {"linear.weight", "linear.bias", "residual.weight"},
    "LayerNorm": {"norm.weight", "norm.bias"},
}
_FOLDER = re.compile(r"[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Module:
    """One line of ``modules.json``: class name, folder ("" for the root) and the entry as it stands."""

    kind: str
    path: str
    entry: dict[str, Any]


def read_modules(folder: Path) -> list[Module]:
    """The modules of a folder in order, checked; empty if it is not a sentence-transformers folder.

    Raises:
        ValueError: malformed, a module that is not supported, or a path that leaves the folder.
    """
    path = inside(folder, MODULES)
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"[modules] {path} is not valid JSON ({error}). Download it again.") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"[modules] expected {path} to hold a list of modules but got {type(entries).__name__}.")
    modules = [_module(folder, entry) for entry in entries]
    if modules[0].kind != "Transformer" or any(module.kind == "Transformer" for module in modules[1:]):
        raise ValueError(
            f"[modules] expected {path} to begin with its only Transformer. Other models are not supported."
        )
    paths = [module.path for module in modules[1:]]
    if "" in paths or len(set(paths)) != len(paths):
        raise ValueError(f"[modules] expected each module of {path} to have a folder of its own but got {paths}.")
    return modules


def _module(folder: Path, entry: Any) -> Module:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("type", "path")):
        raise ValueError(f"[modules] expected each entry of {folder / MODULES} to have a type and a path as text.")
    package, kind = entry["type"].split(".")[0], entry["type"].split(".")[-1]
    if package != "sentence_transformers" or kind not in KNOWN:
        raise ValueError(
            f"[modules] the module {entry['type'][:100]!r} is not supported. Supported: {', '.join(KNOWN)} of "
            "sentence_transformers."
        )
    path = entry["path"].removesuffix("/")
    if path and (not _FOLDER.fullmatch(path) or path in (".", "..")):
        raise ValueError(
            f"[modules] expected a module's path to be a folder's name but got {entry['path']!r}. Refused."
        )
    inside(folder, path)
    return Module(kind, path, entry)


def write_modules(
    source: Path, target: Path, modules: list[Module], cast: Callable[[TensorEntry], TensorEntry]
) -> list[str]:
    """Copy all modules but the Transformer, with weights as safetensors in the chosen type.

    Args:
        source: the folder of ``modules.json``.
        target: the new folder.
        modules: what :func:`read_modules` returned.
        cast: gives an entry its new type.

    Returns:
        The modules' class names, for the summary.

    Raises:
        FileNotFoundError: a module lacks its config or weights.
        ValueError: a module's weights are not its own.
    """
    for module in modules[1:]:
        _write_module(source, target / module.path, module, cast)
    if modules:
        entries = [{**module.entry, "path": module.path} for module in modules]
        entries[0]["path"] = ""
        write_json(target / MODULES, entries)
    if inside(source, SETTINGS).is_file():
        write_json(target / SETTINGS, read_json(source / SETTINGS))
    return [module.kind for module in modules]


def _write_module(source: Path, target: Path, module: Module, cast: Callable[[TensorEntry], TensorEntry]) -> None:
    folder = inside(source, module.path)
    target.mkdir()
    config = inside(source, f"{module.path}/{CONFIG}")
    if config.is_file():
        write_json(target / CONFIG, read_json(config))
    elif module.kind != "Normalize":
        raise FileNotFoundError(f"[modules] {folder} lacks {CONFIG}. The download is incomplete.")
    if not KNOWN[module.kind]:
        return
    entries = open_weights(folder)
    allowed = WEIGHT_NAMES[module.kind]
    if unknown := sorted(entries.keys() - allowed):
        raise ValueError(f"[modules] unexpected {unknown[0]!r} in {folder}: a {module.kind} has {sorted(allowed)}.")
    write_safetensors(target / WEIGHTS, [cast(entry) for entry in entries.values()])


def copy_settings(source: Path, target: Path) -> None:
    """Copy the files about the longest input, ``sentence_bert_config.json`` and its older names."""
    for path in sorted(source.iterdir()):
        if LENGTH_CONFIG.fullmatch(path.name) and inside(source, path.name).is_file():
            shutil.copyfile(path, target / path.name)
