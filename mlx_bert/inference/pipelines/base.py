"""``Pipeline``: what all pipelines share, from one text or a stream of them to results.

Dimensions: B batch, L tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from tokenizers import Encoding

from mlx_bert.checkpoint import CONFIG, FromPretrained, read_json, ready_folder
from mlx_bert.core import BertCore
from mlx_bert.inference.batching import run_batches
from mlx_bert.inference.pipelines.options import checked_options
from mlx_bert.inference.precision import compute_dtype
from mlx_bert.model import METADATA, BertWithHead
from mlx_bert.tokenizer import Batch, Tokenizer, special_token

SPELLINGS = {"mask_token": ("[MASK]", "<mask>"), "unk_token": ("[UNK]", "<unk>")}
READ_AHEAD = 8  # batches of inputs that a pipeline takes from an iterator before it gives the first result


class Pipeline(FromPretrained):
    """A model, its tokenizer, and one way to use them.

    Options of a call may be given when the pipeline is made, too (``pipeline(task, model, top_k=3)``); a call's own
    come first. All calls take ``batch_size``, and ``tokenizer_kwargs`` with ``truncation`` and ``max_length``.

    Every pipeline takes one input, a list, or an iterator. An iterator gives an iterator: results come in the order
    of the inputs, and ``READ_AHEAD`` batches are in memory at a time.

    Args:
        model: an encoder with the task's head (or, for features, without).
        tokenizer: its tokenizer.
        config: the checkpoint's ``config.json``, for ``problem_type`` and the like; none for a folder of ours.
        batch_size: a batch holds as many tokens as this many texts of 128.

    Raises:
        ValueError: the model's head is for another task.
    """

    options: Mapping[str, Any] = MappingProxyType({})
    """Those of calls, set once for all; see :meth:`set_options`."""

    HEADS: ClassVar[frozenset[str] | None] = None
    """The types of heads that the pipeline reads; None for any, or none at all."""

    def __init__(
        self,
        model: BertWithHead | BertCore,
        tokenizer: Tokenizer,
        config: Mapping[str, Any] | None = None,
        batch_size: int = 32,
    ) -> None:
        if self.HEADS is not None:
            kind = str(model.head.config.head_type) if isinstance(model, BertWithHead) else "no head"
            if kind not in self.HEADS:
                raise ValueError(
                    f"[pipeline] expected a head of type {' or '.join(sorted(self.HEADS))} for "
                    f"{type(self).__name__} but got {kind}. Choose the pipeline of that task."
                )
        self.model = model.eval()
        getattr(model, "bert", model).compile_graphs()
        self.tokenizer = tokenizer
        self.config = dict(config or {})
        self.batch_size = batch_size
        self.prepare()

    def prepare(self) -> None:
        """What a pipeline looks up once."""

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: str | mx.Dtype | None = None,
        revision: str | None = None,
        batch_size: int = 32,
    ) -> Self:
        """Load a folder that we fine-tuned, a checkpoint of Hugging Face's task model, or a hub id.

        Features and similarity take any encoder's folder too, several tasks a folder of
        :class:`mlx_bert.multihead.MultiheadClassifier`.

        Args:
            source: folder or hub id.
            dtype: type of the encoder's weights, ``"stored"`` for as stored. None: float16 on a GPU, float32 on a CPU;
                see :func:`mlx_bert.inference.precision.compute_dtype`.
            revision: branch, tag or commit of a hub id.
            batch_size: as in the constructor.

        Raises:
            FileNotFoundError: no such model.
            ValueError: a model without a head for the task.
        """
        pipeline = cls._load(source, dtype, revision)
        pipeline.batch_size = batch_size
        return pipeline

    @classmethod
    def of(cls, model: Any, tokenizer: Tokenizer | str | Path | None = None) -> Self:
        """A pipeline over a model in memory.

        Args:
            model: a ``BertWithHead`` (a ``BertCore`` for features), or what holds one and its tokenizer: a
                ``TextPredictor``, ``CrossEncoder`` or ``SentenceEncoder``; for several tasks a ``MultiheadClassifier``.
            tokenizer: its tokenizer, or the folder of one; None for the one that the model brings.

        Raises:
            ValueError: another model, one for another task, or no tokenizer.
        """
        return cls(model_in(model), tokenizer_of(model, tokenizer))

    def set_options(self, **options: Any) -> Self:
        """Options for every call that does not give its own, those of the call itself: ``top_k``, ``max_length``, ....

        Raises:
            ValueError: one that the pipeline does not have.
        """
        self.options = checked_options(self, options, type(self).__call__.option_names)
        return self

    @classmethod
    def _load(cls, source: str | Path, dtype: str | mx.Dtype | None, revision: str | None) -> Self:
        folder = Path(source) if (Path(source) / METADATA).is_file() else ready_folder(source, revision)
        config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        model = cls._load_model(folder, compute_dtype(dtype, folder))
        return cls(model, Tokenizer.from_pretrained(folder), config)

    @classmethod
    def _load_model(cls, folder: Path, dtype: mx.Dtype | None) -> BertWithHead | BertCore:
        return BertWithHead.from_pretrained(folder, dtype)

    def _each(self, inputs: Any, is_one: bool, run: Callable[[list[Any]], Iterable[Any]]) -> Any:
        """The result of one input; of a list, a list; of an iterator, an iterator that reads some inputs ahead."""
        if self.batch_size < 1:
            raise ValueError(f"[pipeline] expected batch_size of at least 1 but got {self.batch_size}.")
        if is_one:
            return next(iter(run([inputs])))
        if not isinstance(inputs, Iterable) or isinstance(inputs, Mapping):
            raise ValueError(
                f"[pipeline] expected a text, a list or an iterator but got {type(inputs).__name__}. Give texts."
            )
        if isinstance(inputs, Iterator):
            chunk = self.batch_size * READ_AHEAD
            return chain.from_iterable(map(run, iter(lambda: list(islice(inputs, chunk)), [])))
        items = list(inputs)
        return list(run(items)) if items else []

    def _run(
        self,
        texts: Sequence[str] | Sequence[Encoding],
        forward: Callable[[Batch, list[Encoding]], mx.array | dict[str, mx.array]],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
        truncation: bool = True,
        then: Callable[[np.ndarray, Encoding], Any] = lambda *result: result,
    ) -> list[Any]:
        """What ``forward`` gives for each text (one row of its result) and the text's encoding, or ``then`` of both.

        Args:
            texts: or what the tokenizer made of them already, such as windows of long texts.
            forward: a batch and its encodings to ``(B, ...)``, or to a dict of such arrays.
            pairs: the second text of each.
            max_length: longer texts are cut to so many tokens; None for the tokenizer's bound.
            truncation: False refuses longer texts.
            then: makes the result of them, as soon as they are there.
        """
        results: list[Any] = [None] * len(texts)
        encoded = len(texts) > 0 and isinstance(texts[0], Encoding)
        tokenizer = _Encoded(self.tokenizer) if encoded else self.tokenizer

        def call(batch: Batch, encodings: list[Encoding]) -> dict[str, Any]:
            if not truncation and any(encoding.overflowing for encoding in encodings):
                raise ValueError(
                    f"[pipeline] expected texts of at most {len(encodings[0])} tokens but got a longer one. "
                    "Allow truncation, or cut the text."
                )
            values = tree_map(lambda array: array.astype(mx.float32), forward(batch, encodings))
            return {"values": values, "encodings": encodings}

        settings = {"pairs": pairs, "batch_size": self.batch_size, "max_length": max_length, "model": self.model}
        for indices, output in run_batches(texts, tokenizer, call, **settings):
            values = tree_map(np.asarray, output["values"])
            for row, index in enumerate(indices):
                own = tree_map(lambda array, row=row: array[row], values)
                results[index] = then(own, output["encodings"][row])
        return results

    def _tokens(self, values: np.ndarray, encoding: Encoding) -> np.ndarray:
        """Values of a text's own tokens ``(L, ...)``, padding taken off."""
        length = len(encoding)
        return values[-length:] if self.tokenizer.padding_side == "left" else values[:length]

    def _logits(self, batch: Batch, _: Any = None) -> mx.array:
        return self.model(*batch[:2], token_type_ids=batch.token_type_ids)["logits"]

    def _special_id(self, name: str) -> int | None:
        """The id of ``"mask_token"``, ``"unk_token"``, ... as the tokenizer's files name it; None without one."""
        folder = self.tokenizer.folder
        spellings = [*(special_token(folder, name) if folder is not None else ()), *SPELLINGS.get(name, ())]
        ids = map(self.tokenizer.fast.token_to_id, spellings)
        return next((number for number in ids if number is not None), None)

    def _label(self, index: int) -> str:
        return (self.model.id2label or {}).get(index, f"LABEL_{index}")


class _Encoded:
    """Stands for the tokenizer in the engine where texts are tokenised already."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.pad = tokenizer.pad

    def encode(self, encodings: list[Encoding], pairs: None, max_length: None) -> list[Encoding]:
        return encodings


def model_in(model: Any) -> BertWithHead | BertCore:
    """The encoder, with its head if it has one, of whatever holds it.

    Raises:
        ValueError: something else.
    """
    kinds = (BertWithHead, BertCore)
    for part in ("model", "core"):
        if isinstance(held := getattr(model, part, None), kinds) and not isinstance(model, kinds):
            return held
    if not isinstance(model, kinds):
        raise ValueError(
            "[pipeline] expected a folder, a hub id, or a model such as BertWithHead, SentenceEncoder or CrossEncoder "
            f"but got {type(model).__name__}."
        )
    return model


def tokenizer_of(model: Any, tokenizer: Tokenizer | str | Path | None) -> Tokenizer:
    """The tokenizer given, or that of a folder, or the model's own.

    Raises:
        ValueError: none of them.
    """
    if isinstance(tokenizer, str | Path):
        return Tokenizer.from_pretrained(tokenizer)
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(
            f"[pipeline] expected tokenizer= with a {type(model).__name__} in memory but got "
            f"{type(tokenizer).__name__}. Give a mlx_bert.Tokenizer, or a folder that has one."
        )
    return tokenizer


def apply_function(logits: np.ndarray, function: str) -> np.ndarray:
    """``"sigmoid"`` of each, ``"softmax"`` over the last axis, or ``"none"``. ``(..., C)`` in and out."""
    if function == "none":
        return logits
    if function == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def check_top_k(top_k: Any) -> None:
    """Raise ValueError for a number below 1."""
    if isinstance(top_k, int) and top_k < 1:
        raise ValueError(f"[pipeline] expected top_k of at least 1 but got {top_k}.")


def check_texts(texts: Sequence[Any]) -> Sequence[str]:
    """The texts.

    Raises:
        ValueError: one of them is no string.
    """
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"[pipeline] expected a text but got {str(text)[:60]!r}. Give strings.")
    return texts
