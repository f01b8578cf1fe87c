"""A ``SentenceEncoder`` as a module, and what is trained of it: a loss of the embeddings of a batch.

Dimension key: B batch (of a rank), A batches of all ranks, L tokens, D hidden size, E embedding size, N texts of an
example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from heads.metrics import similarity_metrics
from mlx_bert.data.collate import Arrays
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.sentence_modules import POOLED
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Batch
from mlx_bert.training.distributed import World
from mlx_bert.training.gradient_cache import embed_in_chunks
from mlx_bert.training.sentence_losses import SentenceLoss

LABELS = "labels"


class SentenceModel(nn.Module):
    """A ``SentenceEncoder`` as a module: its encoder is ``bert``, what stands behind it is ``head``."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.bert = encoder.core
        self.head = encoder.modules
        self._encoder = encoder

    # which parts of `bert` train
    freeze_bert = BertWithHead.freeze_bert
    unfreeze_bert = BertWithHead.unfreeze_bert

    @property
    def encoder(self) -> SentenceEncoder:
        """The encoder whose weights these are."""
        return self._encoder

    def __call__(self, part: Arrays, prompt_length: int = 0) -> mx.array:
        """Embeddings ``(B, E)`` of ``input_ids (B, L)`` and maybe ``attention_mask (B, L)``.

        The encoder's ``hidden_states (B, L, D)`` may stand in place of the ids.

        Args:
            part: the arrays.
            prompt_length: tokens of the prompt, for poolings that leave it out.
        """
        if "hidden_states" in part:
            return self.encoder.apply_modules(part["hidden_states"], part.get("attention_mask"), prompt_length)[POOLED]
        batch = Batch(part["input_ids"], part.get("attention_mask"), None)
        return self.encoder(batch, prompt_length)[POOLED]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that ``SentenceEncoder.from_pretrained`` and sentence-transformers load."""
        self.encoder.save_pretrained(folder, overwrite=True)


class SentenceObjective:
    """The loss of embeddings.

    Args:
        loss: of a batch.
        prompt_lengths: tokens of the prompt of each text of an example.
    """

    def __init__(self, loss: SentenceLoss, prompt_lengths: Sequence[int]) -> None:
        self.embedding_loss = loss
        self.prompt_lengths = list(prompt_lengths)
        self.needs_labels = loss.needs_labels

    def forward(self, model: SentenceModel, batch: Arrays) -> dict[str, mx.array]:
        """The embeddings of each text, N times ``(B, E)``."""

        def embed(number: int, part: Arrays) -> mx.array:
            # negatives that were mined come last and have the prompt of the column before them
            return model(part, self.prompt_lengths[min(number, len(self.prompt_lengths) - 1)])

        chunk_size = getattr(self.embedding_loss, "chunk_size", None)
        parts = batch["parts"]
        if chunk_size is None:
            embeddings = [embed(number, part) for number, part in enumerate(parts)]
        else:
            embeddings = embed_in_chunks(model, embed, parts, chunk_size)
        return {f"embeddings_{number}": array for number, array in enumerate(embeddings)}

    def loss(self, model: SentenceModel, outputs: Mapping[str, mx.array], batch: Arrays) -> tuple[mx.array, mx.array]:
        """The loss of a batch and its number of examples."""
        embeddings = [outputs[f"embeddings_{number}"] for number in range(len(outputs))]
        return self.embedding_loss(embeddings, batch.get("labels")), mx.array(float(embeddings[0].shape[0]))

    def metrics(self, model: SentenceModel, outputs: Mapping[str, Any], labels: Any) -> dict[str, float]:
        """Of pairs with a score, ``spearman_cosine`` and ``pearson_cosine``; of triplets, ``cosine_accuracy``."""
        vectors = [np.asarray(outputs[f"embeddings_{number}"], dtype=np.float64) for number in range(len(outputs))]
        vectors = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in vectors]
        cosines = [(vectors[0] * rows).sum(axis=1) for rows in vectors[1:]]
        if len(vectors) == 2 and labels is not None and labels.ndim == 1:
            found = similarity_metrics(cosines[0], np.asarray(labels))
            return {f"{name}_cosine": value for name, value in found.items()}
        if len(vectors) == 3 and labels is None:
            return {"cosine_accuracy": float((cosines[0] > cosines[1]).mean())}
        return {}


class GatheredObjective(SentenceObjective):
    """The loss of the batches of all ranks together, as one process with all of them would have it.

    sentence-transformers calls this ``gather_across_devices``. There each rank computes the loss of its own anchors and
    sends gradients back to the others; here each rank computes the whole loss and keeps the gradient of its own rows,
    which adds up to the same, works for every loss, and needs no second exchange. In evaluation, where ranks may have
    unequally many batches, the loss is that of a batch by itself.

    Args:
        loss: of a batch.
        prompt_lengths: tokens of the prompt of each text of an example.
        world: the ranks. All of them must call :meth:`loss`, or :meth:`sit_out`, equally often.
    """

    def __init__(self, loss: SentenceLoss, prompt_lengths: Sequence[int], world: World) -> None:
        super().__init__(loss, prompt_lengths)
        self.world = world

    def loss(self, model: SentenceModel, outputs: Mapping[str, mx.array], batch: Arrays) -> tuple[mx.array, mx.array]:
        """The loss of all batches together, with the gradient of this rank's part of it, and this rank's examples.

        The trainer averages gradients over the ranks, weighted by examples: this rank's are divided by its part of
        them, so that the average is the sum. Not to be compiled: the embeddings are computed here and sent.
        """
        if not model.training:
            return super().loss(model, outputs, batch)
        own = [outputs[f"embeddings_{number}"].astype(mx.float32) for number in range(len(outputs))]
        embeddings, labels = self._gathered(own, batch.get("labels"))
        loss = self.embedding_loss(embeddings, labels)
        count, total = own[0].shape[0], embeddings[0].shape[0]
        constant = mx.stop_gradient(loss)
        return constant + (loss - constant) * (total / count), mx.array(float(count))

    def sit_out(self) -> None:
        """What a rank with an empty batch does while the others compute the loss."""
        self.world.gather({})

    def _gathered(self, own: list[mx.array], labels: mx.array | None) -> tuple[list[mx.array], mx.array | None]:
        """Embeddings, N times ``(A, E)``, and labels ``(A, ...)`` of all ranks, in their order; gradients flow into
        this rank's rows."""
        mx.eval(own)
        sent = {str(number): np.array(rows) for number, rows in enumerate(own)}
        if labels is not None:
            sent[LABELS] = np.array(labels)
        ranks = self.world.gather(sent)
        embeddings = [
            mx.concatenate(
                [rows if rank == self.world.rank else mx.array(found[str(number)])
                 for rank, found in enumerate(ranks) if found]
            )
            for number, rows in enumerate(own)
        ]  # fmt: skip
        if labels is None:
            return embeddings, None
        return embeddings, mx.array(np.concatenate([found[LABELS] for found in ranks if found]))
