"""Text to token ids, over the ``tokenizers`` library and a folder's ``tokenizer.json``.

Dimensions: B batch, L tokens of the longest row.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

from mlx_bert.checkpoint import CONFIG, FromPretrained, read_json
from mlx_bert.encoders import ENCODERS, find_encoder

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
# Everything that transformers may look for beside tokenizer.json.
TOKENIZER_FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
)


class Batch(NamedTuple):
    """What an encoder takes.

    Attributes:
        input_ids: int32 ``(B, L)``.
        attention_mask: bool ``(B, L)``, True for real tokens; None when nothing is padded.
        token_type_ids: int32 ``(B, L)``; None when all are zero.
    """

    input_ids: mx.array
    attention_mask: mx.array | None = None
    token_type_ids: mx.array | None = None


class Tokenizer(FromPretrained):
    """A checkpoint's tokenizer. The pad id is the tokenizer's own: ``config.json`` is wrong about it in known models.

    Args:
        fast: the tokenizer of the ``tokenizers`` library.
        pad_token: the padding token.
        max_length: texts are truncated to this many tokens, special ones included, unless a call says otherwise; None
            for no truncation.
        limit: what the encoder can hold, whatever a call says; None for no bound.
        segments: whether batches have ``token_type_ids`` (where any is not zero).
        padding_side: ``"right"`` or ``"left"``.
        folder: where the files lie, for :meth:`save_pretrained`.
    """

    def __init__(
        self,
        fast: FastTokenizer,
        pad_token: str = "[PAD]",
        max_length: int | None = None,
        padding_side: str = "right",
        folder: Path | None = None,
        limit: int | None = None,
        segments: bool = True,
    ) -> None:
        pad_id = fast.token_to_id(pad_token)
        if pad_id is None:
            raise ValueError(
                f"[tokenizer] expected the padding token {pad_token!r} in the vocabulary but it is not there."
            )
        if padding_side not in ("right", "left"):
            raise ValueError(f"[tokenizer] expected padding_side 'right' or 'left' but got {padding_side!r}.")
        fast.no_padding()
        fast.no_truncation()
        self.fast = fast
        self.pad_token = pad_token
        self.pad_id = pad_id
        self.max_length = max_length
        self.limit = limit
        self.segments = segments
        self.padding_side = padding_side
        self.folder = folder
        self._truncation_lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """Read ``tokenizer.json`` and its companions from a checkpoint folder (or its ``bert/`` part).

        ``max_length`` is the smaller of the tokenizer's ``model_max_length`` and the encoder's longest row.

        Raises:
            FileNotFoundError: no ``tokenizer.json``.
            ValueError: it cannot be read, or has no padding token.
        """
        folder = Path(folder)
        if not (folder / TOKENIZER).is_file() and (folder / "bert" / TOKENIZER).is_file():
            folder = folder / "bert"
        if not (folder / TOKENIZER).is_file():
            raise FileNotFoundError(
                f"[tokenizer] {folder} has no {TOKENIZER}. "
                f"Convert the checkpoint first: python -m convert {folder} --output OUTPUT."
            )
        try:
            fast = FastTokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"[tokenizer] {folder / TOKENIZER} cannot be read: {error}.") from None
        settings = read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
        spellings = special_token(folder, "pad_token")
        pad_token = spellings[0] if spellings else (fast.padding or {}).get("pad_token")
        if pad_token is None:
            pad_token = next((token for token in ("[PAD]", "<pad>") if fast.token_to_id(token) is not None), None)
        if pad_token is None:
            raise ValueError(f"[tokenizer] {folder} names no padding token. Add pad_token to {TOKENIZER_CONFIG}.")
        limit = _longest_row(folder)
        bounds = [settings.get("model_max_length"), limit]
        bounds = [int(bound) for bound in bounds if isinstance(bound, int | float) and 0 < bound < 1_000_000]
        inputs = settings.get("model_input_names")
        if not isinstance(inputs, list):
            # transformers 5 gives no segments for a tokenizer that is saved as of no model's class
            inputs = [] if settings.get("tokenizer_class") == "TokenizersBackend" else ["token_type_ids"]
        segments = "token_type_ids" in inputs
        side = settings.get("padding_side") or "right"
        return cls(fast, pad_token, min(bounds, default=None), side, folder, limit, segments)

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int | None = None
    ) -> list[Encoding]:
        """Tokenise without padding, truncated (longest first for pairs) to ``max_length`` or the tokenizer's own.

        Never longer than the encoder can hold.

        Raises:
            ValueError: not strings, pairs of another number, or a ``max_length`` that leaves no room for text.
        """
        inputs, max_length = self._inputs(texts, pairs, max_length)
        with self._truncation_lock:
            self._truncate(max_length)
            return self.fast.encode_batch(inputs)

    def encode_windows(
        self,
        texts: Sequence[str] | Sequence[Sequence[str]],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
        stride: int = 128,
        cut_first: bool = False,
    ) -> list[list[Encoding]]:
        """Tokenise long texts as overlapping windows, without padding.

        Args:
            texts: what is cut into windows; with ``pairs`` the questions, which each window repeats whole. Without
                pairs also lists of words.
            pairs: with questions: the contexts, which are cut.
            max_length: tokens of a window at most, special ones included; None for the tokenizer's own.
            stride: tokens that a window shares with the one before, below the room that a window has for the text.
            cut_first: of pairs cut the first text, and repeat the second.

        Returns:
            The windows of each text, in order; a short text has one.

        Raises:
            ValueError: as :meth:`encode`; a negative stride, or no room for more than the stride beside the special
                tokens and the question.
        """
        words = pairs is None and len(texts) > 0 and not isinstance(texts[0], str)
        inputs, max_length = self._inputs([] if words else texts, pairs, max_length)
        room = (max_length or 2**31) - self.fast.num_special_tokens_to_add(pairs is not None)
        with self._truncation_lock:
            questions = []
            if pairs is not None:
                self._truncate(None)
                kept = list(pairs if cut_first else texts)
                questions = [len(encoding) for encoding in self.fast.encode_batch(kept, add_special_tokens=False)]
            longest = max(questions, default=0)
            if not 0 <= stride < room - longest:
                beside = f" beside question {questions.index(longest)}, which has {longest}" if questions else ""
                if room <= longest:
                    raise ValueError(
                        f"[tokenizer] expected room for text in a window of {max_length} tokens but got none{beside}. "
                        "Raise max_length, or shorten the question."
                    )
                raise ValueError(
                    f"[tokenizer] expected a stride from 0 to {room - longest - 1} but got {stride}: a window of "
                    f"{max_length} tokens has room for {room - longest} of the text{beside}. Lower the stride, raise "
                    "max_length, or shorten the question."
                )
            strategy = "only_first" if cut_first else "longest_first" if pairs is None else "only_second"
            self._truncate(max_length, stride, strategy)
            encodings = self.fast.encode_batch(list(texts) if words else inputs, is_pretokenized=words)
            return [[first, *first.overflowing] for first in encodings]

    def _inputs(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int | None
    ) -> tuple[list, int | None]:
        """Checked inputs as the library takes them, and the bound in tokens that holds."""
        if isinstance(texts, str) or isinstance(pairs, str):
            raise ValueError("[tokenizer] expected a list of strings. Wrap a single text in a list.")
        texts, pairs = list(texts), None if pairs is None else list(pairs)
        for name, given in (("texts", texts), ("pairs", pairs or ())):
            if wrong := [place for place, text in enumerate(given) if not isinstance(text, str)]:
                raise ValueError(
                    f"[tokenizer] expected a list of strings but {name}[{wrong[0]}] is {given[wrong[0]]!r:.80}. Remove "
                    "it, or make it a text."
                )
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"[tokenizer] expected {len(texts)} pairs but got {len(pairs)}. Give one for each text.")
        max_length = max_length or self.max_length
        if self.limit is not None:
            max_length = min(max_length or self.limit, self.limit)
        room = self.fast.num_special_tokens_to_add(pairs is not None)
        if max_length is not None and max_length <= room:
            raise ValueError(
                f"[tokenizer] expected max_length above {room}, the number of special tokens, but got {max_length}."
            )
        return (texts if pairs is None else list(zip(texts, pairs, strict=True))), max_length

    def _truncate(self, max_length: int | None, stride: int = 0, strategy: str = "longest_first") -> None:
        """Set the library's truncation, whose state all threads share: hold the lock."""
        if max_length is None:
            self.fast.no_truncation()
            return
        wanted = {"max_length": max_length, "stride": stride, "strategy": strategy}
        if {key: (self.fast.truncation or {}).get(key) for key in wanted} != wanted:
            self.fast.enable_truncation(**wanted)

    def pad(self, encodings: Sequence[Encoding], multiple_of: int | None = None) -> Batch:
        """Pad to the longest row, or to the next multiple (at most ``max_length``), so that shapes repeat."""
        if not encodings:
            raise ValueError("[tokenizer] expected at least one encoding to pad but got none.")
        longest = max(len(encoding) for encoding in encodings)
        if multiple_of:
            rounded = -(-longest // multiple_of) * multiple_of
            longest = max(longest, min(rounded, self.max_length or rounded))
        shape = (len(encodings), longest)
        input_ids = np.full(shape, self.pad_id, dtype=np.int32)
        attention_mask = np.zeros(shape, dtype=np.bool_)
        token_type_ids = np.zeros(shape, dtype=np.int32)
        for row, encoding in enumerate(encodings):
            length = len(encoding)
            place = slice(0, length) if self.padding_side == "right" else slice(longest - length, longest)
            input_ids[row, place] = encoding.ids
            attention_mask[row, place] = encoding.attention_mask
            token_type_ids[row, place] = encoding.type_ids
        return Batch(
            mx.array(input_ids),
            None if attention_mask.all() else mx.array(attention_mask),
            mx.array(token_type_ids) if self.segments and token_type_ids.any() else None,
        )

    def __call__(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int | None = None
    ) -> Batch:
        """Tokenise and pad in one go."""
        return self.pad(self.encode(texts, pairs, max_length))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files, as they were read, into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES if self.folder else ():
            if (self.folder / name).is_file() and self.folder.resolve() != folder.resolve():
                shutil.copyfile(self.folder / name, folder / name)
        if not (folder / TOKENIZER).is_file():
            self.fast.no_truncation()
            self.fast.save(str(folder / TOKENIZER))


def special_token(folder: Path, name: str) -> list[str]:
    """How the files of a folder spell ``"mask_token"``, ``"pad_token"``, ...: maybe not at all, or in two ways, of
    which the first counts."""
    settings, special = (
        read_json(folder / file) if (folder / file).is_file() else {} for file in (TOKENIZER_CONFIG, SPECIAL_TOKENS)
    )
    # as transformers: the second file is that of folders whose first one does not list all tokens
    parts = (settings, special) if "added_tokens_decoder" in settings else (special, settings)
    tokens = [part.get(name) for part in parts]
    spellings = [token.get("content") if isinstance(token, dict) else token for token in tokens]
    return [spelling for spelling in spellings if isinstance(spelling, str) and spelling]


def _longest_row(folder: Path) -> int | None:
    """What the encoder of the same folder can hold."""
    if not (folder / CONFIG).is_file():
        return None
    config = read_json(folder / CONFIG)
    if config.get("model_type") not in ENCODERS:
        return None
    return find_encoder(config).Config.from_dict(config).max_tokens
