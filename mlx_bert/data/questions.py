"""Questions over contexts: windows to train on, and the measure of SQuAD. Dimension: L tokens of a window."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mlx_bert.data.kinds import Example
from mlx_bert.data.windows import answer_targets
from mlx_bert.tokenizer import Tokenizer

WINDOW, STRIDE = 384, 128  # of the reference (Devlin et al. 2019, run_squad.py)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def question_windows(
    rows: Sequence[Example],
    tokenizer: Tokenizer,
    max_length: int | None = None,
    stride: int | None = None,
    keep: bool = False,
) -> list[Example]:
    """Windows over the contexts of questions, ready to train on.

    Args:
        rows: ``question``, ``context`` and maybe ``answers``, of which the first is learnt.
        tokenizer: the encoder's.
        max_length: tokens of a window; None for 384 or what the encoder holds.
        stride: tokens that windows share; None for 128, or a third of a window.
        keep: also ``encoding`` and the row itself as ``source``, which measuring needs.

    Returns:
        For each window ``input_ids`` and ``token_type_ids`` int32 ``(L,)``, ``row`` (the number of its question),
        ``line`` if known, and ``labels`` {start_positions, end_positions}: first and last token of the answer, both 0
        (the first token) in windows without it.

    Raises:
        ValueError: a question that leaves a window no room for its context.
    """
    length, overlap = window_sizes(tokenizer, max_length, stride)
    questions, contexts = [row["question"] for row in rows], [row["context"] for row in rows]
    examples = []
    if not rows:
        return examples
    for number, (row, windows) in enumerate(
        zip(rows, tokenizer.encode_windows(questions, contexts, length, overlap), strict=True)
    ):
        answers = row.get("answers", {"text": [], "answer_start": []})
        begin = answers["answer_start"][0] if answers["text"] else 0
        end = begin + len(answers["text"][0]) if answers["text"] else 0
        for window in windows:
            first, last = answer_targets(window, begin, end)
            examples.append(
                {
                    "input_ids": np.array(window.ids, dtype=np.int32),
                    "token_type_ids": np.array(window.type_ids, dtype=np.int32),
                    "labels": {"start_positions": first, "end_positions": last},
                    "row": number,
                    **{name: row[name] for name in ("line", "weight") if name in row},
                    **({"encoding": window, "source": row} if keep else {}),
                }
            )
    return examples


def window_sizes(tokenizer: Tokenizer, max_length: int | None, stride: int | None) -> tuple[int, int]:
    """Tokens of a window and those that windows share: as given, else 384 and 128, or what the encoder holds."""
    length = max_length or min(WINDOW, tokenizer.max_length or WINDOW)
    return length, min(STRIDE, length // 3) if stride is None else stride


def normalize_answer(text: str) -> str:
    """Lower case without punctuation, articles and extra white space, as SQuAD compares answers."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_f1(predicted: str, wanted: str) -> float:
    """The overlap in words of two answers; 1 for two empty ones."""
    found, right = normalize_answer(predicted).split(), normalize_answer(wanted).split()
    if not found or not right:
        return float(found == right)
    same = sum((Counter(found) & Counter(right)).values())
    return 2 * same / (len(found) + len(right))


def answer_metrics(predicted: Sequence[str], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
    """``exact_match`` and ``f1`` from 0 to 1, the best over a question's right answers (Rajpurkar et al. 2016, 2018).

    Args:
        predicted: an answer for each question; empty for "no answer".
        wanted: the right answers of each; none where there is no answer.

    Returns:
        Where some questions have no answer also ``answerable_f1`` and ``unanswerable_accuracy``.
    """
    if len(predicted) != len(wanted) or not predicted:
        raise ValueError(
            f"[questions] expected an answer to each of {len(wanted)} questions, at least one, but got "
            f"{len(predicted)}. Give an empty text for no answer."
        )
    exact, overlap = np.zeros(len(predicted)), np.zeros(len(predicted))
    for number, (found, right) in enumerate(zip(predicted, wanted, strict=True)):
        choices = [answer for answer in right if normalize_answer(answer)] or [""]
        exact[number] = max(normalize_answer(found) == normalize_answer(answer) for answer in choices)
        overlap[number] = max(answer_f1(found, answer) for answer in choices)
    metrics = {"exact_match": float(exact.mean()), "f1": float(overlap.mean())}
    impossible = np.array([not right for right in wanted])
    if impossible.any():
        metrics["unanswerable_accuracy"] = float(exact[impossible].mean())
        if not impossible.all():
            metrics["answerable_f1"] = float(overlap[~impossible].mean())
    return metrics
