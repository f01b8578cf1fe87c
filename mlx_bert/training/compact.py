"""Training a compact sentence encoder from scratch on triplets: an anchor, a text like it, and one unlike it.

    trainer = compact_trainer(tokenizer, triplet_examples(triplets, tokenizer), None, {"output_dir": "encoder"})
    trainer.train()

Dimensions: B batch, P width of a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from heads.losses import triplet_loss
from mlx_bert.core import BertCore
from mlx_bert.data.collate import PartsCollator
from mlx_bert.data.readers import Example
from mlx_bert.data.triplets import Triplet
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.trainer import Trainer

PARTS = ("anchor", "positive", "negative")
MARGIN = 0.2
# 4 layers of 8 heads on 64 features; sentences of 32 features
SIZES = {"model_type": "compact", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
         "intermediate_size": 128, "projection_size": 32, "max_position_embeddings": 512}  # fmt: skip
DEFAULTS: dict[str, Any] = {
    "epochs": 50,
    "batch_size": 32,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "schedule": "cosine_per_epoch",
    "warmup_ratio": 0.0,
    "max_grad_norm": 1.0,
    "patience": 3,
}


class TripletObjective:
    """``mean max(0, d(a, p) - d(a, n) + 0.2)`` with ``d = 1 - cosine`` of the projected first tokens."""

    needs_labels = False

    def forward(self, model: BertCore, batch: Mapping[str, Any]) -> dict[str, mx.array]:
        """The three sentences of each triplet, ``(B, P)`` each."""
        return {
            name: model(part["input_ids"], part.get("attention_mask"), compute_pooling=False).pooler_output
            for name, part in zip(PARTS, batch["parts"], strict=True)
        }

    def loss(
        self, model: BertCore, outputs: Mapping[str, mx.array], batch: Mapping[str, Any]
    ) -> tuple[mx.array, mx.array]:
        """The mean loss of a batch and its number of triplets."""
        rows = [outputs[name] for name in PARTS]
        return triplet_loss(*rows, margin=MARGIN, distance="cosine"), mx.array(float(rows[0].shape[0]))

    def metrics(self, model: BertCore, outputs: Mapping[str, Any], labels: Any) -> dict[str, float]:
        """How often the positive is nearer than the negative, and the mean cosine of each with the anchor."""
        anchor, positive, negative = (unit_rows(np.array(outputs[name])) for name in PARTS)
        near, far = (anchor * positive).sum(-1), (anchor * negative).sum(-1)
        return {"accuracy": float((near > far).mean()), "positive": float(near.mean()), "negative": float(far.mean())}


def compact_trainer(
    tokenizer: Tokenizer,
    train: Sequence[Example],
    validation: Sequence[Example] | None = None,
    args: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """A trainer of a new encoder, ready to be started.

    Args:
        tokenizer: what the encoder will read with.
        train, validation: of :func:`triplet_examples`.
        args: settings of ``TrainingArgs`` that replace the defaults.
        sizes: values of the encoder's config that replace the defaults (``SIZES``).
        callbacks: as for ``Trainer``.

    Raises:
        ValueError: wrong settings or sizes.
    """
    known = [name for name in SIZES if name != "model_type"]
    if unknown := sorted(set(sizes or {}) - set(known)):
        raise ValueError(f"[compact] expected sizes of {', '.join(known)} but got {', '.join(unknown)}. Correct them.")
    patience = {} if validation else {"patience": 0}
    settings = TrainingArgs.from_dict({**DEFAULTS, **patience, **(args or {})})
    mx.random.seed(settings.seed)
    own = {"vocab_size": tokenizer.fast.get_vocab_size(), "pad_token_id": tokenizer.pad_id}
    model = BertCore({**SIZES, **(sizes or {}), **own})
    collate = PartsCollator(tokenizer.pad_id, max_length=model.config.max_tokens)
    return Trainer(
        model, settings, train, validation, tokenizer=tokenizer, collate=collate, objective=TripletObjective(),
        callbacks=callbacks,
    )  # fmt: skip


def triplet_examples(triplets: Sequence[Triplet], tokenizer: Tokenizer, max_length: int | None = None) -> list[Example]:
    """Triplets as three rows of ids each."""
    encodings = iter(tokenizer.encode([text for triplet in triplets for text in triplet], max_length=max_length))
    return [{"input_ids": [np.array(next(encodings).ids, dtype=np.int32) for _ in PARTS]} for _ in triplets]


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-8)
