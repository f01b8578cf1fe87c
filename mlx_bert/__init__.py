"""mlx-bert: run, fine-tune and serve BERT-family encoders on Apple Silicon, in pure MLX.

The names below load on first use, so that ``import mlx_bert`` and every ``--help`` stay fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mlx_bert import blas, heap  # heap: memory is kept from here on

blas_backend = blas.enable()  # before anything imports mlx.core

_PUBLIC = {
    "BertCore": "mlx_bert.core",
    "BertOutput": "mlx_bert.core",
    "ByteLevelBPE": "mlx_bert.bpe",
    "create_bert_core": "mlx_bert.factory",
    "create_bert_for_competition": "mlx_bert.factory",
    "create_bert_for_task": "mlx_bert.factory",
    "create_bert_from_dataset": "mlx_bert.factory",
    "create_bert_with_head": "mlx_bert.factory",
    "create_model": "mlx_bert.factory",
    "JointIntentNER": "mlx_bert.joint",
    "train_joint": "mlx_bert.joint",
    "BertWithHead": "mlx_bert.model",
    "Batch": "mlx_bert.tokenizer",
    "Tokenizer": "mlx_bert.tokenizer",
    "MultiheadClassifier": "mlx_bert.multihead",
    "MultiheadConfig": "mlx_bert.multihead",
    "MTLDataProcessor": "mlx_bert.mtl",
    "MTLTrainer": "mlx_bert.mtl_training",
    "SentenceTransformerMTL": "mlx_bert.mtl",
    "CrossEncoder": "mlx_bert.inference.cross_encoder",
    "SentenceEncoder": "mlx_bert.inference.encode",
    "pipeline": "mlx_bert.inference.pipelines",
    "TextPredictor": "mlx_bert.inference.predict",
    "EnhancedTrainer": "mlx_bert.training.enhanced",
    "Trainer": "mlx_bert.training.trainer",
    "TrainingArgs": "mlx_bert.training.args",
}

__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlx_bert.bpe import ByteLevelBPE
    from mlx_bert.core import BertCore, BertOutput
    from mlx_bert.factory import (
        create_bert_core,
        create_bert_for_competition,
        create_bert_for_task,
        create_bert_from_dataset,
        create_bert_with_head,
        create_model,
    )
    from mlx_bert.inference.cross_encoder import CrossEncoder
    from mlx_bert.inference.encode import SentenceEncoder
    from mlx_bert.inference.pipelines import pipeline
    from mlx_bert.inference.predict import TextPredictor
    from mlx_bert.joint import JointIntentNER, train_joint
    from mlx_bert.model import BertWithHead
    from mlx_bert.mtl import MTLDataProcessor, SentenceTransformerMTL
    from mlx_bert.mtl_training import MTLTrainer
    from mlx_bert.multihead import MultiheadClassifier, MultiheadConfig
    from mlx_bert.tokenizer import Batch, Tokenizer
    from mlx_bert.training.args import TrainingArgs
    from mlx_bert.training.enhanced import EnhancedTrainer
    from mlx_bert.training.trainer import Trainer


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mlx_bert' has no attribute {name!r}. Public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
