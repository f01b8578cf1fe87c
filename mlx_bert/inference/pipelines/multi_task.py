"""All tasks of a model in one pass of the encoder.

Dimensions: B batch, C classes of a task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np

from mlx_bert.data.labels import LabelMap
from mlx_bert.inference.multihead_files import MULTIHEAD_CONFIG, read_multihead
from mlx_bert.inference.pipelines.base import Pipeline, check_texts, check_top_k, model_in, tokenizer_of
from mlx_bert.inference.pipelines.options import takes_options
from mlx_bert.inference.pipelines.text_classification import TextClassification, head_scores
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Batch, Tokenizer

Scores = dict[str, list[dict[str, Any]]]


class MultiTask(Pipeline):
    """All tasks of a model in one pass of the encoder.

    Args:
        model: an encoder with a ``multi_task`` or ``multi_task_nlp`` head of tasks that read whole texts.
        tokenizer: its tokenizer.
        config: the checkpoint's ``config.json``, if it has one.
        batch_size: a batch holds as many tokens as this many texts of 128.
        labels: the names of a task's classes, in the order of their ids; tasks without names have ``LABEL_0``, ....
        max_length: longer texts are cut to so many tokens; None for the tokenizer's bound.

    Raises:
        ValueError: another head, or a task that does not read whole texts.
    """

    HEADS = frozenset({"multi_task", "multi_task_nlp"})

    def __init__(
        self,
        model: BertWithHead,
        tokenizer: Tokenizer,
        config: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        labels: Mapping[str, Sequence[str]] | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__(model, tokenizer, config, batch_size)
        self.labels = {task: list(names) for task, names in (labels or {}).items()}
        self.max_length = max_length
        for name, head in getattr(model.head, "task_heads", {}).items():
            if str(head.head_type) not in TextClassification.HEADS:
                raise ValueError(
                    f"[pipeline] expected tasks that give a text labels or values but {name!r} is of type "
                    f"{head.head_type}. Call the model itself."
                )

    @classmethod
    def _load(cls, source: str | Path, dtype: mx.Dtype | None, revision: str | None) -> Self:
        folder = Path(source)
        if not (folder / MULTIHEAD_CONFIG).is_file():
            return super()._load(source, dtype, revision)
        model, tokenizer, saved = read_multihead(folder, dtype)
        labels = {task: LabelMap.from_dict(names).names for task, names in saved["labels"].items()}
        return cls(model, tokenizer, labels=labels, max_length=saved["config"]["training"]["max_length"])

    @classmethod
    def of(cls, model: Any, tokenizer: Tokenizer | str | Path | None = None) -> Self:
        own, held = tokenizer_of(model, tokenizer), model_in(model)
        if not hasattr(model, "get_labels"):
            return cls(held, own)
        labels = {task: model.get_labels(task) for task in model.tasks}  # of a MultiheadClassifier
        return cls(held, own, labels=labels, max_length=model.config.training.max_length)

    @takes_options
    def __call__(
        self,
        inputs: str | Sequence[str] | Iterator[str],
        *,
        top_k: int | None = None,
        max_length: int | None = None,
    ) -> Any:
        """Classify by every task.

        Args:
            inputs: a text, or a list or iterator of texts.
            top_k: so many labels of each task, best first; None for all.
            max_length: longer texts are cut to so many tokens; None for the pipeline's own ``max_length``.

        Returns:
            ``{task: [{"label", "score"}]}``, the best first: softmax for classes, sigmoid for labels that may hold
            together, the value itself for a regression. A list of these for several texts.

        Raises:
            ValueError: something that is no text, or a ``top_k`` below 1.
        """
        check_top_k(top_k)
        run = partial(self._classify, top_k=top_k, max_length=max_length or self.max_length)
        return self._each(inputs, isinstance(inputs, str), run)

    def _classify(self, texts: list[str], top_k: int | None, max_length: int | None) -> list[Scores]:
        sizes: dict[str, int] = {}

        def forward(batch: Batch, _: Any) -> mx.array:
            scores = self._task_scores(batch)
            sizes.update({task: each.shape[1] for task, each in scores.items()})
            return mx.concatenate(list(scores.values()), axis=1)

        results = []
        for row, _ in self._run(check_texts(texts), forward, max_length=max_length):
            bounds = pairwise(accumulate(sizes.values(), initial=0))
            parts = {task: row[start:end] for task, (start, end) in zip(sizes, bounds, strict=True)}
            results.append({task: self._ranked(task, part, top_k) for task, part in parts.items()})
        return results

    def _task_scores(self, batch: Batch) -> dict[str, mx.array]:
        """``{task: (B, C)}``."""
        outputs = self.model(*batch[:2], token_type_ids=batch.token_type_ids)["head_outputs"]
        head, rows = self.model.head, len(batch.input_ids)
        if str(head.head_type) == "multi_task_nlp":
            return {task: head_scores(each, rows).astype(mx.float32) for task, each in outputs.items()}
        functions = {"classification": mx.softmax, "multilabel": lambda logits, **_: mx.sigmoid(logits)}
        scores = {}
        for task, settings in head.option("task_configs").items():
            logits = outputs[f"{task}_logits"]
            scores[task] = functions[settings["type"]](logits, axis=-1) if settings["type"] in functions else logits
        return scores

    def _ranked(self, task: str, scores: np.ndarray, top_k: int | None) -> list[dict[str, Any]]:
        names = self.labels.get(task) or [f"LABEL_{number}" for number in range(len(scores))]
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"label": names[place], "score": float(scores[place])} for place in order]
