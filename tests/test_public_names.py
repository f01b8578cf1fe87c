"""What ``import mlx_bert`` offers, and that it stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_bert


@pytest.mark.parametrize("name", mlx_bert.__all__)
def test_every_public_name_loads(name):
    assert getattr(mlx_bert, name) is not None
    assert name in dir(mlx_bert)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(mlx_bert.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    names = {alias.name for node in guarded.body for alias in node.names}
    assert names == set(mlx_bert.__all__)


@pytest.mark.parametrize("name", ["semantic_search", "paraphrase_mining", "community_detection", "quantize_embeddings"])
def test_search_helpers_stand_at_the_top(name):
    assert name in mlx_bert.__all__


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"has no attribute 'BertCor'. Public names: .*BertCore"):
        _ = mlx_bert.BertCor


def test_the_import_loads_nothing_heavy():
    code = "import mlx_bert, sys; print([name for name in ('mlx.core', 'numpy', 'sklearn') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
