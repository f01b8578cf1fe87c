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
    "analyze_dataset": "mlx_bert.data.analysis",
    "create_bert_core": "mlx_bert.factory",
    "create_bert_for_competition": "mlx_bert.factory",
    "create_bert_for_task": "mlx_bert.factory",
    "create_bert_from_dataset": "mlx_bert.factory",
    "create_bert_with_head": "mlx_bert.factory",
    "create_model": "mlx_bert.factory",
    "JointIntentNER": "mlx_bert.joint",
    "evaluate_joint": "mlx_bert.joint",
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
    "EmbeddingIndex": "mlx_bert.inference.index",
    "community_detection": "mlx_bert.inference.search",
    "mine_hard_negatives": "mlx_bert.inference.search",
    "paraphrase_mining": "mlx_bert.inference.search",
    "paraphrase_mining_embeddings": "mlx_bert.inference.search",
    "semantic_search": "mlx_bert.inference.search",
    "quantize_embeddings": "mlx_bert.inference.quantization",
    "semantic_search_quantized": "mlx_bert.inference.quantized_search",
    "SentenceEncoderTrainer": "mlx_bert.training.sentence",
    "HardNegatives": "mlx_bert.training.hard_negatives",
    "MultipleNegativesRanking": "mlx_bert.training.sentence_losses",
    "CoSENT": "mlx_bert.training.sentence_losses",
    "AnglE": "mlx_bert.training.sentence_losses",
    "CosineSimilarity": "mlx_bert.training.sentence_losses",
    "Triplet": "mlx_bert.training.sentence_losses",
    "BatchHardTriplet": "mlx_bert.training.sentence_losses",
    "Contrastive": "mlx_bert.training.sentence_losses",
    "OnlineContrastive": "mlx_bert.training.sentence_losses",
    "MarginMSE": "mlx_bert.training.sentence_losses",
    "DistillKL": "mlx_bert.training.sentence_losses",
    "EmbeddingMSE": "mlx_bert.training.sentence_losses",
    "Matryoshka": "mlx_bert.training.sentence_losses",
    "Cached": "mlx_bert.training.sentence_losses",
    "EmbeddingSimilarityEvaluator": "mlx_bert.inference.evaluators",
    "TripletEvaluator": "mlx_bert.inference.evaluators",
    "InformationRetrievalEvaluator": "mlx_bert.inference.evaluators",
    "RerankingEvaluator": "mlx_bert.inference.evaluators",
    "TaskModel": "mlx_bert.task_model",
    "CrossEncoderTrainer": "mlx_bert.training.cross_encoder",
    "FewShotClassifier": "mlx_bert.training.few_shot",
    "MaskedLMTrainer": "mlx_bert.training.masked_lm",
    "load_masked_lm": "mlx_bert.training.masked_lm",
    "Masking": "mlx_bert.data.masking",
    "CrossEncoderRerankingEvaluator": "mlx_bert.inference.task_evaluators",
    "CrossEncoderClassificationEvaluator": "mlx_bert.inference.task_evaluators",
    "CrossEncoderCorrelationEvaluator": "mlx_bert.inference.task_evaluators",
    "ClassificationEvaluator": "mlx_bert.inference.task_evaluators",
    "EntityEvaluator": "mlx_bert.inference.task_evaluators",
    "EnhancedTrainer": "mlx_bert.training.enhanced",
    "Callback": "mlx_bert.training.callbacks",
    "Trainer": "mlx_bert.training.trainer",
    "TrainingArgs": "mlx_bert.training.args",
    "TrainingInterrupted": "mlx_bert.training.outcome",
}

__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlx_bert.bpe import ByteLevelBPE
    from mlx_bert.core import BertCore, BertOutput
    from mlx_bert.data.analysis import analyze_dataset
    from mlx_bert.data.masking import Masking
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
    from mlx_bert.inference.evaluators import (
        EmbeddingSimilarityEvaluator,
        InformationRetrievalEvaluator,
        RerankingEvaluator,
        TripletEvaluator,
    )
    from mlx_bert.inference.index import EmbeddingIndex
    from mlx_bert.inference.pipelines import pipeline
    from mlx_bert.inference.predict import TextPredictor
    from mlx_bert.inference.quantization import quantize_embeddings
    from mlx_bert.inference.quantized_search import semantic_search_quantized
    from mlx_bert.inference.search import (
        community_detection,
        mine_hard_negatives,
        paraphrase_mining,
        paraphrase_mining_embeddings,
        semantic_search,
    )
    from mlx_bert.inference.task_evaluators import (
        ClassificationEvaluator,
        CrossEncoderClassificationEvaluator,
        CrossEncoderCorrelationEvaluator,
        CrossEncoderRerankingEvaluator,
        EntityEvaluator,
    )
    from mlx_bert.joint import JointIntentNER, evaluate_joint, train_joint
    from mlx_bert.model import BertWithHead
    from mlx_bert.mtl import MTLDataProcessor, SentenceTransformerMTL
    from mlx_bert.mtl_training import MTLTrainer
    from mlx_bert.multihead import MultiheadClassifier, MultiheadConfig
    from mlx_bert.task_model import TaskModel
    from mlx_bert.tokenizer import Batch, Tokenizer
    from mlx_bert.training.args import TrainingArgs
    from mlx_bert.training.callbacks import Callback
    from mlx_bert.training.cross_encoder import CrossEncoderTrainer
    from mlx_bert.training.enhanced import EnhancedTrainer
    from mlx_bert.training.few_shot import FewShotClassifier
    from mlx_bert.training.hard_negatives import HardNegatives
    from mlx_bert.training.masked_lm import MaskedLMTrainer, load_masked_lm
    from mlx_bert.training.outcome import TrainingInterrupted
    from mlx_bert.training.sentence import SentenceEncoderTrainer
    from mlx_bert.training.sentence_losses import (
        AnglE,
        BatchHardTriplet,
        Cached,
        Contrastive,
        CoSENT,
        CosineSimilarity,
        DistillKL,
        EmbeddingMSE,
        MarginMSE,
        Matryoshka,
        MultipleNegativesRanking,
        OnlineContrastive,
        Triplet,
    )
    from mlx_bert.training.trainer import Trainer


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mlx_bert' has no attribute {name!r}. Public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
