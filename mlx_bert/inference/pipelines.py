"""``pipeline(task, model)``: from text to labels, with the options and output formats of transformers' pipelines.

Dimensions: B batch, L tokens, C classes, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Encoding

from mlx_bert.checkpoint import CONFIG, float_dtype, read_json, ready_folder
from mlx_bert.core import BertCore
from mlx_bert.inference.batching import run_batches
from mlx_bert.inference.entities import STRATEGIES, find_entities
from mlx_bert.model import METADATA, BertWithHead
from mlx_bert.tokenizer import Batch, Tokenizer

FUNCTIONS = ("sigmoid", "softmax", "none")


class Pipeline:
    """A model, its tokenizer, and one way to use them.

    Args:
        model: an encoder with the task's head (or, for features, without).
        tokenizer: its tokenizer.
        config: the checkpoint's ``config.json``, for ``problem_type`` and the like.
        batch_size: a batch holds as many tokens as this many texts of 128.
    """

    def __init__(
        self,
        model: BertWithHead | BertCore,
        tokenizer: Tokenizer,
        config: Mapping[str, Any] | None = None,
        batch_size: int = 32,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = dict(config or {})
        self.batch_size = batch_size

    def _run(
        self, texts: Sequence[str], forward: Callable[[Batch], mx.array], pairs: Sequence[str] | None = None
    ) -> list[tuple[np.ndarray, Encoding]]:
        """What ``forward`` gives for each text (one row of its result), and the text's encoding."""
        results: list[Any] = [None] * len(texts)

        def call(batch: Batch, encodings: list[Encoding]) -> dict[str, Any]:
            return {"values": forward(batch).astype(mx.float32), "encodings": encodings}

        for indices, output in run_batches(texts, self.tokenizer, call, pairs=pairs, batch_size=self.batch_size):
            values = np.asarray(output["values"])
            for row, index in enumerate(indices):
                results[index] = (values[row], output["encodings"][row])
        return results

    def _tokens(self, values: np.ndarray, encoding: Encoding) -> np.ndarray:
        """Values of a text's own tokens ``(L, ...)``, padding taken off."""
        length = len(encoding)
        return values[-length:] if self.tokenizer.padding_side == "left" else values[:length]

    def _logits(self, batch: Batch) -> mx.array:
        return self.model(*batch[:2], token_type_ids=batch.token_type_ids)["logits"]

    def _label(self, index: int) -> str:
        return (self.model.id2label or {}).get(index, f"LABEL_{index}")


class TextClassification(Pipeline):
    """Labels for texts or pairs of texts."""

    def __call__(
        self,
        inputs: str | Mapping[str, str] | Sequence[str | Mapping[str, str]],
        *,
        top_k: int | str | None = "",
        function_to_apply: str | None = None,
    ) -> Any:
        """Classify.

        Args:
            inputs: a text, a pair as ``{"text": ..., "text_pair": ...}``, or a list of either.
            top_k: so many labels of each, best first; None for all. Not given: the best alone, without a list.
            function_to_apply: ``"sigmoid"``, ``"softmax"`` or ``"none"``. None: nothing for regression, sigmoid for
                several labels at a time or a single class, otherwise softmax.

        Returns:
            ``[{"label", "score"}]`` for one text; a list of dicts for several; with ``top_k`` a list of them for each.

        Raises:
            ValueError: an unknown function, or inputs that are neither texts nor pairs.
        """
        single = isinstance(inputs, str | Mapping)
        items = [inputs] if single else list(inputs)
        function = self._function() if function_to_apply is None else function_to_apply
        if function not in FUNCTIONS:
            raise ValueError(f"[pipeline] expected function_to_apply to be one of {FUNCTIONS} but got {function!r}.")
        scores: list[Any] = [None] * len(items)
        for wanted in (False, True):  # pairs are tokenised with another template than texts
            places = [
                i for i, item in enumerate(items) if (isinstance(item, Mapping) and "text_pair" in item) == wanted
            ]
            texts = [_text(items[i], "text") for i in places]
            pairs = [_text(items[i], "text_pair") for i in places] if wanted else None
            for place, (logits, _) in zip(places, self._run(texts, self._logits, pairs), strict=True):
                scores[place] = apply_function(logits, function)
        if top_k == "":
            best = [{"label": self._label(int(row.argmax())), "score": float(row.max())} for row in scores]
            return best if not single or isinstance(inputs, str) else best[0]
        rows = []
        for row in scores:
            order = np.argsort(-row, kind="stable")[:top_k]
            rows.append([{"label": self._label(int(i)), "score": float(row[i])} for i in order])
        return rows[0] if single else rows

    def _function(self) -> str:
        problem = self.config.get("problem_type")
        if problem == "regression":
            return "none"
        if problem == "multi_label_classification" or self.model.head.config.output_size == 1:
            return "sigmoid"
        return "softmax"


class TokenClassification(Pipeline):
    """Labels for tokens, words or groups of words, with their places in the text."""

    def __call__(
        self,
        inputs: str | Sequence[str],
        *,
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] = ("O",),
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Find entities.

        Args:
            inputs: one text or several.
            aggregation_strategy: ``"none"``: each token. ``"simple"``: neighbours with the same label together.
                ``"first"``, ``"average"``, ``"max"``: the same by words, a word's label being its first token's, that
                of the mean scores, or its surest token's.
            ignore_labels: left out.

        Returns:
            ``{"entity", "score", "index", "word", "start", "end"}`` for each token, or ``{"entity_group", "score",
            "word", "start", "end"}``; a list of lists for several texts.

        Raises:
            ValueError: an unknown strategy.
        """
        if aggregation_strategy not in STRATEGIES:
            raise ValueError(
                f"[pipeline] expected aggregation_strategy to be one of {', '.join(STRATEGIES)} "
                f"but got {aggregation_strategy!r}."
            )
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        results = []
        for text, (logits, encoding) in zip(texts, self._run(texts, self._logits), strict=True):
            scores = apply_function(self._tokens(logits, encoding), "softmax")
            found = find_entities(text, encoding, scores, self._label, self.tokenizer.fast, aggregation_strategy)
            results.append([e for e in found if e.get("entity", e.get("entity_group")) not in ignore_labels])
        return results[0] if isinstance(inputs, str) else results


class FillMask(Pipeline):
    """Words for masked places."""

    def __call__(
        self, inputs: str | Sequence[str], *, top_k: int = 5, targets: str | Sequence[str] | None = None
    ) -> Any:
        """Fill the mask tokens of a text.

        Args:
            inputs: one text or several, each with at least one mask token.
            top_k: so many words for each place, best first.
            targets: only these words are considered; each must be a token of the vocabulary.

        Returns:
            ``{"score", "token", "token_str", "sequence"}`` for each word; a list of lists for several masks.

        Raises:
            ValueError: a text without a mask, or a target that is no token.
        """
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        mask = next((t for t in ("[MASK]", "<mask>") if self.tokenizer.fast.token_to_id(t) is not None), None)
        if mask is None:
            raise ValueError("[pipeline] expected a tokenizer with a mask token but this one has none.")
        mask_id = self.tokenizer.fast.token_to_id(mask)
        allowed = None if targets is None else self._targets([targets] if isinstance(targets, str) else targets)
        results = []
        for text in texts:  # logits are (L, V): one text at a time keeps them small
            ((logits, encoding),) = self._run([text], self._logits)
            ids = np.array(encoding.ids)
            places = np.flatnonzero(ids == mask_id)
            if not len(places):
                raise ValueError(f"[pipeline] expected the mask token {mask} in {text!r:.60} but it is not there.")
            rows = []
            for place in places:
                scores = apply_function(self._tokens(logits, encoding)[place], "softmax")
                order = np.argsort(-scores, kind="stable") if allowed is None else allowed[np.argsort(-scores[allowed])]
                rows.append([self._filled(ids, place, int(t), scores[t], len(places) == 1) for t in order[:top_k]])
            results.append(rows[0] if len(rows) == 1 else rows)
        return results[0] if len(texts) == 1 else results

    def _filled(self, ids: np.ndarray, place: int, token: int, score: float, skip_special: bool) -> dict[str, Any]:
        fast, filled = self.tokenizer.fast, ids.copy()
        filled[place] = token
        filled = filled[filled != self.tokenizer.pad_id]  # as the reference does it, if [PAD] is the word
        return {
            "score": float(score),
            "token": token,
            "token_str": fast.decode([token], skip_special_tokens=False),
            "sequence": fast.decode(filled.tolist(), skip_special_tokens=skip_special),
        }

    def _targets(self, targets: Sequence[str]) -> np.ndarray:
        ids = [self.tokenizer.fast.token_to_id(target) for target in targets]
        if None in ids or not ids:
            lost = [target for target, token in zip(targets, ids, strict=True) if token is None]
            raise ValueError(f"[pipeline] expected targets to be tokens of the vocabulary but {lost or 'none'} are.")
        return np.unique(ids)


class FeatureExtraction(Pipeline):
    """The encoder's last hidden states."""

    def __call__(self, inputs: str | Sequence[str], *, return_arrays: bool = False) -> Any:
        """Encode.

        Args:
            inputs: one text or several.
            return_arrays: numpy arrays in place of nested lists.

        Returns:
            ``(1, L, D)`` for a text, special tokens included; a list of these for several.
        """
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        core = self.model.bert if isinstance(self.model, BertWithHead) else self.model
        forward = lambda batch: core(*batch[:2], batch.token_type_ids, compute_pooling=False).last_hidden_state  # noqa: E731
        states = [self._tokens(*result)[None] for result in self._run(texts, forward)]
        states = states if return_arrays else [each.tolist() for each in states]
        return states[0] if isinstance(inputs, str) else states


class ZeroShotClassification(Pipeline):
    """Labels that the model was never trained on, by asking a model of entailment."""

    def __call__(
        self,
        sequences: str | Sequence[str],
        candidate_labels: str | Sequence[str],
        *,
        hypothesis_template: str = "This example is {}.",
        multi_label: bool = False,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Classify.

        Args:
            sequences: one text or several.
            candidate_labels: names, or one string of names with commas between.
            hypothesis_template: what is asked of each label, ``{}`` standing for it.
            multi_label: several labels may hold: each is scored for itself, entailed against contradicted. Otherwise
                the scores of a text's labels add up to 1.

        Returns:
            ``{"sequence", "labels", "scores"}``, the likeliest label first; a list of these for several texts.

        Raises:
            ValueError: no labels, or a template without ``{}``.
        """
        texts = [sequences] if isinstance(sequences, str) else list(sequences)
        labels = candidate_labels.split(",") if isinstance(candidate_labels, str) else candidate_labels
        labels = [stripped for label in labels if (stripped := label.strip())]
        if not labels or "{}" not in hypothesis_template:
            raise ValueError(
                "[pipeline] expected candidate_labels, and a hypothesis_template with {} for the label, but got "
                f"{candidate_labels!r} and {hypothesis_template!r}."
            )
        names = {name.lower(): index for index, name in (self.model.id2label or {}).items()}
        entailment = next((index for name, index in names.items() if name.startswith("entail")), -1)
        contradiction = -1 if entailment == 0 else 0
        hypotheses = [hypothesis_template.replace("{}", label) for label in labels]
        runs = self._run([text for text in texts for _ in labels], self._logits, hypotheses * len(texts))
        logits = np.stack([row for row, _ in runs]).reshape(len(texts), len(labels), -1) if runs else []
        results = []
        for text, each in zip(texts, logits, strict=True):
            if multi_label or len(labels) == 1:
                scores = apply_function(each[:, [contradiction, entailment]], "softmax")[:, 1]
            else:
                scores = apply_function(each[:, entailment], "softmax")
            order = np.argsort(-scores, kind="stable")
            found = {"labels": [labels[i] for i in order], "scores": [float(scores[i]) for i in order]}
            results.append({"sequence": text, **found})
        return results[0] if isinstance(sequences, str) else results


PIPELINES: dict[str, type[Pipeline]] = {
    "text-classification": TextClassification,
    "sentiment-analysis": TextClassification,
    "token-classification": TokenClassification,
    "ner": TokenClassification,
    "fill-mask": FillMask,
    "zero-shot-classification": ZeroShotClassification,
    "feature-extraction": FeatureExtraction,
}


def pipeline(
    task: str,
    model: str | Path,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    batch_size: int = 32,
) -> Pipeline:
    """Load a model for a task.

    Args:
        task: one of ``PIPELINES``.
        model: a folder that we fine-tuned, a checkpoint of Hugging Face's task model, or a hub id.
        dtype: type of the weights; None as stored, but float32 on a CPU.
        revision: branch, tag or commit of a hub id.
        batch_size: a batch holds as many tokens as this many texts of 128.

    Raises:
        FileNotFoundError: no such model.
        ValueError: an unknown task, or a model without a head for it.
    """
    if task not in PIPELINES:
        raise ValueError(f"[pipeline] expected task to be one of {', '.join(PIPELINES)} but got {task!r}.")
    folder = Path(model) if (Path(model) / METADATA).is_file() else ready_folder(model, revision)
    dtype = float_dtype(dtype)
    if dtype is None and mx.default_device() == mx.Device(mx.cpu):
        dtype = mx.float32
    kind = PIPELINES[task]
    if kind is FeatureExtraction and not (folder / METADATA).is_file():
        loaded: BertWithHead | BertCore = BertCore.from_pretrained(folder, dtype)
    else:
        loaded = BertWithHead.from_pretrained(folder, dtype)
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return kind(loaded, Tokenizer.from_pretrained(folder), config, batch_size)


def apply_function(logits: np.ndarray, function: str) -> np.ndarray:
    """``"sigmoid"`` of each, ``"softmax"`` over the last axis, or ``"none"``. ``(..., C)`` in and out."""
    if function == "none":
        return logits
    if function == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _text(item: Any, key: str) -> str:
    text = item.get(key) if isinstance(item, Mapping) else item
    if not isinstance(text, str):
        raise ValueError(
            f"[pipeline] expected a text, or a pair as {{'text': ..., 'text_pair': ...}}, but got {str(item)[:60]!r}."
        )
    return text
