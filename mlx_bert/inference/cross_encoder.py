"""``CrossEncoder``: scores for pairs of texts read together, with sentence-transformers' semantics and numbers.

Dimensions: N pairs, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np
from tokenizers import Encoding
from tqdm.auto import tqdm

from mlx_bert.checkpoint import CONFIG, FromPretrained, read_json, ready_folder
from mlx_bert.core import BertCore
from mlx_bert.data.groups import cap_tokens
from mlx_bert.inference.batching import run_batches
from mlx_bert.inference.precision import compute_dtype
from mlx_bert.inference.sentence_modules import ACTIVATIONS
from mlx_bert.inference.settings import MODEL, read_module_list
from mlx_bert.model import ENCODER_FOLDER, METADATA, BertWithHead
from mlx_bert.task_model import TaskModel
from mlx_bert.tokenizer import Batch, Tokenizer

logger = logging.getLogger("mlx_bert")

Activation = Callable[[mx.array], mx.array]
Pair = Sequence[str]
WINDOW = 4096  # pairs of an iterator in memory at a time


class CrossEncoder(FromPretrained):
    """A classifier of pairs, and what its scores go through.

    Args:
        model: an encoder with a sequence classification head.
        tokenizer: its tokenizer.
        activation_fn: what logits go through; None for sigmoid with one class and nothing with several.
        max_length: pairs are truncated to so many tokens, the longer text first; None for the tokenizer's bound.
        max_query_length: before that, the first text of each pair is truncated to so many tokens, so that a long query
            leaves room for the document; None for no such bound.

    Raises:
        ValueError: an unknown activation, or a bound below 1.
    """

    def __init__(
        self,
        model: BertWithHead,
        tokenizer: Tokenizer,
        activation_fn: str | Activation | None = None,
        max_length: int | None = None,
        max_query_length: int | None = None,
    ) -> None:
        self.model = model.eval()
        model.bert.compile_graphs()
        self.tokenizer = tokenizer
        self.num_labels = model.head.config.output_size
        self.activation_fn = (
            find_activation(activation_fn) or ACTIVATIONS["Sigmoid" if self.num_labels == 1 else "Identity"]
        )
        bounds = [bound for bound in (max_length, tokenizer.max_length) if bound]
        self.max_length = min(bounds, default=None)
        if max_query_length is not None and max_query_length < 1:
            raise ValueError(
                f"[CrossEncoder] expected max_query_length of at least 1 but got {max_query_length}. Use None for none."
            )
        self.max_query_length = max_query_length
        path = activation_path(self.activation_fn)
        if isinstance(model, TaskModel) and path is not None:
            model.add_config(sentence_transformers={"activation_fn": path})

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: str | mx.Dtype | None = None,
        revision: str | None = None,
        activation_fn: str | Activation | None = None,
        max_length: int | None = None,
        max_query_length: int | None = None,
        num_labels: int | None = None,
    ) -> Self:
        """Load a cross-encoder of sentence-transformers, any sequence classifier, or a folder that we fine-tuned.

        The activation is the one given; else the folder's own (``config_sentence_transformers.json``, then
        ``config.json``: ms-marco models ask for none); else sigmoid with one class and none with several.

        Args:
            source: folder or hub id.
            dtype: type of the encoder's weights, ``"stored"`` for as stored. None: float16 on a GPU, float32 on a CPU
                (see :func:`mlx_bert.inference.precision.compute_dtype`) and wherever there is ``num_labels``.
            revision: branch, tag or commit of a hub id.
            activation_fn, max_length, max_query_length: as in the constructor.
            num_labels: an encoder without a classifier, or with one for another number of classes, gets a new one for
                this number, to be trained with :class:`mlx_bert.training.cross_encoder.CrossEncoderTrainer`.

        Raises:
            FileNotFoundError: no such folder, or files are missing.
            ValueError: not a classifier and no ``num_labels``, or one with modules that are not supported.
        """
        folder = Path(source) if (Path(source) / METADATA).is_file() else ready_folder(source, revision)
        backbone, modules = read_module_list(folder)
        if modules and num_labels is None:
            raise ValueError(
                f"[CrossEncoder] {folder} has modules behind its Transformer that are not supported: "
                f"{', '.join(kind for kind, _ in modules)}."
            )
        if activation_fn is None:
            activation_fn = stored_activation(folder)
        if dtype is None and num_labels is not None:  # it is to be trained
            dtype = mx.float32
        model = load_classifier(backbone, compute_dtype(dtype, backbone), num_labels)
        return cls(model, Tokenizer.from_pretrained(backbone), activation_fn, max_length, max_query_length)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that :meth:`from_pretrained`, sentence-transformers and transformers load with equal scores.

        A model whose head has no equal in transformers is written as ``BertWithHead`` writes it. An activation that is
        no function of torch is not kept.
        """
        if activation_path(self.activation_fn) is None:
            logger.warning("The activation %r cannot be saved; loading will take the default.", self.activation_fn)
        self.model.save_pretrained(folder, self.tokenizer)

    def predict(
        self,
        pairs: Pair | Sequence[Pair] | Iterator[Pair],
        batch_size: int = 32,
        *,
        activation_fn: str | Activation | None = None,
        raw_scores: bool = False,
        apply_softmax: bool = False,
        convert_to_numpy: bool = True,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray | mx.array | np.float32 | Iterator[np.ndarray | mx.array | np.float32]:
        """Score pairs.

        Args:
            pairs: one pair of texts, or any number. An iterator gives an iterator over the pairs' scores, which reads
                :data:`WINDOW` pairs at a time: memory stays bounded.
            batch_size: a batch holds as many tokens as this many pairs of 128.
            activation_fn: instead of the model's, for this call.
            raw_scores: the logits, whatever the model's activation.
            apply_softmax: with several classes, make the scores of a pair add up to 1.
            convert_to_numpy: numpy, otherwise an ``mx.array``.
            show_progress_bar: None shows one when the log level is INFO or lower.

        Returns:
            ``(N,)`` float32 with one class, ``(N, C)`` with several, in the order of the pairs; for a single pair a
            number or ``(C,)``.

        Raises:
            ValueError: something that is no pair of strings, ``raw_scores`` with an activation or a softmax, or a
                ``batch_size`` below 1.
        """
        if raw_scores and (activation_fn is not None or apply_softmax):
            raise ValueError(
                "[CrossEncoder] expected raw_scores without activation_fn and apply_softmax but got both. Choose one."
            )
        if batch_size < 1:
            raise ValueError(f"[CrossEncoder] expected batch_size of at least 1 but got {batch_size}.")
        activation = ACTIVATIONS["Identity"] if raw_scores else find_activation(activation_fn) or self.activation_fn
        show = logger.isEnabledFor(logging.INFO) if show_progress_bar is None else show_progress_bar
        score = partial(self._scores, activation=activation, softmax=apply_softmax, batch_size=batch_size)
        finish = (lambda scores: scores) if convert_to_numpy else mx.array
        bar = partial(tqdm, unit="pair", desc="Scoring", disable=not show)
        if isinstance(pairs, Iterator):
            return self._stream(pairs, score, finish, bar)
        single = len(pairs) == 2 and all(isinstance(text, str) for text in pairs)
        pairs = _check_pairs([pairs] if single else pairs)
        with bar(total=len(pairs)) as progress:
            result = score(pairs, progress)
        return finish(result[0] if single else result)

    def _stream(
        self,
        pairs: Iterator[Pair],
        score: Callable[[Sequence[Pair], tqdm], np.ndarray],
        finish: Callable[[np.ndarray], Any],
        bar: Callable[[], tqdm],
    ) -> Iterator[Any]:
        """The scores of each pair of an iterator of any length."""
        numbered = enumerate(pairs)
        with bar() as progress:
            while window := list(islice(numbered, WINDOW)):
                yield from map(finish, score(_check_pairs([pair for _, pair in window], window[0][0]), progress))

    def _scores(
        self, pairs: Sequence[Pair], progress: tqdm, *, activation: Activation, softmax: bool, batch_size: int
    ) -> np.ndarray:
        """``(N,)`` with one class, ``(N, C)`` with several."""

        def forward(batch: Batch, _: list[Encoding]) -> mx.array:
            scores = activation(
                self.model(*batch[:2], token_type_ids=batch.token_type_ids)["logits"].astype(mx.float32)
            )
            return mx.softmax(scores, axis=-1, precise=True) if softmax and self.num_labels > 1 else scores

        result = np.empty((len(pairs), self.num_labels), np.float32)
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        first = cap_tokens(self.tokenizer, first, self.max_query_length)
        options = {"batch_size": batch_size, "max_length": self.max_length, "progress": progress, "model": self.model}
        for indices, scores in run_batches(first, self.tokenizer, forward, pairs=second, **options):
            result[indices] = np.asarray(scores).reshape(len(indices), -1)
        return result[:, 0] if self.num_labels == 1 else result

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        batch_size: int = 32,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Order documents by their score with a query, best first.

        Args:
            query: what is asked.
            documents: what may answer.
            top_k: keep this many; None keeps all.
            return_documents: add ``"text"``.
            options: as for :meth:`predict`.

        Returns:
            ``{"corpus_id": place in documents, "score": ...}`` for each.

        Raises:
            ValueError: the model has several classes.
        """
        if self.num_labels != 1:
            raise ValueError(
                f"[CrossEncoder] expected a model with one class to rank with but got {self.num_labels}. Use predict."
            )
        scores = self.predict([(query, document) for document in documents], batch_size, **options)
        scores = np.asarray(scores)
        results = []
        for index in np.argsort(-scores, kind="stable")[:top_k].tolist():
            results.append({"corpus_id": index, "score": float(scores[index])})
            if return_documents:
                results[-1]["text"] = documents[index]
        return results


def load_classifier(folder: Path, dtype: mx.Dtype | None = None, num_labels: int | None = None) -> BertWithHead:
    """The sequence classifier of a folder, or a new one of ``num_labels`` classes if it has none with as many."""
    names = read_json(folder / CONFIG).get("architectures") if (folder / CONFIG).is_file() else None
    is_classifier = str((names or [""])[0]).endswith("ForSequenceClassification")
    if num_labels is None or is_classifier or (folder / METADATA).is_file():
        model = TaskModel.of(BertWithHead.from_pretrained(folder, dtype))
        if num_labels in (None, model.head.config.output_size):
            return model
        core = model.bert
    else:
        core = BertCore.from_pretrained(folder, dtype)
    return TaskModel.new(core, "sequence_classification", num_labels)


def activation_path(activation: Activation) -> str | None:
    """The dotted path of torch's class for an activation, or None for a function that is none of torch's."""
    name = next((name for name, function in ACTIVATIONS.items() if function is activation), None)
    module = "linear" if name == "Identity" else "activation"
    return None if name is None else f"torch.nn.modules.{module}.{name}"


def find_activation(name: str | Activation | None) -> Activation | None:
    """A function by the name of torch's class, dotted or not; functions and None as they are.

    Raises:
        ValueError: a name that is not known.
    """
    if name is None or callable(name):
        return name
    last = name.rpartition(".")[2]
    if last not in ACTIVATIONS:
        raise ValueError(
            f"[CrossEncoder] activation_fn {name!r} is not supported. Supported: {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[last]


def stored_activation(folder: Path) -> str | None:
    """The activation that a folder asks for, or None. Code of a model's own is not run: its default counts then."""
    found = None
    if (folder / METADATA).is_file():  # a folder that we fine-tuned keeps the encoder's config apart
        folder = folder / ENCODER_FOLDER
    for place in (MODEL, CONFIG):
        config = read_json(folder / place) if (folder / place).is_file() else {}
        nested = config.get("sentence_transformers")
        own = nested.get("activation_fn") if isinstance(nested, Mapping) else None
        top = config.get("activation_fn") if place == MODEL else config.get("sbert_ce_default_activation_function")
        found = found or own or top
    if found is not None and not str(found).startswith("torch."):
        logger.warning("The activation %r is the model's own code and is not run; the default is taken.", found)
        return None
    return found


def _check_pairs(pairs: Any, start: int = 0) -> list[Pair]:
    pairs = list(pairs)
    for index, pair in enumerate(pairs, start):
        is_pair = isinstance(pair, Sequence | np.ndarray) and not isinstance(pair, str) and len(pair) == 2
        if not is_pair or not all(isinstance(text, str) for text in pair):
            raise ValueError(
                f"[CrossEncoder] expected item {index} to be a pair of strings but got {str(pair)[:60]!r}."
            )
    return pairs
