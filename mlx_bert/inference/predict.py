"""Texts -> labels or values, with a fine-tuned model.

Dimension key: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np

from mlx_bert.checkpoint import ready_folder
from mlx_bert.inference.batching import run_batches
from mlx_bert.model import METADATA, BertWithHead
from mlx_bert.tokenizer import Tokenizer

MODEL_PARTS = ("best_model", "final_model")  # where a training run's output folder keeps its models


def find_model_folder(folder: str | Path) -> Path:
    """The model of a folder: the folder itself, or the best (else the last) model of a training run's output folder.

    A name that is no folder is a hub id of a task model, which is fetched and converted on first use.

    Raises:
        FileNotFoundError: none of them is a model.
    """
    folder = Path(folder)
    if not folder.exists():
        return ready_folder(str(folder))
    for candidate in (folder, *(folder / part for part in MODEL_PARTS)):
        if (candidate / METADATA).is_file() or (candidate / "config.json").is_file():
            return candidate
    raise FileNotFoundError(
        f"[predict] {folder} has no fine-tuned model (no {METADATA}, here or in {' or '.join(MODEL_PARTS)}). "
        "Train one: mlx-bert train --model MODEL --train FILE --output FOLDER."
    )


class TextPredictor:
    """A fine-tuned model with its tokenizer.

    Args:
        model: with a head that reads whole texts.
        tokenizer: the encoder's.

    Example:
        >>> TextPredictor.from_pretrained("reviews-model").predict(["I would buy it again."])
        [{'label': 'positive', 'confidence': 0.98}]
    """

    def __init__(self, model: BertWithHead, tokenizer: Tokenizer) -> None:
        if not model.head.POOLED:
            raise ValueError(
                f"[predict] expected a head that reads whole texts but got {model.head.head_type}. "
                "Call the model itself for token-level heads."
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._run = mx.compile(self._outputs, inputs=[model.state]) if _on_gpu() else self._outputs

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: str | mx.Dtype | None = None) -> Self:
        """Load a fine-tuned folder, the output folder of a training run, or a task model by hub id.

        Raises:
            FileNotFoundError: no model there.
        """
        folder = find_model_folder(folder)
        return cls(BertWithHead.from_pretrained(folder, dtype), Tokenizer.from_pretrained(folder))

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        top_k: int = 1,
        progress: Any = None,
    ) -> list[dict[str, Any]]:
        """Predict each text's label, labels or value.

        Args:
            texts: any number.
            pairs: the second text of each, for models trained on pairs.
            batch_size: a batch holds as many tokens as this many texts of 128.
            max_length: truncate to this many tokens; None for the encoder's bound.
            top_k: classification: also return ``scores``, the k most probable classes and their probabilities.
            progress: a tqdm bar.

        Returns:
            In the order of the texts: ``label`` and ``confidence`` (its probability); for several labels ``labels``
            and ``confidence`` (a probability each); for a regression ``value``.

        Raises:
            ValueError: ``top_k`` below 1.
        """
        if top_k < 1:
            raise ValueError(f"[predict] expected top_k of at least 1 but got {top_k}.")
        results: list[dict[str, Any]] = [{} for _ in texts]
        forward = lambda batch, _: self._run(batch)  # noqa: E731
        for places, outputs in run_batches(
            texts,
            self.tokenizer,
            forward,
            pairs=pairs,
            batch_size=batch_size,
            max_length=max_length,
            progress=progress,
        ):
            arrays = {name: np.array(array) for name, array in outputs.items()}
            for row, place in enumerate(places):
                results[place] = self.describe({name: array[row] for name, array in arrays.items()}, top_k)
        return results

    def _outputs(self, batch: Any) -> dict[str, mx.array]:
        outputs = self.model(batch.input_ids, batch.attention_mask, batch.token_type_ids)["head_outputs"]
        wanted = ("probabilities_2class", "probabilities", "predictions", "value")
        return {name: outputs[name].astype(mx.float32) for name in wanted if outputs.get(name) is not None}

    def name(self, index: int) -> str:
        """The name of a class; its number if the model has no names."""
        names: Mapping[int, str] = self.model.id2label or {}
        return names.get(index, str(index))

    def describe(self, outputs: Mapping[str, np.ndarray], top_k: int = 1) -> dict[str, Any]:
        """What the head's outputs for one text say."""
        if self.model.head.head_type == "multilabel_classification":
            chosen = [index for index in np.argsort(-outputs["probabilities"]) if outputs["predictions"][index] > 0]
            result: dict[str, Any] = {
                "labels": [self.name(int(index)) for index in chosen],
                "confidence": [float(outputs["probabilities"][index]) for index in chosen],
            }
            return result | self._scores(outputs["probabilities"], top_k)
        probabilities = outputs.get("probabilities_2class", outputs.get("probabilities"))
        if probabilities is None:
            value = np.ravel(outputs.get("value", outputs.get("predictions")))
            return {"value": float(value[0]) if value.size == 1 else [float(number) for number in value]}
        # an ordinal head's prediction need not be its most probable class
        best = int(np.ravel(outputs["predictions"])[0]) if "predictions" in outputs else int(np.argmax(probabilities))
        return {"label": self.name(best), "confidence": float(probabilities[best])} | self._scores(probabilities, top_k)

    def _scores(self, probabilities: np.ndarray, top_k: int) -> dict[str, Any]:
        if top_k == 1:
            return {}
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        return {"scores": {self.name(int(index)): float(probabilities[index]) for index in order}}


def _on_gpu() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu
