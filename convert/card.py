"""The model card that goes with an upload: where the weights come from, under which licence, how to load them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert import hub
from mlx_bert.checkpoint import CONFIG, new_file, read_json

LOADING = {
    "embeddings": """from mlx_bert import SentenceEncoder

encoder = SentenceEncoder.from_pretrained("{repo}")
embeddings = encoder.encode(["The sun is out.", "It is a bright day."])
print(encoder.similarity(embeddings, embeddings))""",
    "head": """from mlx_bert import BertWithHead, Tokenizer

model = BertWithHead.from_pretrained("{repo}")
print(model.id2label)""",
    "encoder": """from mlx_bert import BertCore

core = BertCore.from_pretrained("{repo}")
print(core.config)""",
}
PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForMultipleChoice": "multiple-choice",
}


def write_card(folder: Path, source: str | Path, repo: str, metrics: Mapping[str, float] | None = None) -> Path:
    """Write ``README.md`` with the metadata that the Hub shows.

    Args:
        folder: the converted folder.
        source: hub id or folder of the original.
        repo: hub id that the folder goes to.
        metrics: name -> value, for a table; for a fine-tuned model those of its best evaluation.

    Returns:
        The path of the card.
    """
    original = hub.card_data(source)
    config = read_json(folder / CONFIG)
    is_hub_id = not Path(source).expanduser().is_dir()
    kind, pipeline = _kind(folder, config)
    metadata = hub.front_matter(
        library_name="mlx-bert",
        license=original.get("license"),
        language=original.get("language"),
        base_model=str(source) if is_hub_id else original.get("base_model"),
        pipeline_tag=pipeline,
        tags=["mlx", "mlx-bert", str(config["model_type"])],
    )
    with new_file(folder / "README.md") as file:
        file.write(f"---\n{metadata}\n---\n\n{_text(source, repo, kind, config, metrics or {})}")
    return folder / "README.md"


def _kind(folder: Path, config: dict[str, Any]) -> tuple[str, str | None]:
    if (folder / "modules.json").is_file():
        return "embeddings", "sentence-similarity"
    architecture = (config.get("architectures") or [""])[0]
    pipeline = next((name for suffix, name in PIPELINES.items() if architecture.endswith(suffix)), None)
    return ("head", pipeline) if pipeline else ("encoder", "feature-extraction")


def _text(source: str | Path, repo: str, kind: str, config: dict[str, Any], metrics: Mapping[str, float]) -> str:
    name = str(source) if not Path(source).expanduser().is_dir() else Path(source).name
    lines = [f"# {repo.split('/')[-1]}", "", f"Converted from {name} with mlx-bert.", ""]
    packed = config.get("quantization")
    if packed:
        lines += [
            f"Quantised: {packed.get('mode', 'affine')}, {packed['bits']} bits, groups of {packed['group_size']}.",
            "",
        ]
    lines += ["```python", LOADING[kind].format(repo=repo), "```", ""]
    if metrics:
        lines += ["| metric | value |", "| --- | --- |"]
        lines += [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
        lines.append("")
    if not packed:
        lines += ["transformers and sentence-transformers load the same folder.", ""]
    return "\n".join(lines)
