"""From scores of tokens to entities: the rules of transformers' token classification pipeline.

Dimensions: L tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

STRATEGIES = ("none", "simple", "first", "average", "max")

Entity = dict[str, Any]


def find_entities(
    tokens: Sequence[Entity], label: Callable[[int], str], fast: FastTokenizer, strategy: str
) -> list[Entity]:
    """Entities of one text, those labelled "O" included.

    Args:
        tokens: those of :func:`tokens_of`.
        label: class id -> name.
        fast: joins tokens to words.
        strategy: one of ``STRATEGIES``.
    """
    if strategy in ("none", "simple"):
        keys = ("index", "word", "start", "end")
        entities = []
        for token in tokens:
            best = token["best"]
            entities.append({"entity": label(best), "score": token["scores"][best]} | {key: token[key] for key in keys})
    else:
        words: list[list[Entity]] = []
        for token in tokens:
            if words and token["is_subword"]:
                words[-1].append(token)
            else:
                words.append([token])
        entities = [_word(word, label, fast, strategy) for word in words]
    return entities if strategy == "none" else _groups(entities, fast)


def tokens_of(
    text: str,
    encoding: Encoding,
    scores: np.ndarray,
    fast: FastTokenizer,
    unknown_id: int | None = None,
    path: np.ndarray | None = None,
    word_starts: Sequence[int] | None = None,
) -> list[Entity]:
    """Each token but the special ones: its word, scores, label, place, and whether it continues a word.

    Args:
        text: as it was given; ``start`` and ``end`` count its characters.
        encoding: its tokens.
        scores: probabilities ``(L, C)``.
        fast: the tokenizer.
        unknown_id: of the token for what the vocabulary lacks, which is shown as it stands in the text.
        path: class ids ``(L,)``; None for the likeliest of each token.
        word_starts: where words begin in the text, if it was given as words.
    """
    prefixed = bool(getattr(fast.model, "continuing_subword_prefix", None))
    best = scores.argmax(axis=1) if path is None else path
    found = []
    for index, (token_id, (start, end)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
        if encoding.special_tokens_mask[index]:
            continue
        if word_starts is not None and (number := encoding.word_ids[index]) is not None:
            start, end = start + word_starts[number], end + word_starts[number]
        word = fast.id_to_token(token_id)
        longer = len(word) != end - start  # than it stands in the text: it carries the prefix of a continuation
        is_subword = longer if prefixed else start > 0 and " " not in text[start - 1 : start + 1]
        if token_id == unknown_id:
            word, is_subword = text[start:end], False
        found.append({"word": word, "scores": scores[index], "best": int(best[index]), "start": start, "end": end})
        found[-1] |= {"index": index, "is_subword": is_subword}
    return found


def merge_overlapping(entities: Sequence[Entity]) -> list[Entity]:
    """Of entities of several windows that overlap, the longer; of two as long, the surer."""
    merged: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        if not merged or not merged[-1]["start"] <= entity["start"] < merged[-1]["end"]:
            merged.append(entity)
        elif _rank(entity) > _rank(merged[-1]):
            merged[-1] = entity
    return merged


def _rank(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def _word(tokens: Sequence[Entity], label: Callable[[int], str], fast: FastTokenizer, strategy: str) -> Entity:
    if strategy == "average":
        scores = np.mean([token["scores"] for token in tokens], axis=0)
        best = int(scores.argmax())
    else:
        token = tokens[0] if strategy == "first" else max(tokens, key=lambda token: token["scores"][token["best"]])
        scores, best = token["scores"], token["best"]
    word = join_tokens([token["word"] for token in tokens], fast)
    return {
        "entity": label(best),
        "score": scores[best],
        "word": word,
        "start": tokens[0]["start"],
        "end": tokens[-1]["end"],
    }


def _groups(entities: Sequence[Entity], fast: FastTokenizer) -> list[Entity]:
    """Neighbours with the same tag together; ``B-`` starts anew."""
    groups: list[list[Entity]] = []
    for entity in entities:
        begins, tag = _tag(entity["entity"])
        if groups and not begins and tag == _tag(groups[-1][-1]["entity"])[1]:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": np.mean([entity["score"] for entity in group]),
            "word": join_tokens([entity["word"] for entity in group], fast),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _tag(name: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and the entity's kind."""
    return name.startswith("B-"), name[2:] if name.startswith(("B-", "I-")) else name


def join_tokens(tokens: list[str], fast: FastTokenizer) -> str:
    """Tokens to text, as the tokenizer's decoder does it."""
    return fast.decoder.decode(tokens) if fast.decoder is not None else " ".join(tokens)
