"""Texts -> labels, values, entities, answers or choices, with a fine-tuned model.

Dimension key: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np

from mlx_bert.checkpoint import FromPretrained, ready_folder
from mlx_bert.inference.batching import run_batches
from mlx_bert.inference.pipelines import MultipleChoice, MultiTask, QuestionAnswering, TokenClassification
from mlx_bert.inference.pipelines.base import READ_AHEAD
from mlx_bert.inference.precision import compute_dtype, on_gpu
from mlx_bert.model import METADATA, BertWithHead
from mlx_bert.tokenizer import Tokenizer

PIPELINE_OF_HEAD = {
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
    "multiple_choice": MultipleChoice,
    "multi_task": MultiTask,
    "multi_task_nlp": MultiTask,
}
EMBEDDERS = ("contrastive", "metric_learning", "text_similarity")  # their heads give vectors
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


class TextPredictor(FromPretrained):
    """A fine-tuned model with its tokenizer.

    Args:
        model: with any head but those of language models and of embeddings.
        tokenizer: the encoder's.

    Raises:
        ValueError: such a head.

    Example:
        >>> TextPredictor.from_pretrained("reviews-model").predict(["I would buy it again."])
        [{'label': 'positive', 'confidence': 0.98}]
    """

    def __init__(self, model: BertWithHead, tokenizer: Tokenizer) -> None:
        kind = str(model.head.head_type)
        if kind not in PIPELINE_OF_HEAD and (not model.head.POOLED or kind in EMBEDDERS):
            raise ValueError(
                f"[predict] expected a head that gives texts labels, values or answers but got {kind}. "
                "Call the model itself, a pipeline, or SentenceEncoder."
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.pipeline = PIPELINE_OF_HEAD[kind](model, tokenizer) if kind in PIPELINE_OF_HEAD else None
        tree = getattr(model.head, "tree", None)
        self._nodes: dict[int, str] = {} if tree is None else {number: node for node, number in tree.index.items()}
        leaves = [] if tree is None else [tree.index[leaf] for leaf in tree.leaves]  # what its probabilities are of
        self._leaves = mx.array(np.equal.outer(leaves, np.arange(len(self._nodes))), mx.float32)
        self._run = mx.compile(self._outputs, inputs=[model.state]) if on_gpu() else self._outputs

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: str | mx.Dtype | None = None) -> Self:
        """Load a fine-tuned folder, the output folder of a training run, or a task model by hub id.

        Args:
            folder: where the model is.
            dtype: type of the encoder's weights, ``"stored"`` for as stored. None: float16 on a GPU, float32 on a CPU;
                see :func:`mlx_bert.inference.precision.compute_dtype`.

        Raises:
            FileNotFoundError: no model there.
        """
        folder = find_model_folder(folder)
        model = BertWithHead.from_pretrained(folder, compute_dtype(dtype, folder))
        return cls(model, Tokenizer.from_pretrained(folder))

    def predict(
        self,
        texts: str | Iterable[str],
        pairs: str | Iterable[str] | Iterable[Sequence[str]] | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        top_k: int = 1,
        progress: Any = None,
    ) -> list[dict[str, Any]] | Iterator[dict[str, Any]]:
        """Predict what the model's head says of each text.

        Args:
            texts: any number, or one, which gives a list of one; for a model that answers, or that chooses, the
                questions. An iterator gives an iterator, reading ``READ_AHEAD`` batches ahead: memory stays bounded.
            pairs: the second text of each, for models trained on pairs; the context of each question; or the choices
                of each question, a list each.
            batch_size: a batch holds as many tokens as this many texts of 128.
            max_length: truncate to this many tokens; None for the encoder's bound. Contexts are read whole, in windows
                of so many.
            top_k: of above 1, also ``scores``, the k most probable classes or choices and their probabilities, or
                ``answers``, the k best; so many labels of each task. Values have none.
            progress: a tqdm bar.

        Returns:
            In the order of the texts: ``label`` and ``confidence`` (its probability); for several labels ``labels``
            and ``confidence`` (a probability each); for a regression ``value``; for tokens ``entities`` (see
            :class:`mlx_bert.inference.pipelines.TokenClassification`, with the strategy ``"simple"``); for questions
            ``answer``, ``confidence``, ``start`` and ``end``, or ``choice``, ``index`` and ``confidence``; for several
            tasks ``tasks``, the labels and scores of each.

        Raises:
            ValueError: ``top_k`` or ``batch_size`` below 1; ``top_k`` above 1 for entities; a question
                without its context or choices.
        """
        for name, value in (("top_k", top_k), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"[predict] expected {name} of at least 1 but got {value}.")
        run = partial(self._predict, batch_size=batch_size, max_length=max_length, top_k=top_k, progress=progress)
        if isinstance(texts, str):
            texts, pairs = [texts], None if pairs is None else [pairs]
        if not isinstance(texts, Iterator):
            return run(list(texts), None if pairs is None else list(pairs))
        items = zip(texts) if pairs is None else zip(texts, pairs, strict=True)
        chunks = iter(lambda: list(islice(items, batch_size * READ_AHEAD)), [])
        return chain.from_iterable(run(*zip(*chunk, strict=True)) for chunk in chunks)

    def _predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[Any] | None = None,
        *,
        batch_size: int,
        max_length: int | None,
        top_k: int,
        progress: Any,
    ) -> list[dict[str, Any]]:
        if self.pipeline is not None:
            rows = []
            for row in self._by_pipeline(texts, pairs, batch_size, max_length, top_k):
                rows.append(row)
                if progress is not None:
                    progress.update(1)
            return rows
        results: list[dict[str, Any]] = [{} for _ in texts]
        forward = lambda batch, _: self._run(batch)  # noqa: E731
        for places, outputs in run_batches(
            texts,
            self.tokenizer,
            forward,
            model=self.model,
            pairs=pairs,
            batch_size=batch_size,
            max_length=max_length,
            progress=progress,
        ):
            arrays = {name: np.array(array) for name, array in outputs.items()}
            for row, place in enumerate(places):
                results[place] = self.describe({name: array[row] for name, array in arrays.items()}, top_k)
        return results

    def _by_pipeline(
        self, texts: Sequence[str], pairs: Sequence[Any] | None, batch_size: int, max_length: int | None, top_k: int
    ) -> Iterator[dict[str, Any]]:
        """Rows of the heads that a pipeline reads."""
        pipe, kind = partial(self.pipeline, batch_size=batch_size), str(self.model.head.head_type)
        asks = {"question_answering": "context", "multiple_choice": "choices"}.get(kind)
        if (asks is None) != (pairs is None) or (pairs is not None and len(pairs) != len(texts)):
            wanted = f"the {asks} of each of {len(texts)} questions" if asks else "texts without pairs"
            raise ValueError(
                f"[predict] expected {wanted} for a {kind} model but got "
                f"{'no' if pairs is None else len(pairs)} pairs. Give what the model was trained on."
            )
        if kind == "token_classification" and top_k > 1:
            raise ValueError(f"[predict] expected top_k of 1 for a {kind} model but got {top_k}. Leave it out.")
        items: Any = iter(texts)
        if asks is not None:
            items = ({"question": text, asks: pair} for text, pair in zip(texts, pairs or (), strict=True))
        if isinstance(self.pipeline, QuestionAnswering):
            for found in pipe(items, top_k=top_k, max_seq_len=max_length):
                answers = found if isinstance(found, list) else [found]
                more = {"answers": answers} if top_k > 1 else {}
                place = {"start": answers[0]["start"], "end": answers[0]["end"]}
                yield {"answer": answers[0]["answer"], "confidence": answers[0]["score"], **place, **more}
        elif isinstance(self.pipeline, MultipleChoice):
            for found in pipe(items, top_k=top_k, max_length=max_length):
                best = {"choice": found[0]["choice"], "index": found[0]["index"], "confidence": found[0]["score"]}
                scores = {each["choice"]: each["score"] for each in found}
                yield best | ({"scores": scores} if top_k > 1 else {})
        elif isinstance(self.pipeline, MultiTask):
            for found in pipe(items, top_k=top_k, max_length=max_length):
                yield {"tasks": found}
        else:
            for found in pipe(items, aggregation_strategy="simple", max_length=max_length):
                yield {"entities": [{**entity, "score": float(entity["score"])} for entity in found]}

    def _outputs(self, batch: Any) -> dict[str, mx.array]:
        outputs = self.model(batch.input_ids, batch.attention_mask, batch.token_type_ids)["head_outputs"]
        if self._nodes:
            outputs = {**outputs, "probabilities": outputs["probabilities"] @ self._leaves}
        wanted = ("probabilities_2class", "probabilities", "predictions", "value")
        return {name: outputs[name].astype(mx.float32) for name in wanted if outputs.get(name) is not None}

    def name(self, index: int) -> str:
        """The name of a class; its number if the model has no names."""
        names: Mapping[int, str] = self.model.id2label or self._nodes
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
