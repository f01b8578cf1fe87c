"""A checkpoint's tokenizer as ``tokenizer.json``: copied, or built from the older files."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from convert.paths import inside
from mlx_bert.checkpoint import CONFIG, read_json, write_json

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
# What older tokenizers are made from; transformers still reads these, so they are kept.
VOCABULARIES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
COMPANIONS = ("special_tokens_map.json", "added_tokens.json", "merges.txt", TOKENIZER_CONFIG)
NOT_KEPT = ("is_local", "local_files_only", "name_or_path", "tokenizer_file", "auto_map")


def write_tokenizer(source: Path, target: Path) -> str:
    """Bring the tokenizer of ``source`` to ``target``.

    Returns:
        ``"copied"``, ``"built from vocab.txt"`` (or another file), or ``"none"`` if there is none.

    Raises:
        ImportError: it must be built, and transformers or sentencepiece is not installed.
        ValueError: it cannot be built from the files.
    """
    for name in (TOKENIZER, *VOCABULARIES, *COMPANIONS):
        if inside(source, name).is_file():
            shutil.copyfile(source / name, target / name)
    if (target / TOKENIZER).is_file():
        read_fast(target / TOKENIZER)
        return "copied"
    vocabulary = next((name for name in VOCABULARIES if (target / name).is_file()), None)
    if vocabulary is None:
        return "none"
    _build(source, target, vocabulary)
    return f"built from {vocabulary}"


def read_fast(path: Path, texts: Sequence[str] = ()) -> list[list[int]]:
    """The ids of each text by a ``tokenizer.json``.

    Raises:
        ValueError: it cannot be read, or cannot encode the texts.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # plain Exception, or a panic of the Rust code, which is not even that
        raise ValueError(f"[tokenizer] {path.name} cannot be used: {str(error)[:200]}. Download it again.") from None


def _build(source: Path, target: Path, vocabulary: str) -> None:
    try:
        with _quiet():
            from transformers import AutoTokenizer
    except ImportError:
        raise _missing(vocabulary) from None
    with tempfile.TemporaryDirectory() as scratch:
        for name in (*VOCABULARIES, *COMPANIONS):
            if (target / name).is_file():
                shutil.copyfile(target / name, Path(scratch) / name)
        shutil.copyfile(inside(source, CONFIG), Path(scratch) / CONFIG)
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(scratch, trust_remote_code=False, local_files_only=True)
                built = Path(scratch) / "built"
                tokenizer.save_pretrained(built)
        except ImportError:
            raise _missing(vocabulary) from None
        except Exception as error:  # whatever the tokenizer's class makes of broken files
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise ValueError(f"[tokenizer] no {TOKENIZER} can be built from {vocabulary}: {reason}.") from None
        if not (built / TOKENIZER).is_file():
            raise _missing(vocabulary)
        shutil.copyfile(built / TOKENIZER, target / TOKENIZER)
        settings: dict[str, Any] = read_json(built / TOKENIZER_CONFIG)
        write_json(target / TOKENIZER_CONFIG, {key: settings[key] for key in settings if key not in NOT_KEPT})


def _missing(vocabulary: str) -> ImportError:
    return ImportError(
        f"[tokenizer] building {TOKENIZER} from {vocabulary} needs transformers and sentencepiece: "
        "pip install 'mlx-bert[convert]'."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers logs advice that does not concern a conversion."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
