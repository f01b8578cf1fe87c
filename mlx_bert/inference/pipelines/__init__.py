"""``pipeline(task, model)``: from text to results, with the options and output formats of transformers' pipelines.

One file for each kind of task; what they share stands in ``base.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_bert.inference.pipelines.base import Pipeline
from mlx_bert.inference.pipelines.feature_extraction import FeatureExtraction
from mlx_bert.inference.pipelines.fill_mask import FillMask
from mlx_bert.inference.pipelines.multi_task import MultiTask
from mlx_bert.inference.pipelines.multiple_choice import MultipleChoice
from mlx_bert.inference.pipelines.question_answering import QuestionAnswering
from mlx_bert.inference.pipelines.sentence_similarity import SentenceSimilarity
from mlx_bert.inference.pipelines.text_classification import TextClassification, ZeroShotClassification
from mlx_bert.inference.pipelines.token_classification import TokenClassification
from mlx_bert.tokenizer import Tokenizer

PIPELINES: dict[str, type[Pipeline]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "multiple-choice": MultipleChoice,
    "fill-mask": FillMask,
    "zero-shot-classification": ZeroShotClassification,
    "feature-extraction": FeatureExtraction,
    "sentence-similarity": SentenceSimilarity,
    "multi-task": MultiTask,
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}


def pipeline(
    task: str,
    model: Any,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    batch_size: int = 32,
    tokenizer: Tokenizer | str | Path | None = None,
    **options: Any,
) -> Pipeline:
    """Load a model for a task.

        pipeline("ner", "ner-model", aggregation_strategy="simple")("Ada Lovelace lived in London.")

    ==========================  ====================================================================================
    task                        from what to what
    ==========================  ====================================================================================
    text-classification         text, or ``{"text", "text_pair"}`` -> ``[{"label", "score"}]`` (``sentiment-analysis``)
    token-classification        text or words -> ``[{"entity", "score", "index", "word", "start", "end"}]`` (``ner``)
    question-answering          ``{"question", "context"}`` -> ``{"score", "start", "end", "answer"}``
    multiple-choice             ``{"question", "choices"}`` -> ``[{"choice", "index", "score"}]``
    fill-mask                   text with ``[MASK]`` -> ``[{"score", "token", "token_str", "sequence"}]``
    zero-shot-classification    text, labels -> ``{"sequence", "labels", "scores"}``
    feature-extraction          text -> hidden states ``(1, L, D)``
    sentence-similarity         ``{"source_sentence", "sentences"}`` -> a cosine for each sentence
    multi-task                  text -> ``{task: [{"label", "score"}]}``
    ==========================  ====================================================================================

    Each takes one input, a list, or an iterator; an iterator gives an iterator, and memory stays bounded.

    Args:
        task: one of ``PIPELINES`` or ``ALIASES``.
        model: a folder that we fine-tuned, a checkpoint of Hugging Face's task model, or a hub id; or a model in
            memory, see :meth:`mlx_bert.inference.pipelines.base.Pipeline.of`.
        dtype: type of the encoder's weights, ``"stored"`` for as stored. None: float16 on a GPU, float32 on a CPU; see
            :func:`mlx_bert.inference.precision.compute_dtype`.
        revision: branch, tag or commit of a hub id.
        batch_size: a batch holds as many tokens as this many texts of 128.
        tokenizer: of a model in memory, or the folder of one; None for the one that the model brings.
        options: of the pipeline's calls, such as ``top_k``, ``aggregation_strategy`` or ``max_length``; a call's own
            come first.

    Raises:
        FileNotFoundError: no such model.
        ValueError: an unknown task or option, a model without a head for the task, a ``tokenizer`` with a folder, or
            ``dtype`` or ``revision`` with a model in memory.
    """
    name = ALIASES.get(task, task)
    if name not in PIPELINES:
        known = ", ".join([*PIPELINES, *ALIASES])
        raise ValueError(f"[pipeline] expected task to be one of {known} but got {task!r}.")
    kind = PIPELINES[name]
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise ValueError("[pipeline] expected tokenizer= with a model in memory alone: a folder has its own.")
        return kind.from_pretrained(model, dtype, revision, batch_size).set_options(**options)
    if dtype is not None or revision is not None:
        raise ValueError("[pipeline] expected dtype and revision with a folder or hub id but got a model in memory.")
    pipe = kind.of(model, tokenizer).set_options(**options)
    pipe.batch_size = batch_size
    return pipe
