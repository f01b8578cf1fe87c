"""Answers that stand in a text: the pipeline that transformers had until its version 4.

Dimensions: B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Encoding

from heads.decoding import best_spans
from mlx_bert.data.windows import CONTEXT, NO_ANSWER, text_mask
from mlx_bert.inference.batching import on_device
from mlx_bert.inference.pipelines.base import Pipeline
from mlx_bert.inference.pipelines.options import takes_options
from mlx_bert.tokenizer import Batch

Answer = dict[str, Any]

MAX_SEQ_LEN = 384  # tokens of a window, if the model can hold them
DOC_STRIDE = 128  # tokens that windows share


class QuestionAnswering(Pipeline):
    """Answers that stand in a text (transformers 4, ``pipelines/question_answering.py``)."""

    HEADS = frozenset({"question_answering"})

    @takes_options
    def __call__(
        self,
        inputs: Mapping[str, str] | Sequence[Mapping[str, str]] | Iterator[Mapping[str, str]] | str | None = None,
        context: str | Sequence[str] | None = None,
        *,
        question: str | Sequence[str] | None = None,
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        max_question_len: int = 64,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Any:
        """Answer questions.

        Contexts that are too long are read in windows. Of each window the spans with the largest products of start
        and end probability (softmax over the context and the first token) are taken; the same words found twice are
        one answer with the sum of the scores.

        Args:
            inputs: ``{"question": ..., "context": ...}`` (further keys, as SQuAD has them, do not matter), or a list or
                iterator of them; or a question, with ``context`` behind it.
            context: by name: one for each question, or one for all.
            question: by name: one or several.
            top_k: so many answers, best first; fewer if the context has no more.
            doc_stride: tokens that windows share; None for 128, half a window, or what the question leaves.
            max_answer_len: tokens of an answer at most.
            max_seq_len: tokens of a window at most, question included; None for 384, or the model's bound.
            max_question_len: longer questions are cut to so many tokens.
            handle_impossible_answer: ``""`` is an answer too, scored by the least of the windows' first tokens.
            align_to_words: widen answers to whole words; better False for languages that put no spaces between.

        Returns:
            ``{"score", "start", "end", "answer"}``, ``start`` and ``end`` counting the context's characters; a list of
            them, best first, if there are several; for several questions a list of either.

        Raises:
            ValueError: no questions or contexts, empty ones, numbers below 1, or a stride that leaves a window no room.
        """
        numbers = {"top_k": top_k, "max_answer_len": max_answer_len, "max_question_len": max_question_len}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"[pipeline] expected {name} of at least 1 but got {number}.")
        if question is not None or context is not None:
            inputs = _paired(inputs if question is None else question, context)
        if max_seq_len is None:
            max_seq_len = min(self.tokenizer.max_length or MAX_SEQ_LEN, MAX_SEQ_LEN)
        if doc_stride is not None and doc_stride > max_seq_len:
            raise ValueError(
                f"[pipeline] expected doc_stride of at most max_seq_len, {max_seq_len}, but got {doc_stride}."
            )
        run = partial(
            self._answer,
            lengths=(max_seq_len, doc_stride, max_question_len),
            spans=(max_answer_len, 2 * top_k + 10 if align_to_words else top_k),  # words may make two spans one
            choose=partial(_choose, top_k=top_k, impossible=handle_impossible_answer, align=align_to_words),
        )
        results = self._each(inputs, isinstance(inputs, str | Mapping), run)
        return results[0] if isinstance(results, list) and isinstance(inputs, list) and len(inputs) == 1 else results

    def _answer(
        self, items: list[Any], lengths: tuple[int, int | None, int], spans: tuple[int, int], choose: Any
    ) -> list[Answer | list[Answer]]:
        questions, contexts = zip(*map(_question_and_context, items), strict=True)
        windows = self._windows(questions, contexts, *lengths)
        max_answer_len, count = spans
        decode = partial(_decode, max_answer_len=max_answer_len, count=count)
        found = iter(
            self._run(
                [window for row in windows for window in row],
                self._spans,
                then=lambda logits, window: (window, *decode(self._tokens(logits, window), window)),
            )
        )
        return [choose(context, [next(found) for _ in row]) for context, row in zip(contexts, windows, strict=True)]

    def _spans(self, batch: Batch, _: Any) -> mx.array:
        """Start and end logits ``(B, L, 2)``."""
        outputs = self.model(*batch[:2], token_type_ids=batch.token_type_ids)
        return mx.stack([outputs["start_logits"], outputs["end_logits"]], axis=-1)

    def _windows(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        max_seq_len: int,
        doc_stride: int | None,
        max_question_len: int,
    ) -> list[list[Encoding]]:
        """The windows of each question and context; questions are cut behind their last token that counts."""
        room = max_seq_len - self.tokenizer.fast.num_special_tokens_to_add(True)
        places: dict[int, list[int]] = {}  # by stride: one that nobody asked for gives way to a long question
        shortened = []
        for question, encoding in zip(questions, self.tokenizer.encode(questions), strict=True):
            special = encoding.special_tokens_mask
            ends = [end for (_, end), is_special in zip(encoding.offsets, special, strict=True) if not is_special]
            usual = min(max_seq_len // 2, DOC_STRIDE, max(0, room - min(len(ends), max_question_len) - 1))
            places.setdefault(usual if doc_stride is None else doc_stride, []).append(len(shortened))
            shortened.append(question[: ends[max_question_len - 1]] if len(ends) > max_question_len else question)
        windows: list[list[Encoding]] = [[] for _ in questions]
        for stride, rows in places.items():
            pairs = [shortened[row] for row in rows], [contexts[row] for row in rows]
            for row, found in zip(rows, self.tokenizer.encode_windows(*pairs, max_seq_len, stride), strict=True):
                windows[row] = found
        return windows


def _paired(questions: Any, contexts: Any) -> Any:
    """One dict for each question."""
    if isinstance(questions, str) and isinstance(contexts, str):
        return {"question": questions, "context": contexts}
    if isinstance(questions, list | tuple) and isinstance(contexts, str):
        contexts = [contexts] * len(questions)
    if not isinstance(questions, list | tuple) or not isinstance(contexts, list | tuple):
        raise ValueError(
            "[pipeline] expected a question and its context, or lists of them, but got "
            f"{type(questions).__name__} and {type(contexts).__name__}. Give question=... and context=...."
        )
    if len(questions) != len(contexts):
        raise ValueError(
            f"[pipeline] expected a context for each of {len(questions)} questions but got {len(contexts)}. "
            "Give one for each, or one for all."
        )
    return [{"question": question, "context": text} for question, text in zip(questions, contexts, strict=True)]


def _question_and_context(item: Any) -> tuple[str, str]:
    texts = []
    for key in ("question", "context"):
        text = item.get(key) if isinstance(item, Mapping) else None
        if not isinstance(text, str) or not text:
            raise ValueError(
                f"[pipeline] expected {{'question': ..., 'context': ...}} with a {key} but got {str(item)[:60]!r}."
            )
        texts.append(text)
    return texts[0], texts[1]


def _decode(
    logits: np.ndarray, encoding: Encoding, max_answer_len: int, count: int
) -> tuple[list[tuple[int, int, float]], float]:
    """The best spans of a window as ``(first token, last token, probability)``, and the probability of no answer.

    Args:
        logits: of starts and ends, ``(L, 2)``.
        encoding: the window.
        max_answer_len: tokens of a span at most.
        count: so many spans.
    """
    in_context = text_mask(encoding, CONTEXT)
    counted = in_context.copy()
    counted[NO_ANSWER] |= bool(encoding.special_tokens_mask[NO_ANSWER])
    shares = np.where(counted[:, None], logits.astype(np.float64), -np.inf)
    log_sums = np.logaddexp.reduce(shares, axis=0) if counted.any() else np.zeros(2)
    rows = logits[None, :, 0], logits[None, :, 1], in_context[None]
    (best,) = on_device(lambda: best_spans(*map(mx.array, rows), max_answer_len, count))
    spans = [(start, end, float(np.exp(score - log_sums.sum()))) for start, end, score in best]
    return spans, float(np.exp((shares[NO_ANSWER] - log_sums).sum()))


def _choose(
    context: str,
    windows: Sequence[tuple[Encoding, list[tuple[int, int, float]], float]],
    top_k: int,
    impossible: bool,
    align: bool,
) -> Answer | list[Answer]:
    """The best answers of all windows of a context."""
    answers: dict[str, Answer] = {}
    for encoding, spans, _ in windows:
        for first, last, score in spans:
            start, end = _characters(encoding, first, last, align)
            words = context[start:end]
            answer = answers.setdefault(words.lower(), {"score": 0.0, "start": start, "end": end, "answer": words})
            answer["score"] += score
    found = list(answers.values())
    if impossible or not found:
        none = min(score for *_, score in windows) if impossible else 0.0
        found.append({"score": none, "start": 0, "end": 0, "answer": ""})
    found = sorted(found, key=lambda answer: -answer["score"])[:top_k]
    return found[0] if len(found) == 1 else found


def _characters(encoding: Encoding, first: int, last: int, align: bool) -> tuple[int, int]:
    """Where a span of tokens stands in the context; with ``align`` the words that it touches."""
    if align:
        words = encoding.token_to_word(first), encoding.token_to_word(last)
        return encoding.word_to_chars(words[0], CONTEXT)[0], encoding.word_to_chars(words[1], CONTEXT)[1]
    return encoding.offsets[first][0], encoding.offsets[last][1]
