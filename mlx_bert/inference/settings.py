"""The configs of a sentence-transformers folder: ``modules.json``, lengths, prompts, similarity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mlx_bert.checkpoint import read_json

MODULES = "modules.json"
MODEL = "config_sentence_transformers.json"
LENGTHS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """What a folder says about using the model.

    Attributes:
        max_seq_length: texts are truncated to so many tokens; None for the tokenizer's and the encoder's bound.
        do_lower_case: lower-case every text first, whatever the tokenizer does.
        prompts: name -> what goes before a text.
        default_prompt_name: the prompt used when none is asked for.
        similarity_fn_name: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``.
        truncate_dim: keep so many values of each embedding; None keeps all.
    """

    max_seq_length: int | None = None
    do_lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"
    truncate_dim: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_seq_length", "truncate_dim"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"[SentenceEncoder] expected {name} to be a positive integer or null but got {value!r}."
                )


def read_settings(folder: Path, backbone: Path, overrides: Mapping[str, Any] | None = None) -> EncoderSettings:
    """Settings of a folder; its encoder may lie in a folder of its own (``0_Transformer``).

    Raises:
        ValueError: an override that does not exist, or a value that does not fit.
    """
    known = [entry.name for entry in fields(EncoderSettings)]
    if unknown := [name for name in overrides or {} if name not in known]:
        raise ValueError(f"[SentenceEncoder] unknown settings {unknown}. Known: {', '.join(known)}.")
    found: dict[str, Any] = {}
    lengths = next((backbone / name for name in LENGTHS if (backbone / name).is_file()), None)
    for path in (lengths, folder / MODEL):
        if path is not None and path.is_file():
            found |= {key: value for key, value in read_json(path).items() if key in known and value is not None}
    prompts = {name: prompt or "" for name, prompt in found.get("prompts", {}).items()}
    return EncoderSettings(**{**found, "prompts": prompts, **(overrides or {})})


def read_module_list(folder: Path) -> tuple[Path, list[tuple[str, Path]] | None]:
    """The folder of the encoder, and type and folder of each module behind it; None without ``modules.json``.

    Raises:
        ValueError: the file is malformed, points outside, or does not start with a Transformer.
    """
    path = folder / MODULES
    if not path.is_file():
        return folder, None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        listed = [(str(entry["type"]), str(entry["path"])) for entry in entries]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"[SentenceEncoder] {path} is not a list of modules with type and path.") from None
    for _, place in listed:
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise ValueError(f"[SentenceEncoder] {path} points outside its folder: {place!r}. Refused.")
    if not listed or listed[0][0].rpartition(".")[2] != "Transformer" or not listed[0][0].startswith("sentence_"):
        first = listed[0][0] if listed else "nothing"
        raise ValueError(
            f"[SentenceEncoder] expected the first module to be sentence_transformers' Transformer but got {first!r}. "
            "Models with their own code are not supported."
        )
    return folder / listed[0][1], [(kind, folder / place) for kind, place in listed[1:]]
