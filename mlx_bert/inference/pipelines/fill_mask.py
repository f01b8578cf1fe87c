"""Words for masked places.

Dimensions: B batch, P masked places, L tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Encoding

from mlx_bert.inference.pipelines.base import Pipeline, apply_function, check_texts, check_top_k
from mlx_bert.inference.pipelines.options import takes_options
from mlx_bert.tokenizer import Batch


class FillMask(Pipeline):
    """Words for masked places."""

    HEADS = frozenset({"text_generation"})

    def prepare(self) -> None:
        mask_id = self._special_id("mask_token")
        if mask_id is None:
            raise ValueError("[pipeline] expected a tokenizer with a mask token but this one has none.")
        self._mask_id = mask_id

    @takes_options
    def __call__(
        self,
        inputs: str | Sequence[str] | Iterator[str],
        *,
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
        truncation: bool = True,
        max_length: int | None = None,
    ) -> Any:
        """Fill the mask tokens of texts.

        Args:
            inputs: a text, or a list or iterator of texts, each with at least one mask token.
            top_k: so many words for each place, best first.
            targets: only these words are considered. A word that is no token stands for its first token.
            truncation: cut longer texts to ``max_length``; False refuses them.
            max_length: tokens, which must hold the masks; None for the tokenizer's bound.

        Returns:
            ``{"score", "token", "token_str", "sequence"}`` for each word; a list of lists for several masks. A list of
            a single text gives the text's own result.

        Raises:
            ValueError: a text without a mask, a ``top_k`` below 1, or no targets.
        """
        check_top_k(top_k)
        allowed = None if targets is None else self._targets([targets] if isinstance(targets, str) else targets)
        run = partial(self._fill, top_k=top_k, allowed=allowed, truncation=truncation, max_length=max_length)
        results = self._each(inputs, isinstance(inputs, str), run)
        return results[0] if isinstance(results, list) and isinstance(inputs, list) and len(inputs) == 1 else results

    def _fill(self, texts: list[str], top_k: int, allowed: np.ndarray | None, **cut: Any) -> list[Any]:
        mask = self.tokenizer.fast.id_to_token(self._mask_id)
        for text in check_texts(texts):
            if mask not in text:
                raise ValueError(f"[pipeline] expected the mask token {mask} in {text!r:.60} but it is not there.")
        then = partial(self._filled, top_k=top_k, allowed=allowed)
        return self._run(texts, self._masked, then=then, **cut)

    def _masked(self, batch: Batch, encodings: list[Encoding]) -> mx.array:
        """Logits ``(B, P, V)`` of the masked places alone; rows with fewer of them repeat their last."""
        rows = [self._places(encoding) for encoding in encodings]
        if not all(rows):
            raise ValueError(
                f"[pipeline] expected the mask token within the first {len(encodings[0])} tokens but a text has it "
                "behind them, where it is cut off. Shorten the text."
            )
        count, width = max(map(len, rows)), batch.input_ids.shape[1]
        left = self.tokenizer.padding_side == "left"
        starts = [width - len(encoding) if left else 0 for encoding in encodings]
        places = [
            [start + place for place in row + row[-1:] * (count - len(row))]
            for start, row in zip(starts, rows, strict=True)
        ]
        return self.model(*batch[:2], token_type_ids=batch.token_type_ids, positions=mx.array(places))["logits"]

    def _places(self, encoding: Encoding) -> list[int]:
        return [place for place, token in enumerate(encoding.ids) if token == self._mask_id]

    def _filled(self, logits: np.ndarray, encoding: Encoding, top_k: int, allowed: np.ndarray | None) -> Any:
        ids, places = np.array(encoding.ids), self._places(encoding)
        rows = []
        for place, scores in zip(places, apply_function(logits[: len(places)], "softmax"), strict=True):
            tokens = np.arange(len(scores)) if allowed is None else allowed
            if top_k < len(tokens):  # sorting a whole vocabulary takes longer than a small model
                tokens = np.sort(tokens[np.argpartition(-scores[tokens], top_k)[:top_k]])
            order = tokens[np.argsort(-scores[tokens], kind="stable")]
            rows.append([self._word(ids, place, int(token), scores[token], len(places) == 1) for token in order])
        return rows[0] if len(rows) == 1 else rows

    def _word(self, ids: np.ndarray, place: int, token: int, score: float, skip_special: bool) -> dict[str, Any]:
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
        fast, found = self.tokenizer.fast, []
        for target in check_texts(targets):
            token = fast.token_to_id(target)
            if token is None:
                pieces = fast.encode(target, add_special_tokens=False).ids
                told = f"{fast.id_to_token(pieces[0])!r} stands for it" if pieces else "it is left out"
                warnings.warn(f"[pipeline] the target {target!r} is no token of the vocabulary: {told}.", stacklevel=4)
                token = pieces[0] if pieces else None
            found += [] if token is None else [token]
        if not found:
            raise ValueError(f"[pipeline] expected targets with tokens of the vocabulary but got {list(targets)}.")
        return np.unique(found)
