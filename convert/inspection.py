"""What a checkpoint is, what would load and what would not, without converting it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from convert import hub
from convert.architecture import check_config, check_tensors
from convert.conversion import todays_names
from convert.modules import read_modules
from convert.paths import inside
from convert.quantize import dequantized
from convert.tokenizer_files import TOKENIZER, VOCABULARIES
from convert.weights import open_weights
from mlx_bert.checkpoint import CONFIG, TensorEntry, read_json


@dataclass
class Findings:
    """What :func:`inspect_checkpoint` found: facts by name, and what stands in the way of a conversion."""

    source: str
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def converts(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{self.source}", *(f"  {name + ':':16} {fact}" for name, fact in self.facts.items())]
        lines += [f"  problem: {problem}" for problem in self.problems]
        return "\n".join([*lines, "would convert" if self.converts else "would not convert"])


def inspect_checkpoint(source: str | Path, revision: str | None = None) -> Findings:
    """Look at a checkpoint's config, the headers of its weights, its tokenizer and its modules.

    Raises:
        FileNotFoundError: no such source.
        ValueError: ``source`` is a file.
    """
    folder = hub.fetch(source, revision)
    findings = Findings(str(source))
    root, config, entries = folder, {}, {}
    try:
        modules = read_modules(folder)
        if modules:
            root = inside(folder, modules[0].path)
            findings.facts["modules"] = ", ".join(module.kind for module in modules)
    except ValueError as error:
        findings.problems.append(str(error))
    try:
        config = read_json(inside(root, CONFIG))
        findings.facts.update(_config_facts(config))
    except (ValueError, OSError) as error:
        findings.problems.append(str(error))
    try:
        entries = todays_names(open_weights(root))
        findings.facts.update(_weight_facts(entries))
    except (ValueError, OSError) as error:
        findings.problems.append(str(error))
    if config:
        _fit(findings, config, entries)
    findings.facts["tokenizer"] = _tokenizer_fact(root, folder)
    return findings


def _config_facts(config: dict[str, Any]) -> dict[str, str]:
    labels, classes = config.get("id2label"), config.get("architectures")
    shown = {
        "model_type": config.get("model_type"),
        "class": ", ".join(map(str, classes)) if isinstance(classes, list) else None,
        "layers": config.get("num_hidden_layers"),
        "hidden size": config.get("hidden_size"),
        "vocabulary": config.get("vocab_size"),
        "labels": ", ".join(map(str, list(labels.values())[:12])) if isinstance(labels, dict) else None,
        "quantization": config.get("quantization"),
    }
    return {key: str(value)[:200] for key, value in shown.items() if value is not None}


def _weight_facts(entries: dict[str, TensorEntry]) -> dict[str, str]:
    types: Counter[str] = Counter()
    for entry in entries.values():
        types[str(entry.dtype).removeprefix("mlx.core.")] += entry.nbytes
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in types.most_common())
    return {"tensors": str(len(entries)), "weights": sizes}


def _fit(findings: Findings, config: dict[str, Any], entries: dict[str, TensorEntry]) -> None:
    """Whether config and tensors are those of a supported encoder."""
    try:
        architecture = check_config(config)
        if not entries:
            return
        if any(name.endswith(".scales") for name in entries):
            entries = dequantized(entries, config.get("quantization"), mx.float32)
            findings.facts["note"] = "quantised: loads as it is, converts with --dequantize"
        parts = check_tensors(architecture, config, entries)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    findings.facts["encoder"] = f"{len(parts.encoder)} tensors, complete"
    if "pooler.dense.weight" in parts.encoder:
        findings.facts["pooler"] = "yes"
    for name, tensors in (("head", parts.heads), ("no known use", parts.strangers)):
        if tensors:
            findings.facts[name] = ", ".join(sorted({tensor.rpartition(".")[0] for tensor in tensors})[:8])


def _tokenizer_fact(root: Path, folder: Path) -> str:
    for place in (root, folder):
        if (place / TOKENIZER).is_file():
            return TOKENIZER
        for name in VOCABULARIES:
            if (place / name).is_file():
                return f"{name} ({TOKENIZER} would be built from it)"
    return "none"
