"""All tasks of a model in one pass of the encoder.

Dimensions: B batch, C classes of a task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np

from mlx_bert.data.labels import LabelMap
from mlx_bert.inference.multihead_files import MULTIHEAD_CONFIG, read_multihead
from mlx_bert.inference.pipelines.base import Pipeline, check_texts, check_top_k, model_in, tokenizer_of
from mlx_bert.inference.pipelines.options import takes_options
from mlx_bert.inference.pipelines.text_classification import TextClassification, head_scores
from mlx_bert.inference.pipelines.token_classification import (
    TokenClassification,
    check_strategy,
    entities_of,
    tag_scores,
)
from mlx_bert.inference.precision import compute_dtype
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Batch, Tokenizer

Results = dict[str, list[dict[str, Any]]]
MTL_CONFIG = "mtl_config.json"  # of a SentenceTransformerMTL's folder


class MultiTask(Pipeline):
    """All tasks of a model in one pass of the encoder.

    Args:
        model: an encoder with a ``multi_task`` or ``multi_task_nlp`` head of tasks that label whole texts, or tokens.
        tokenizer: its tokenizer.
        config: the checkpoint's ``config.json``, if it has one.
        batch_size: a batch holds as many tokens as this many texts of 128.
        labels: the names of a task's classes, in the order of their ids; tasks without names have ``LABEL_0``, ....
        max_length: longer texts are cut to so many tokens; None for the tokenizer's bound.

    Raises:
        ValueError: another head, or a task that labels neither texts nor tokens.
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
            if str(head.head_type) not in TextClassification.HEADS | TokenClassification.HEADS:
                raise ValueError(
                    f"[pipeline] expected tasks that give texts labels or values, or tokens labels, but {name!r} is of "
                    f"type {head.head_type}. Call the model itself."
                )

    def prepare(self) -> None:
        self._unknown_id = self._special_id("unk_token")

    @classmethod
    def _load(cls, source: str | Path, dtype: str | mx.Dtype | None, revision: str | None) -> Self:
        folder = Path(source)
        if (folder / MTL_CONFIG).is_file():
            from mlx_bert.mtl import SentenceTransformerMTL  # it stands above: its own methods need this package

            return cls.of(SentenceTransformerMTL.from_pretrained(folder, compute_dtype(dtype, folder)))
        if not (folder / MULTIHEAD_CONFIG).is_file():
            return super()._load(source, dtype, revision)
        model, tokenizer, saved = read_multihead(folder, compute_dtype(dtype, folder))
        labels = {task: LabelMap.from_dict(names).names for task, names in saved["labels"].items()}
        return cls(model, tokenizer, labels=labels, max_length=saved["config"]["training"]["max_length"])

    @classmethod
    def of(cls, model: Any, tokenizer: Tokenizer | str | Path | None = None) -> Self:
        if hasattr(model, "from_states"):
            return SentenceTasks(model, tokenizer_of(model, tokenizer))
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
        labels: Mapping[str, Sequence[str]] | None = None,
        aggregation_strategy: str = "simple",
        ignore_labels: Sequence[str] = ("O",),
    ) -> Any:
        """Classify by every task.

        Args:
            inputs: a text, or a list or iterator of texts.
            top_k: so many labels of each task, best first; None for all. Tasks that label tokens give all entities.
            max_length: longer texts are cut to so many tokens; None for the pipeline's own ``max_length``.
            labels: names of the classes of tasks, where the model has none or others.
            aggregation_strategy, ignore_labels: of tasks that label tokens, as in
                :class:`mlx_bert.inference.pipelines.TokenClassification`.

        Returns:
            ``{task: [{"label", "score"}]}``, the best first: softmax for classes, sigmoid for labels that may hold
            together, the value itself for a regression; of tasks that label tokens ``[{"entity_group", "score",
            "word", "start", "end"}]``, in the order of the text. A list of these for several texts.

        Raises:
            ValueError: something that is no text, a ``top_k`` below 1, an unknown strategy, or names that are not as
                many as a task has classes.
        """
        check_top_k(top_k)
        check_strategy(aggregation_strategy)
        names = {**self.labels, **{task: list(own) for task, own in (labels or {}).items()}}
        run = partial(
            self._classify,
            top_k=top_k,
            max_length=max_length or self.max_length,
            names=names,
            tagging=(aggregation_strategy, frozenset(ignore_labels)),
        )
        return self._each(inputs, isinstance(inputs, str), run)

    def _classify(
        self,
        texts: list[str],
        top_k: int | None,
        max_length: int | None,
        names: Mapping[str, Sequence[str]],
        tagging: tuple[str, Collection[str]],
    ) -> list[Results]:
        runs = self._run(check_texts(texts), lambda batch, _: self._task_scores(batch), max_length=max_length)
        results = []
        for text, (rows, encoding) in zip(texts, runs, strict=True):
            found: Results = {}
            for task, row in rows.items():
                own = _Names(task, names.get(task), self._classes(task) if row.ndim == 2 else len(row))
                if row.ndim == 1:
                    order = np.argsort(-row, kind="stable")[:top_k]
                    found[task] = [{"label": own(place), "score": float(row[place])} for place in order]
                    continue
                naming = (self.tokenizer.fast, self._unknown_id, own)
                entities = entities_of(text, encoding, self._tokens(row, encoding), len(own), naming, *tagging)
                found[task] = [{**entity, "score": float(entity["score"])} for entity in entities]
            results.append(found)
        return results

    def _classes(self, task: str) -> int:
        return self.model.head.task_heads[task].config.output_size

    def _task_scores(self, batch: Batch) -> dict[str, mx.array]:
        """``{task: (B, C)}``; of tasks that label tokens ``(B, L, C)``, or ``(B, L, C + 1)`` of a CRF."""
        outputs = self.model(*batch[:2], token_type_ids=batch.token_type_ids)["head_outputs"]
        head, rows = self.model.head, len(batch.input_ids)
        if str(head.head_type) == "multi_task_nlp":
            kinds = {task: str(own.head_type) for task, own in head.task_heads.items()}
            is_tagging = {task: kind in TokenClassification.HEADS for task, kind in kinds.items()}
            return {
                task: tag_scores(each, head.task_heads[task]) if is_tagging[task] else head_scores(each, rows)
                for task, each in outputs.items()
            }
        functions = {"classification": mx.softmax, "multilabel": lambda logits, **_: mx.sigmoid(logits)}
        scores = {}
        for task, settings in head.option("task_configs").items():
            logits = outputs[f"{task}_logits"]
            scores[task] = functions[settings["type"]](logits, axis=-1) if settings["type"] in functions else logits
        return scores


class SentenceTasks(MultiTask):
    """The tasks of a :class:`mlx_bert.mtl.SentenceTransformerMTL`, which come with names.

    Args:
        model: such a model.
        tokenizer: its tokenizer.
    """

    HEADS = None

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        from mlx_bert.mtl import MAX_LENGTH

        mx.eval(model.state)  # batches may run in another thread, which cannot finish this one's work
        Pipeline.__init__(self, model, tokenizer)
        self.labels, self.max_length = model.tasks, MAX_LENGTH

    def _task_scores(self, batch: Batch) -> dict[str, mx.array]:
        outputs = self.model(*batch)
        return {task: mx.softmax(outputs[f"{task}_logits"], axis=-1) for task in self.labels}


class _Names:
    """The names of a task's classes by their ids; ``LABEL_0``, ... without any."""

    def __init__(self, task: str, names: Sequence[str] | None, classes: int) -> None:
        if names and len(names) != classes:
            raise ValueError(f"[pipeline] expected {classes} labels for {task!r} but got {len(names)}. Name them all.")
        self._names = list(names or (f"LABEL_{number}" for number in range(classes)))

    def __len__(self) -> int:
        return len(self._names)

    def __call__(self, number: int) -> str:
        return self._names[number]
