"""Who may import whom: the imports of every shipped file, parsed and held against one table."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mlx_bert", "heads", "convert")
FIRST_PARTY = (*PACKAGES, "benchmarks", "examples", "tests")

# Layer -> the modules of ours that it may import, besides its own. The longest matching name wins, on both sides.
LAYERS: dict[str, tuple[str, ...]] = {
    "heads": (),
    "mlx_bert.encoders": (),
    "mlx_bert.blas": (),
    "mlx_bert.heap": (),
    "mlx_bert.checkpoint": (),
    "mlx_bert.plots": ("mlx_bert.checkpoint",),
    "mlx_bert.tokenizer": ("mlx_bert.encoders", "mlx_bert.checkpoint"),
    "mlx_bert.graphs": ("mlx_bert.encoders",),
    "mlx_bert.core": ("mlx_bert.encoders", "mlx_bert.graphs", "mlx_bert.checkpoint", "heads.pooling"),
    "mlx_bert.model": ("mlx_bert.core", "mlx_bert.encoders", "mlx_bert.checkpoint", "mlx_bert.tokenizer", "heads"),
    "mlx_bert.task_model": (
        "mlx_bert.model",
        "mlx_bert.core",
        "mlx_bert.checkpoint",
        "mlx_bert.tokenizer",
        "heads",
    ),
    "mlx_bert.factory": ("mlx_bert.model", "mlx_bert.core", "mlx_bert.encoders", "mlx_bert.data", "heads"),
    "mlx_bert.data": ("heads.class_weights", "heads.decoding", "mlx_bert.tokenizer", "mlx_bert.checkpoint"),
    "mlx_bert.inference": (
        "mlx_bert.task_model",
        "mlx_bert.model",
        "mlx_bert.core",
        "mlx_bert.encoders",
        "mlx_bert.tokenizer",
        "mlx_bert.checkpoint",
        "mlx_bert.blas",
        "mlx_bert.data",
        "heads",
    ),
    "mlx_bert.training": (
        "mlx_bert.plots",
        "mlx_bert.task_model",
        "mlx_bert.model",
        "mlx_bert.core",
        "mlx_bert.encoders",
        "mlx_bert.tokenizer",
        "mlx_bert.checkpoint",
        "mlx_bert.data",
        "heads",
    ),
    "mlx_bert.training.cross_encoder": (
        "mlx_bert.training",
        "mlx_bert.inference",
        "mlx_bert.task_model",
        "mlx_bert.tokenizer",
        "mlx_bert.data",
        "heads",
    ),
    # Fine-tuning what inference runs.
    "mlx_bert.training.sentence": ("mlx_bert.training", "mlx_bert.inference", "mlx_bert.data"),
    "mlx_bert.training.sentence_objective": (
        "mlx_bert.training",
        "mlx_bert.inference",
        "mlx_bert.model",
        "mlx_bert.tokenizer",
        "mlx_bert.data",
        "heads",
    ),
    "mlx_bert.training.few_shot": (
        "mlx_bert.training",
        "mlx_bert.inference",
        "mlx_bert.checkpoint",
        "mlx_bert.data",
        "heads",
    ),
    "mlx_bert.training.hard_negatives": (
        "mlx_bert.training",
        "mlx_bert.inference",
        "mlx_bert.checkpoint",
        "mlx_bert.data",
    ),
    "mlx_bert.multihead": (
        "mlx_bert.multihead_analysis",
        "mlx_bert.multihead_config",
        "mlx_bert.multihead_data",
        "mlx_bert.multihead_training",
        "mlx_bert.training",
        "mlx_bert.inference",
        "mlx_bert.model",
        "mlx_bert.core",
        "mlx_bert.tokenizer",
        "mlx_bert.checkpoint",
        "mlx_bert.data",
    ),
    "mlx_bert.multihead_data": ("mlx_bert.data",),
    "mlx_bert.multihead_training": (
        "mlx_bert.multihead_config",
        "mlx_bert.multihead_data",
        "mlx_bert.training",
        "mlx_bert.model",
        "mlx_bert.core",
        "mlx_bert.tokenizer",
        "mlx_bert.checkpoint",
        "mlx_bert.data",
        "heads",
    ),
    "mlx_bert.multihead_analysis": (),
    "mlx_bert.multihead_config": ("mlx_bert.training",),
    "mlx_bert.bpe": ("mlx_bert.tokenizer", "mlx_bert.checkpoint"),
    "mlx_bert.joint": (
        "mlx_bert.training",
        "mlx_bert.inference",
        "mlx_bert.model",
        "mlx_bert.core",
        "mlx_bert.tokenizer",
        "mlx_bert.checkpoint",
        "mlx_bert.data",
        "heads",
    ),
    "mlx_bert.mtl_data": ("mlx_bert.tokenizer", "mlx_bert.checkpoint", "mlx_bert.data"),
    "mlx_bert.mtl": (
        "mlx_bert.mtl_data",
        "mlx_bert.inference",
        "mlx_bert.core",
        "mlx_bert.encoders",
        "mlx_bert.tokenizer",
        "mlx_bert.checkpoint",
        "mlx_bert.data",
        "heads",
    ),
    "mlx_bert.mtl_training": ("mlx_bert.mtl", "mlx_bert.mtl_data", "mlx_bert.training", "mlx_bert.data", "heads"),
    "mlx_bert.serve": ("mlx_bert.inference", "mlx_bert.model", "mlx_bert.tokenizer"),
    "convert": ("mlx_bert", "mlx_bert.encoders", "mlx_bert.checkpoint", "heads"),
    # The top, which may import all of ours: the package's public names, and the command line.
    "mlx_bert": (),
    "mlx_bert.__main__": (),
    "mlx_bert.cli": (),
}
TOP = ("mlx_bert", "mlx_bert.__main__", "mlx_bert.cli")

# The only ways up, and only inside a function: a raw checkpoint or hub id is convert's knowledge, and what a folder of
# sentence embeddings with tasks holds is SentenceTransformerMTL's.
LAZY_UPWARD = {
    **dict.fromkeys(("mlx_bert.checkpoint", "mlx_bert.model", "mlx_bert.task_model"), ("convert",)),
    "mlx_bert.inference": ("mlx_bert.mtl",),
}

LEAVES = {"heads": {"mlx", "numpy"}, "mlx_bert.encoders": {"mlx"}}
METRICS = ("heads.metrics", "heads.ranking_metrics", "heads.tagging_metrics", "heads.threshold_metrics")
LAZY_IN_LEAVES = {"mlx_bert.encoders.mlx_lm": {"mlx_lm"}, **{name: {"sklearn", "scipy"} for name in METRICS}}

NEVER = {"torch", "tensorflow", "jax", "sentence_transformers", "datasets", "pandas"}
LAZY_NEVER = {"mlx_bert.data.sources": {"datasets"}}  # reads them, so needs them, but only when asked to
NETWORK = {"socket", "ssl", "http", "urllib", "requests", "httpx", "aiohttp", "huggingface_hub"}


class Import(NamedTuple):
    target: str  # "a.b" for `import a.b`, "a.b.c" for `from a.b import c`
    lazy: bool  # inside a function
    line: int


def imports_of(source: str, module: str, is_package: bool = False) -> list[Import]:
    """All imports of a module's source, relative ones resolved, with whether they run only when called."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, node.module] if node.module else parts)
            found.extend(Import(f"{base}.{alias.name}", lazy, node.lineno) for alias in node.names)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layer_of(module: str) -> str:
    """The row of the table that a module falls under, or "" if it has none. The row "mlx_bert" is that file alone."""
    rows = [layer for layer in LAYERS if is_in(module, layer) and (layer != "mlx_bert" or module == layer)]
    return max(rows, key=len, default="")


def problems_of(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module's imports break, one line each; empty if nothing."""
    layer = layer_of(module)
    if not layer:
        return [f"{module} has no row in LAYERS. Say there what it may import."]
    problems = []

    def complain(found: Import, why: str) -> None:
        problems.append(f"{module}:{found.line} imports {found.target}: {why}")

    for found in imports_of(source, module, is_package):
        root = found.target.split(".")[0]
        if root in FIRST_PARTY:
            allowed = (layer, *LAYERS[layer])
            if found.lazy:
                allowed += LAZY_UPWARD.get(layer, ())
            # `from mlx_bert import BertCore` names no file: it is the facade, for those layers only that list it.
            target = found.target if layer_of(found.target) or root != "mlx_bert" else "mlx_bert"
            if root not in PACKAGES:
                complain(found, "tests, benchmarks and examples are not shipped")
            elif layer not in TOP and not any(
                is_in(target, name) and (name != "mlx_bert" or target == name) for name in allowed
            ):
                complain(found, f"{layer} may import {', '.join(allowed)}")
        elif root in NEVER and not (found.lazy and root in LAZY_NEVER.get(module, set())):
            complain(found, "not at run time")
        elif root in NETWORK and module != "convert.hub":
            complain(found, "only convert/hub.py opens a socket")
        elif root == "transformers" and not (layer == "convert" and found.lazy):
            complain(found, "only convert may use it, inside a function")
        elif layer in LEAVES:
            extra = LAZY_IN_LEAVES.get(module, set()) if found.lazy else set()
            if root not in sys.stdlib_module_names | LEAVES[layer] | extra:
                complain(found, f"{layer} may import {', '.join(sorted(LEAVES[layer]))}")
    return problems


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_a_file_imports_only_what_its_layer_may(path: Path) -> None:
    assert problems_of(path.read_text("utf-8"), module_name(path), path.name == "__init__.py") == []


def test_every_package_is_looked_at() -> None:
    assert {module_name(path).split(".")[0] for path in SOURCES} == set(PACKAGES)


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("mlx_bert.encoders.new", "from heads.pooling import mean_pool", "may import mlx_bert.encoders"),
        ("mlx_bert.encoders.new", "import numpy as np", "may import mlx"),
        ("mlx_bert.encoders.new", "from ..core import BertCore", "imports mlx_bert.core.BertCore"),
        ("mlx_bert.encoders.new", "def f():\n    from mlx_bert import core", "imports mlx_bert.core"),
        ("mlx_bert.encoders.new", "from mlx_bert import BertCore", "imports mlx_bert.BertCore"),
        ("heads.new", "from mlx_bert.encoders import bert", "heads may import heads"),
        ("heads.new", "if True:\n    import torch", "not at run time"),
        ("heads.new", "def f():\n    import sklearn", "may import mlx, numpy"),
        ("heads.metrics", "import sklearn.metrics", "may import mlx, numpy"),
        ("mlx_bert.core", "from mlx_bert.model import BertWithHead", "imports mlx_bert.model.BertWithHead"),
        ("mlx_bert.core", "from heads import create_head", "imports heads.create_head"),
        ("mlx_bert.model", "from convert import task_heads", "imports convert.task_heads"),
        ("mlx_bert.training.new", "from mlx_bert import BertCore", "imports mlx_bert.BertCore"),
        ("mlx_bert.training.new", "def f():\n    from convert import hub", "imports convert.hub"),
        ("mlx_bert.inference.new", "import transformers", "inside a function"),
        ("convert.new", "import transformers", "inside a function"),
        ("convert.new", "from mlx_bert.training.trainer import Trainer", "convert may import"),
        ("convert.new", "import urllib.request", "only convert/hub.py"),
        ("convert.new", "from huggingface_hub import HfApi", "only convert/hub.py"),
        ("mlx_bert.data.new", "from tests import parity", "not shipped"),
        ("mlx_bert.misc", "import json", "has no row in LAYERS"),
    ],
)
def test_a_violation_is_found(module: str, source: str, expected: str) -> None:
    problems = problems_of(source, module)
    assert len(problems) >= 1
    assert expected in problems[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mlx_bert.encoders.new", "import mlx.core as mx\nfrom .base import EncoderConfig\nimport math"),
        ("heads.metrics", "import numpy as np\ndef f():\n    from sklearn.metrics import f1_score"),
        ("mlx_bert.model", "def f():\n    from convert import task_heads"),
        ("mlx_bert.core", "from heads.pooling import mean_pool"),
        ("convert.hub", "from huggingface_hub import snapshot_download"),
        ("convert.convert", "def f():\n    from transformers import AutoTokenizer"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert problems_of(source, module) == []


# --- registries -------------------------------------------------------------------------------------------------------


def test_every_encoder_file_with_a_model_is_registered() -> None:
    from mlx_bert.encoders import ENCODERS

    files = {
        path.stem
        for path in (ROOT / "mlx_bert" / "encoders").glob("*.py")
        if any(isinstance(node, ast.ClassDef) and node.name == "Model" for node in ast.parse(path.read_text()).body)
    }
    assert files == {module.__name__.split(".")[-1] for module in ENCODERS.values()}
    for module in ENCODERS.values():
        assert {"Config", "Model", "NAMES"} <= set(vars(module))


def test_every_head_class_is_registered() -> None:
    from heads import HEADS, BaseKaggleHead

    classes = {
        node.name
        for path in (ROOT / "heads").glob("*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and re.fullmatch(r"(?!BaseKaggle|_).*Head", node.name)
    }
    assert classes == {head.__name__ for head in HEADS.values()}
    assert all(issubclass(head, BaseKaggleHead) for head in HEADS.values())
