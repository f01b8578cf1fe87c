"""Texts for masked language modelling: cut or packed into rows, and masked anew in every epoch.

What is masked is a pure function of the seed, the epoch and the row's number, so that a resumed run repeats it.
Dimension key: B batch, L tokens, P masked places of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Encoding

from mlx_bert.data.collate import IGNORE_INDEX, Arrays
from mlx_bert.data.readers import Example
from mlx_bert.data.samplers import BatchIndices, LengthBucketSampler
from mlx_bert.tokenizer import Tokenizer

MASK_TOKENS = ("[MASK]", "<mask>")
WORD_STARTS = ("▁", "Ġ")  # SentencePiece's and byte-level BPE's mark of a space before the token
NO_WORD = -1


@dataclass(frozen=True, kw_only=True)
class Masking:
    """What is masked, and what stands there then (Devlin et al. 2019).

    Attributes:
        probability: share of the tokens that are to be predicted; special ones never are.
        whole_words: choose words and mask all of their tokens, not tokens by themselves.
        mask_share: part of them that becomes the mask token. random_share: that becomes another token, any but a
            special one. The others stay.

    Raises:
        ValueError: shares outside [0, 1], or a probability outside (0, 1).
    """

    probability: float = 0.15
    whole_words: bool = True
    mask_share: float = 0.8
    random_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ValueError(f"[masking] expected probability in (0, 1) but got {self.probability}. Correct it.")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1 + 1e-9:
            raise ValueError(
                f"[masking] expected mask_share and random_share from 0 that add up to at most 1 but got "
                f"{self.mask_share} and {self.random_share}. Correct them."
            )


def mask_token_id(tokenizer: Tokenizer) -> int:
    """The id of the mask token.

    Raises:
        ValueError: the tokenizer has none.
    """
    found = next((number for token in MASK_TOKENS if (number := tokenizer.fast.token_to_id(token)) is not None), None)
    if found is None:
        raise ValueError(
            f"[masking] expected a tokenizer with a mask token ({' or '.join(MASK_TOKENS)}) but this one has none. "
            "Take a checkpoint of a masked language model."
        )
    return found


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """The ids of all special tokens."""
    added = {number for number, token in tokenizer.fast.get_added_tokens_decoder().items() if token.special}
    return added | {tokenizer.pad_id, mask_token_id(tokenizer)} | set(tokenizer.encode([""])[0].ids)


def word_numbers(encoding: Encoding, special: set[int]) -> np.ndarray:
    """Which word each token belongs to, ``(L,)`` from 0 upwards; -1 for special tokens.

    A word is what the tokenizer split the text into before it looked for tokens, so that WordPiece's ``##`` and
    byte-level continuations belong to their word; where it splits nothing, a word starts at a space's mark.
    """
    numbers = np.full(len(encoding), NO_WORD, dtype=np.int32)
    rows = zip(encoding.ids, encoding.tokens, encoding.word_ids, encoding.special_tokens_mask, strict=True)
    count, before = 0, None
    for place, (token_id, token, word, is_special) in enumerate(rows):
        if is_special or token_id in special:
            before = None
            continue
        if word is None or word != before or token.startswith(WORD_STARTS):
            count += 1
        numbers[place], before = count - 1, word
    return numbers


def text_rows(
    texts: Sequence[str], tokenizer: Tokenizer, max_length: int | None = None, packed: bool = False
) -> list[Example]:
    """Rows of ids to be masked: ``input_ids``, ``words`` (see :func:`word_numbers`) and ``index``.

    Args:
        texts: those without a token are left out.
        tokenizer: the encoder's.
        max_length: tokens of a row, special ones included; None for the tokenizer's bound.
        packed: join all texts, with the token that ends a text between them, and cut that into full rows; otherwise
            each text is a row, and what is beyond ``max_length`` of a longer one makes further rows.

    Raises:
        ValueError: nothing to mask, or no bound to cut at.
    """
    bounds = [bound for bound in (max_length, tokenizer.max_length) if bound]
    if packed and not bounds:
        raise ValueError("[masking] expected max_length, the tokens of a packed row, but got none. Give it.")
    special = special_ids(tokenizer)
    windows = tokenizer.encode_windows(list(texts), max_length=min(bounds, default=None), stride=0)
    if packed:
        pieces = _packed(windows, special, min(bounds))
    else:
        pieces = [(np.array(one.ids, np.int32), word_numbers(one, special)) for text in windows for one in text]
    kept = [(ids, words) for ids, words in pieces if (words != NO_WORD).any()]
    if not kept:
        raise ValueError("[masking] expected texts with tokens to mask but got none. Check the data.")
    return [{"input_ids": ids, "words": words, "index": number} for number, (ids, words) in enumerate(kept)]


def _packed(
    windows: Sequence[Sequence[Encoding]], special: set[int], max_length: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and words of full rows: all texts one behind the other, between the special tokens of one."""
    stream, words, count = [], [], 0
    before: list[int] = []
    behind: list[int] = []
    for text in windows:
        inner = []
        for window in text:
            own = np.flatnonzero(np.array(window.special_tokens_mask) == 0)
            if len(own):
                before, behind = window.ids[: own[0]], window.ids[own[-1] + 1 :]
                numbers = word_numbers(window, special)[own]
                inner.append((np.array(window.ids, np.int32)[own], np.where(numbers < 0, NO_WORD, numbers + count)))
                count += int(numbers.max()) + 1
        if inner:
            stream += [np.array(behind, np.int32), *(ids for ids, _ in inner)]
            words += [np.full(len(behind), NO_WORD, np.int32), *(numbers for _, numbers in inner)]
    if not stream:
        return []
    ids, numbers = np.concatenate(stream[1:]), np.concatenate(words[1:])
    room = max_length - len(before) - len(behind)
    frame = [np.full(len(side), NO_WORD, np.int32) for side in (before, behind)]
    return [
        (
            np.concatenate([before, ids[start : start + room], behind]).astype(np.int32),
            np.concatenate([frame[0], numbers[start : start + room], frame[1]]),
        )
        for start in range(0, len(ids), room)
    ]


def choose_places(words: np.ndarray, masking: Masking, random: np.random.Generator) -> np.ndarray:
    """The places of a row to be predicted, in order: whole words, in expectation ``probability`` of the tokens.

    Args:
        words: ``(L,)``, the word of each token, -1 for those never chosen; at least one other.
        masking: how many.
        random: draws them.
    """
    own = np.flatnonzero(words != NO_WORD)
    _, group = np.unique(words[own], return_inverse=True) if masking.whole_words else (None, np.arange(len(own)))
    sizes = np.bincount(group)
    wanted = max(1, int(len(own) * masking.probability + random.random()))
    order = random.permutation(len(sizes))
    chosen, left = [], wanted
    for word in order:
        if sizes[word] <= left:
            chosen.append(word)
            left -= sizes[word]
        if not left:
            break
    return own[np.isin(group, chosen or order[:1])]


class MaskingCollator:
    """Batches of rows with places masked.

    Args:
        collate: pads and stacks rows of ids.
        tokenizer: for the mask token and the vocabulary.
        masking: what is masked.
        seed: the same seed masks the same.
        multiple: the number of places P is rounded up to a multiple of this, so that few shapes are compiled.

    Attributes:
        epoch: of the rows that are drawn next; see :class:`EpochSampler`. Rows with ``fixed`` are masked alike in all.
    """

    def __init__(
        self,
        collate: Callable[[Sequence[Example]], Arrays],
        tokenizer: Tokenizer,
        masking: Masking,
        seed: int = 42,
        multiple: int = 1,
    ) -> None:
        self.collate = collate
        self.masking = masking
        self.seed = seed
        self.multiple = multiple
        self.padding_side = tokenizer.padding_side
        self.epoch = 0
        self.mask_id = mask_token_id(tokenizer)
        special = special_ids(tokenizer)
        self.vocabulary = np.array([n for n in range(tokenizer.fast.get_vocab_size()) if n not in special], np.int32)

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have alike."""
        return {"masking": self.masking, "seed": self.seed, "mask_id": self.mask_id}

    def masked(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a row with tokens replaced ``(L,)``, and the places to be predicted."""
        epoch = 0 if example.get("fixed") else 1 + self.epoch
        random = np.random.default_rng((self.seed, epoch, example["index"]))
        ids, places = example["input_ids"].copy(), choose_places(example["words"], self.masking, random)
        draw, others = random.random(len(places)), random.choice(self.vocabulary, len(places))
        share = self.masking.mask_share
        ids[places[draw < share]] = self.mask_id
        is_random = (draw >= share) & (draw < share + self.masking.random_share)
        ids[places[is_random]] = others[is_random]
        return ids, places

    def __call__(self, examples: Sequence[Example]) -> Arrays:
        """Batch rows of :func:`text_rows`.

        Returns:
            ``input_ids`` and maybe ``attention_mask`` ``(B, L)``; ``positions`` int32 ``(B, P)``, 0 where a row has
            fewer; ``labels`` int32 ``(B, P)``, what stood there, -100 where a row has fewer.
        """
        rows = [self.masked(example) for example in examples]
        batch = self.collate([{"input_ids": ids} for ids, _ in rows])
        most = max(len(places) for _, places in rows)
        shape = (len(rows), -(-most // self.multiple) * self.multiple)
        positions, labels = np.zeros(shape, np.int32), np.full(shape, IGNORE_INDEX, np.int32)
        for row, (example, (ids, places)) in enumerate(zip(examples, rows, strict=True)):
            shift = batch["input_ids"].shape[1] - len(ids) if self.padding_side == "left" else 0
            positions[row, : len(places)] = places + shift
            labels[row, : len(places)] = example["input_ids"][places]
        return {**batch, "positions": mx.array(positions), "labels": mx.array(labels)}


class EpochSampler(LengthBucketSampler):
    """Tells a collator which epoch begins.

    Args:
        collator: its ``epoch`` is set whenever the batches of one are asked for.
        lengths, batch_size, seed: as for :class:`LengthBucketSampler`.
    """

    def __init__(self, collator: MaskingCollator, lengths: Sequence[int], batch_size: int, seed: int = 42) -> None:
        super().__init__(lengths, batch_size, seed)
        self.collator = collator

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have alike."""
        return {"batch_size": self.batch_size, "seed": self.seed}

    def batches(self, epoch: int = 0) -> list[BatchIndices]:
        """The batches of an epoch, in order, which are masked for it."""
        self.collator.epoch = epoch
        return super().batches(epoch)
