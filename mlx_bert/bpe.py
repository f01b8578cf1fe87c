"""Byte-level BPE to be trained on one's own text, over the ``tokenizers`` library.

    tokenizer = ByteLevelBPE.train_from_files("corpus.txt", vocab_size=1000)
    tokenizer.decode(tokenizer.encode("Any text, 中文 or 😀")) == "Any text, 中文 or 😀"

Ids: the bytes 0 to 255, then one per merge in the order of training, then padding (V - 2) and the first token (V - 1).
Text is first cut into pieces of letters, digits, signs or white space, and merges stay inside pieces; a word has no
space glued to it, so pieces and words begin at the same places (as labels of words need).

Dimensions: B batch, L tokens of the longest row, V vocabulary.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mlx_bert.checkpoint import read_json, write_json
from mlx_bert.tokenizer import TOKENIZER, TOKENIZER_CONFIG, Batch

logger = logging.getLogger(__name__)

PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+|\s+"
BYTES = 256
SPECIAL = 2  # padding and the first token
VOCAB_SIZE = 1000
MAX_LENGTH = 512
FILE = "bpe_merged.json"
PAD, CLS = "[PAD]", "[CLS]"
CHUNK = 1 << 20  # characters read from a corpus at a time
_PAIR = re.compile(r"\(\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\)")

Merges = Sequence[tuple[int, int]]


def byte_letters() -> list[str]:
    """The letter by which the library writes each byte: itself where printable, else one from 256 on (as in GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = iter(range(BYTES, 2 * BYTES))
    return [chr(byte) if byte in printable else chr(next(rest)) for byte in range(BYTES)]


class ByteLevelBPE:
    """Text to ids and back, without loss for any text.

    Args:
        merges: pairs of ids in the order of training; the pair number n makes the id 256 + n.

    Attributes:
        merges: the same.
        vocab_size: V.
        pad_id, cls_id: V - 2 and V - 1.

    Raises:
        ValueError: a pair of ids that are not there yet, or two pairs that make the same bytes.
    """

    def __init__(self, merges: Merges) -> None:
        self.merges = [(int(first), int(second)) for first, second in merges]
        self.vocab_size = BYTES + len(self.merges) + SPECIAL
        self.pad_id, self.cls_id = self.vocab_size - 2, self.vocab_size - 1
        self._bytes = [bytes([byte]) for byte in range(BYTES)]
        letters = byte_letters()
        names = list(letters)
        for first, second in self.merges:
            new = len(names)
            if not (0 <= first < new and 0 <= second < new):
                raise ValueError(
                    f"[bpe] expected id {new} to join two smaller ids but got {(first, second)}. Is the file whole?"
                )
            names.append(names[first] + names[second])
            self._bytes.append(self._bytes[first] + self._bytes[second])
        vocabulary = {name: number for number, name in enumerate(names)}
        if len(vocabulary) < len(names):
            twice = next(number for number, name in enumerate(names) if vocabulary[name] != number)
            raise ValueError(
                f"[bpe] expected each id to stand for other bytes but got {self._bytes[twice]!r} twice "
                f"(ids {twice} and {vocabulary[names[twice]]}). Train it again."
            )
        pairs = [(names[first], names[second]) for first, second in self.merges]
        self._fast = Tokenizer(models.BPE(vocabulary, pairs))
        self._fast.pre_tokenizer = _pre_tokenizer()

    # --- training and files -------------------------------------------------------------------------------------------

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = VOCAB_SIZE, progress: bool = False) -> Self:
        """Learn merges: again and again the most frequent pair of neighbours becomes a new id.

        Args:
            texts: any number; no piece reaches over their borders.
            vocab_size: V; text that is too short for it gives a smaller one, with a warning.
            progress: show a progress bar.

        Raises:
            ValueError: V leaves no room for the bytes and the two special ids, or something that is not texts.
        """
        if isinstance(texts, str):
            raise ValueError("[bpe] expected several texts but got a single one. Wrap it in a list.")
        if vocab_size < BYTES + SPECIAL:
            raise ValueError(f"[bpe] expected vocab_size of at least {BYTES + SPECIAL} but got {vocab_size}.")
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = _pre_tokenizer()
        letters = byte_letters()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - SPECIAL, initial_alphabet=letters, show_progress=progress, min_frequency=1
        )
        learner.train_from_iterator(map(_checked, texts), trainer)
        ids = {letter: byte for byte, letter in enumerate(letters)}
        merges = []
        for pair in json.loads(learner.to_str())["model"]["merges"]:
            first, second = pair.split(" ") if isinstance(pair, str) else pair
            merges.append((ids[first], ids[second]))
            ids[first + second] = BYTES + len(merges) - 1
        trained = cls(merges)
        if trained.vocab_size < vocab_size:
            logger.warning("[bpe] the text has pairs for %d ids only, not %d.", trained.vocab_size, vocab_size)
        return trained

    @classmethod
    def train_from_files(
        cls, paths: str | Path | Sequence[str | Path], vocab_size: int = VOCAB_SIZE, progress: bool = False
    ) -> Self:
        """Learn merges from UTF-8 text files of any size, read in parts that cut no piece.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not UTF-8, or too small a ``vocab_size``.
        """
        paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        if missing := [str(path) for path in paths if not path.is_file()]:
            raise FileNotFoundError(f"[bpe] {', '.join(missing)} does not exist. Give text files.")
        return cls.train((part for path in paths for part in read_parts(path)), vocab_size, progress)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read ``bpe_merged.json`` (or a folder with it): ``{"(a,b)": id}`` with the ids 256, 257, ...

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is not of that form.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        by_id: dict[int, tuple[int, int]] = {}
        for key, number in read_json(path).items():
            found = _PAIR.fullmatch(key.strip())
            if not found or isinstance(number, bool) or not isinstance(number, int) or number in by_id:
                raise ValueError(
                    f'[bpe] expected entries "(a,b)": id, each id once, in {path} but got {key!r}: {number!r}.'
                )
            by_id[number] = int(found[1]), int(found[2])
        if sorted(by_id) != list(range(BYTES, BYTES + len(by_id))):
            raise ValueError(f"[bpe] expected the ids {BYTES} to {BYTES + len(by_id) - 1} in {path} but got others.")
        return cls([by_id[number] for number in sorted(by_id)])

    def save(self, path: str | Path) -> None:
        """Write ``bpe_merged.json``, as :meth:`from_file` reads it."""
        write_json(path, {f"({first},{second})": BYTES + n for n, (first, second) in enumerate(self.merges)})

    def save_pretrained(self, folder: str | Path, max_length: int = MAX_LENGTH) -> None:
        """Write ``bpe_merged.json``, and ``tokenizer.json`` for ``mlx_bert.Tokenizer`` and transformers.

        There a literal ``[CLS]`` or ``[PAD]`` in a text becomes the special id; here it stays text.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.save(folder / FILE)
        whole = Tokenizer.from_str(self._fast.to_str())
        whole.add_special_tokens([PAD, CLS])
        whole.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A", pair=f"{CLS} $A $B:1", special_tokens=[(CLS, self.cls_id)]
        )
        whole.decoder = decoders.ByteLevel()
        whole.save(str(folder / TOKENIZER))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD, "cls_token": CLS}
        write_json(folder / TOKENIZER_CONFIG, {**settings, "model_max_length": max_length})

    # --- text to ids and back -----------------------------------------------------------------------------------------

    def pieces(self, text: str) -> list[tuple[str, int, int]]:
        """The pieces of a text with their first and last + 1 character; together they are the text."""
        return [(piece, *span) for piece, span in _SPLIT.pre_tokenize_str(_checked(text))]

    def encode(self, text: str) -> list[list[int]]:
        """The ids of each piece of a text, without special ones."""
        encoding = self._fast.encode(_checked(text))
        pairs = zip(encoding.word_ids, encoding.ids, strict=True)
        return [[number for _, number in group] for _, group in groupby(pairs, key=lambda pair: pair[0])]

    def decode(self, ids: Iterable[int] | Iterable[Sequence[int]]) -> str:
        """The text of ids, flat or in pieces; special ids say nothing. Bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: an id that is not there.
        """
        flat = [int(n) for item in ids for n in (item if isinstance(item, Sequence) else [item])]
        if wrong := [number for number in flat if not 0 <= number < self.vocab_size]:
            raise ValueError(f"[bpe] expected ids from 0 to {self.vocab_size - 1} but got {wrong[0]}.")
        return b"".join(self._bytes[n] for n in flat if n < self.pad_id).decode("utf-8", errors="replace")

    def tokenize(self, text: str, max_length: int = MAX_LENGTH) -> list[int]:
        """The first token's id and the ids of a text, at most ``max_length`` of them.

        Raises:
            ValueError: ``max_length`` below 1, or not a text.
        """
        return self._rows([text], max_length)[0]

    def batch_encode(self, texts: Sequence[str], max_length: int = MAX_LENGTH) -> Batch:
        """:meth:`tokenize` of several texts, padded on the right to the longest.

        Returns:
            ``input_ids`` int32 ``(B, L)``; ``attention_mask`` bool ``(B, L)``, None when nothing is padded.

        Raises:
            ValueError: no texts, not texts, or ``max_length`` below 1.
        """
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"[bpe] expected a list of at least one text but got {texts!r}. Wrap a text in a list.")
        rows = self._rows(texts, max_length)
        lengths = np.array([len(row) for row in rows])
        ids = np.full((len(rows), lengths.max()), self.pad_id, dtype=np.int32)
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids[mask] = np.concatenate(rows)
        return Batch(mx.array(ids), None if mask.all() else mx.array(mask))

    def _rows(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        if max_length < 1:
            raise ValueError(f"[bpe] expected max_length of at least 1 but got {max_length}.")
        encodings = self._fast.encode_batch_fast([_checked(text) for text in texts])
        return [[self.cls_id, *encoding.ids[: max_length - 1]] for encoding in encodings]


_SPLIT = pre_tokenizers.Split(Regex(PATTERN), "isolated")


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([_SPLIT, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _checked(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"[bpe] expected a text but got {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"[bpe] expected Unicode text but got a lone surrogate at {error.start}. Remove it.") from None
    return text


def read_parts(path: str | Path, size: int = CHUNK) -> Iterator[str]:
    """A UTF-8 file in parts of about ``size`` characters that together are the file; no piece reaches over a border.

    Raises:
        ValueError: not UTF-8.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            kept: list[str] = []  # read, and without a place to cut
            while chunk := file.read(size):
                last = kept[-1][-1:] if kept else ""
                text = last + chunk
                # white space and what stands before it are never one piece
                cut = next((at for at in range(len(text) - 1, 0, -1) if _ends_before(text, at)), 0)
                if cut:
                    yield "".join(kept) + chunk[: cut - len(last)]
                    kept, chunk = [], chunk[cut - len(last) :]
                kept.append(chunk)
            if kept:
                yield "".join(kept)
    except UnicodeDecodeError as error:
        raise ValueError(f"[bpe] {path} is not UTF-8 ({error}). Convert it first.") from None


def _ends_before(text: str, at: int) -> bool:
    # str.isspace() counts four control characters that the pattern takes for signs
    return text[at].isspace() and text[at] not in "\x1c\x1d\x1e\x1f" and not text[at - 1].isspace()
