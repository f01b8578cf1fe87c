"""Continued pre-training: masked language modelling of texts of one's own domain, before fine-tuning.

Dimension key: B batch, L tokens, P masked places of a row, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from heads.classification_losses import cross_entropy
from mlx_bert.checkpoint import CONFIG, read_json, ready_folder
from mlx_bert.core import BertCore
from mlx_bert.data.collate import IGNORE_INDEX, Arrays, token_count
from mlx_bert.data.masking import EpochSampler, Masking, MaskingCollator, text_rows
from mlx_bert.data.readers import Example
from mlx_bert.model import METADATA, BertWithHead
from mlx_bert.task_model import TaskModel
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.feed import default_collator
from mlx_bert.training.step import compiles
from mlx_bert.training.trainer import Trainer

PLACES_MULTIPLE = 8


def load_masked_lm(
    source: str | Path, dtype: str | mx.Dtype | None = None, revision: str | None = None
) -> BertWithHead:
    """The masked language model of a checkpoint, or over its encoder a new head that shares the word embeddings.

    Args:
        source: folder or hub id, of a masked language model or of any encoder.
        dtype: type of the weights; None keeps them as stored.
        revision: branch, tag or commit of a hub id.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: transformers has no masked language model over this architecture.
    """
    folder = Path(source) if (Path(source) / METADATA).is_file() else ready_folder(source, revision)
    if (folder / METADATA).is_file():
        return TaskModel.new(BertWithHead.from_pretrained(folder, dtype).bert, "masked_lm")
    config = read_json(folder / CONFIG)
    name = str((config.get("architectures") or [""])[0])
    pretrained = name.endswith("ForPreTraining") and config.get("model_type") != "electra"  # whose head detects
    if name.endswith("ForMaskedLM") or pretrained:
        return TaskModel.of(BertWithHead.from_pretrained(folder, dtype))
    return TaskModel.new(BertCore.from_pretrained(folder, dtype), "masked_lm")


class MaskedLMObjective:
    """Cross-entropy over the masked places, whose logits alone are computed; perplexity and accuracy."""

    needs_labels = False

    def forward(self, model: BertWithHead, batch: Arrays) -> dict[str, mx.array]:
        """``token_losses`` and ``hits`` ``(B, P)``: logits of a whole data set would not fit into memory."""
        logits = model(
            batch["input_ids"],
            batch.get("attention_mask"),
            batch.get("token_type_ids"),
            positions=batch["positions"],
        )["logits"]
        labels = batch["labels"]
        hits = (mx.argmax(logits, axis=-1) == labels).astype(mx.float32)
        return {"token_losses": cross_entropy(logits, labels, reduction="none"), "hits": hits}

    def loss(self, model: Any, outputs: Mapping[str, mx.array], batch: Arrays) -> tuple[mx.array, mx.array]:
        """The mean over the masked places, and their number."""
        count = mx.sum((batch["labels"] != IGNORE_INDEX).astype(mx.float32))
        return mx.sum(outputs["token_losses"]) / mx.maximum(count, 1), count

    def metrics(self, model: Any, outputs: Mapping[str, Any], labels: Any) -> dict[str, float]:
        """``perplexity``, the exponential of the mean loss, and ``accuracy``."""
        counted = np.array(labels) != IGNORE_INDEX
        losses, hits = (np.array(outputs[name])[counted].astype(np.float64) for name in ("token_losses", "hits"))
        return {"perplexity": math.exp(min(losses.mean(), 700.0)), "accuracy": float(hits.mean())}


class MaskedLMTrainer(Trainer):
    """Trains a masked language model on texts.

    ``best_model`` is a checkpoint of transformers' class: ``pipeline("fill-mask", ...)`` takes it, and every loader of
    an encoder takes it to be fine-tuned. What is masked depends on seed, epoch and row alone, so a run resumes exactly.

    Args:
        model: from :func:`load_masked_lm`.
        tokenizer: the encoder's.
        args: the settings; ``max_length`` is the tokens of a row.
        texts: lines or documents.
        eval_texts: the same, masked alike in every evaluation; None for no evaluation.
        masking: what is masked; None for 15 % of the tokens in whole words.
        packed: fill rows with as many texts as fit, for long documents or many short lines; see
            :func:`mlx_bert.data.masking.text_rows`.
        callbacks: called in order.

    Raises:
        ValueError: no texts, or a tokenizer without a mask token.
    """

    def __init__(
        self,
        model: BertWithHead,
        tokenizer: Tokenizer,
        args: TrainingArgs,
        texts: Sequence[str],
        eval_texts: Sequence[str] | None = None,
        masking: Masking | None = None,
        packed: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        collate = MaskingCollator(
            default_collator(model, tokenizer, exact=not compiles(args)),
            tokenizer,
            masking or Masking(),
            args.seed,
            PLACES_MULTIPLE if compiles(args) else 1,
        )
        self._rows = lambda texts: text_rows(texts, tokenizer, args.max_length, packed)
        rows = self._rows(texts)
        held_out = None if eval_texts is None else self._prepared(eval_texts)
        sampler = EpochSampler(collate, [token_count(row) for row in rows], args.batch_size, args.seed)
        super().__init__(
            model,
            args,
            rows,
            held_out,
            tokenizer=tokenizer,
            collate=collate,
            objective=MaskedLMObjective(),
            callbacks=callbacks,
            sampler=sampler,
        )

    def _prepared(self, examples: Sequence[str]) -> list[Example]:
        return [{**row, "fixed": True} for row in self._rows(examples)]
