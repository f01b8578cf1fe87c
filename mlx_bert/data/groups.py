"""Queries with documents to rank: rows of any usual form -> groups, and groups -> batches of single pairs.

Dimension key: P pairs of a batch, L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_bert.data.collate import IGNORE_INDEX, TEXT_KEYS, Arrays, Collator, texts_of
from mlx_bert.data.kinds import FIRST, SECOND
from mlx_bert.data.readers import Example
from mlx_bert.data.sources import records
from mlx_bert.tokenizer import Tokenizer

POSITIVES, NEGATIVES = ("positives", "positive", "pos"), ("negatives", "negative", "neg")
LABELS = ("labels", "label", "scores", "score", "relevance")
FORMS = (
    "query, documents and labels; or query, positive and negative (a text or a list each); or text, text_pair and label"
)
PAIRS_MULTIPLE = 8  # pairs of a batch are filled up to a multiple, so that few shapes are compiled


class Group(NamedTuple):
    """A query, what may answer it, and how well each does.

    Attributes:
        query: a text.
        documents: any number of texts.
        labels: a number for each.
        line: where it stood in a file, or None.
    """

    query: str
    documents: list[str]
    labels: list[Any]
    line: int | None = None


def as_groups(rows: Sequence[Example], where: str = "rows") -> list[Group]:
    """Groups of rows, each in one of the forms that ``FORMS`` lists.

    The texts may have the other names that ``mlx_bert.data.kinds`` lists, such as ``sentence1`` and ``sentence2``.
    Without labels positives get 1 and negatives 0; one label less than there are documents are a teacher's margins
    between the first and each other, as for ``"margin_mse"``. A pair is a group of one document.

    Raises:
        ValueError: no rows, a row in none of the forms, or not one label for each document.
    """
    rows = records(rows)
    if not rows:
        raise ValueError(f"[groups] expected at least one row in {where} but got none. Check the data.")
    groups = []
    for number, row in enumerate(rows):
        line = row.get("line")
        name = f"line {line}" if line else f"row {number}"
        query = next((row[name] for name in ("query", *FIRST.columns) if name in row), None)
        positives, negatives = (_texts(row, names) for names in (POSITIVES, NEGATIVES))
        if "documents" in row:
            documents, labels = list(row["documents"]), _labels(row)
        elif positives or negatives:
            documents, labels = positives + negatives, _labels(row)
            if labels is None:
                labels = [1] * len(positives) + [0] * len(negatives)
            elif len(labels) == len(documents) - 1:
                labels = [0.0, *(-margin for margin in labels)]
        else:
            pair = next((row[name] for name in SECOND.columns if name in row), None)
            documents, labels = ([] if pair is None else [pair]), _labels(row)
        if not isinstance(query, str) or not documents or not all(isinstance(text, str) for text in documents):
            raise ValueError(f"[groups] expected {FORMS} but {name} of {where} has {sorted(row)}. Name the columns so.")
        if labels is None or len(labels) != len(documents):
            got = "none" if labels is None else str(len(labels))
            raise ValueError(
                f"[groups] expected a label for each of the {len(documents)} documents in {name} of {where} "
                f"but got {got}. Complete them."
            )
        groups.append(Group(query, documents, labels, line))
    return groups


def _texts(row: Example, names: Sequence[str]) -> list[str]:
    given = next((row[name] for name in names if name in row), [])
    return [given] if isinstance(given, str) else list(given)


def _labels(row: Example) -> list[Any] | None:
    given = next((row[name] for name in LABELS if name in row), None)
    return given if given is None or isinstance(given, list) else [given] if np.ndim(given) == 0 else list(given)


def hard_negative_groups(
    queries: Sequence[str],
    corpus: Sequence[str],
    positives: Sequence[Sequence[int]],
    mined: Sequence[Sequence[Mapping[str, Any]]],
) -> list[Example]:
    """Rows to train on from what ``mine_hard_negatives`` found.

    Args:
        queries: the texts that were searched with.
        corpus: the texts that were searched in.
        positives: for each query the places of its right answers.
        mined: what ``mine_hard_negatives`` returned.

    Returns:
        ``query``, ``documents`` and ``labels`` (1 for right answers, which stand first), for each query with both.

    Raises:
        ValueError: not as many of one as of another.
    """
    if not len(queries) == len(positives) == len(mined):
        raise ValueError(
            f"[groups] expected positives and negatives for {len(queries)} queries but got {len(positives)} and "
            f"{len(mined)}. Give a list for each query."
        )
    rows = []
    for query, right, wrong in zip(queries, positives, mined, strict=True):
        documents = [corpus[place] for place in right] + [corpus[hit["corpus_id"]] for hit in wrong]
        if len(right) and wrong:
            rows.append({"query": query, "documents": documents, "labels": [1] * len(right) + [0] * len(wrong)})
    return rows


def cap_tokens(tokenizer: Tokenizer, texts: Sequence[str], limit: int | None) -> list[str]:
    """Each text up to its ``limit``-th token, special ones not counted; None for no limit."""
    if limit is None:
        return list(texts)
    if limit < 1:
        raise ValueError(f"[groups] expected a limit of at least 1 token but got {limit}. Use None for no limit.")
    different = list(dict.fromkeys(texts))
    special = tokenizer.fast.num_special_tokens_to_add(False)
    capped = {}
    for text, encoding in zip(different, tokenizer.encode(different, max_length=limit + special), strict=True):
        is_cut = bool(encoding.overflowing)
        capped[text] = text[: max(end for _, end in encoding.offsets)] if is_cut else text
    return [capped[text] for text in texts]


def tokenize_groups(
    groups: Sequence[Group], tokenizer: Tokenizer, max_length: int | None = None, max_query_length: int | None = None
) -> list[Example]:
    """Examples of pairs of ids: ``input_ids`` and ``token_type_ids`` (lists of arrays), ``labels``, ``group``.

    Args:
        groups: any number.
        tokenizer: the encoder's.
        max_length: truncate each pair to this many tokens, the longer text first; None for the tokenizer's bound.
        max_query_length: first truncate queries to this many tokens, so that they leave room for the document.
    """
    queries = cap_tokens(tokenizer, [group.query for group in groups], max_query_length)
    first = [query for query, group in zip(queries, groups, strict=True) for _ in group.documents]
    encodings = iter(tokenizer.encode(first, [text for group in groups for text in group.documents], max_length))
    examples = []
    for number, group in enumerate(groups):
        own = [next(encodings) for _ in group.documents]
        examples.append(
            {
                "input_ids": [np.array(encoding.ids, dtype=np.int32) for encoding in own],
                "token_type_ids": [np.array(encoding.type_ids, dtype=np.int32) for encoding in own],
                "labels": group.labels,
                "group": number,
                **({} if group.line is None else {"line": group.line}),
            }
        )
    return examples


class GroupCollator:
    """Batches groups of any sizes as one flat list of pairs, so that no document is padded for.

    Args:
        collate: pads and stacks pairs of ids.
    """

    def __init__(self, collate: Collator) -> None:
        self.collate = collate

    @property
    def padding_side(self) -> str:
        """Where rows are padded."""
        return self.collate.padding_side

    def texts(self, example: Example) -> list[Example]:
        """The pairs of a group, as the encoder reads them."""
        return self.collate.texts(example)

    def pad_texts(self, texts: Sequence[Example]) -> Arrays:
        """Batch single pairs, without labels."""
        return self.collate.pad_texts(texts)

    def __call__(self, examples: Sequence[Example]) -> Arrays:
        """Batch groups of :func:`tokenize_groups`, maybe with the encoder's ``hidden_states``.

        Returns:
            ``input_ids`` and the like ``(P, L)``, or ``hidden_states (P, L, D)``, P being a multiple of 8, and
            ``labels``: ``relevance (P,)`` (-100 where P was filled up), ``group_ids`` int32 ``(P,)`` and ``mask`` bool
            ``(P,)``.
        """
        pairs, labels, groups = [], [], []
        for example in examples:
            pairs += texts_of(example, (*TEXT_KEYS, "hidden_states"))
            labels += example["labels"]
            groups += [example["group"]] * len(example["input_ids"])
        real = len(pairs)
        missing = -real % PAIRS_MULTIPLE
        pairs += [{key: values[:1] for key, values in pairs[0].items()}] * missing
        relevance = np.array(labels + [IGNORE_INDEX] * missing)
        batch = self.pad_texts(pairs)
        batch["labels"] = {
            "relevance": mx.array(relevance.astype(np.float32 if relevance.dtype.kind == "f" else np.int32)),
            "group_ids": mx.array(np.array(groups + [-1] * missing, dtype=np.int32)),
            "mask": mx.array(np.arange(real + missing) < real),
        }
        return batch
