"""Back to folders that transformers and sentence-transformers load: fine-tuned heads become the right task class.

What can be exported: a converted checkpoint (quantised ones are unpacked), a ``BertWithHead`` folder, and models with
several heads, which are split into one folder per task. A head that transformers has no equal for is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx

from convert import task_heads
from convert.conversion import cast_entry, convert_checkpoint
from convert.quantize import dequantized
from convert.tokenizer_files import write_tokenizer
from convert.weights import open_weights
from heads import HEADS, BaseKaggleHead
from mlx_bert.checkpoint import (
    CONFIG,
    WEIGHTS,
    TensorEntry,
    entries_of,
    float_dtype,
    new_folder,
    read_json,
    read_weights,
    write_json,
    write_safetensors,
)
from mlx_bert.encoders import find_encoder

MODEL_METADATA = "model_metadata.json"  # of a BertWithHead folder
MULTIHEAD_CONFIG = "multihead_config.json"  # of a MultiheadClassifier folder
ONE_TASK = "task"
FRAMEWORK = {"format": "pt"}  # what transformers writes in its own files; the layout is the same


def export_checkpoint(source: str | Path, output: str | Path, dtype: str | mx.Dtype | None = None) -> list[Path]:
    """Write a model of ours as transformers would.

    Args:
        source: a converted folder, or one that ``BertWithHead`` or ``MultiheadClassifier`` saved.
        output: the new folder; with several heads it holds a folder per task.
        dtype: type of the floating weights; None keeps it.

    Returns:
        The folders that transformers loads.

    Raises:
        FileExistsError: ``output`` exists.
        FileNotFoundError: no such model.
        ValueError: a head without an equal in transformers.
    """
    source, output = Path(source).expanduser(), Path(output).expanduser()
    if (source / MULTIHEAD_CONFIG).is_file():
        encoder = source / "encoder"
    elif (source / MODEL_METADATA).is_file():
        encoder = source / "bert"
    else:
        config = read_json(source / CONFIG)
        packed = bool(config.get("quantization"))
        return [convert_checkpoint(source, output, dtype, dequantize=packed, verify=True).output]
    heads = dict(_saved_heads(source))
    with new_folder(output) as partial:
        for task, (head, id2label) in heads.items():
            folder = partial if task == ONE_TASK else partial / task
            folder.mkdir(exist_ok=True)
            _write_task(encoder, head, id2label, folder, float_dtype(dtype))
    return [output if task == ONE_TASK else output / task for task in heads]


def training_metrics(source: str | Path) -> dict[str, float]:
    """The metrics that the training wrote beside a fine-tuned model; empty without them."""
    path = Path(source).expanduser() / "metadata.json"
    metrics = read_json(path).get("metrics") if path.is_file() else None
    return {name: value for name, value in (metrics or {}).items() if isinstance(value, float)}


def _saved_heads(source: Path) -> Iterator[tuple[str, tuple[BaseKaggleHead, Mapping[str, str] | None]]]:
    """Each task's name, head and labels."""
    if (source / MULTIHEAD_CONFIG).is_file():
        saved = read_json(source / MULTIHEAD_CONFIG)
        head = HEADS["multi_task_nlp"].from_config(saved["head"])
        head.load_state_arrays(mx.load(str(source / "task_heads.safetensors"), format="safetensors"))
        labels = saved["labels"]
    else:
        metadata = read_json(source / MODEL_METADATA)
        if metadata.get("head_type") not in HEADS:
            raise ValueError(f"[export] the head {metadata.get('head_type')!r} is not known. Register it first.")
        head = HEADS[metadata["head_type"]].from_config(read_json(source / "head" / CONFIG))
        head.load_state_arrays(read_weights(source / "head"))
        labels = metadata.get("id2label")
    if "task_heads" not in head:
        yield ONE_TASK, (head, labels)
        return
    if "projections" in head:
        raise ValueError("[export] a task's own projection before its head has no place in transformers.")
    for task, own in head.task_heads.items():
        yield task, (own, (labels or {}).get(task))


def _write_task(
    encoder: Path, head: BaseKaggleHead, id2label: Mapping[str, str] | None, folder: Path, dtype: mx.Dtype | None
) -> None:
    """One folder with the encoder and one head under the names of the task class."""
    config = read_json(encoder / CONFIG)
    entries = open_weights(encoder)
    if config.get("quantization"):
        entries = dequantized(entries, config.pop("quantization"), dtype)
    if id2label is not None:
        config["id2label"] = {str(key): name for key, name in id2label.items()}
        config["label2id"] = {name: int(key) for key, name in id2label.items()}
    config = task_heads.checkpoint_config(config, head.config)
    prefix = find_encoder(config).NAMES.prefix
    # A pooler that the task class has comes from the head, which is what was trained.
    written = {f"{prefix}{name}": entry for name, entry in entries.items() if not name.startswith("pooler.")}
    written |= {entry.name: entry for entry in entries_of(task_heads.checkpoint_weights(config, head))}
    renamed = [cast_entry(TensorEntry(name, e.shape, e.dtype, e.load), dtype) for name, e in written.items()]
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("mlx.core.")
    write_safetensors(folder / WEIGHTS, renamed, FRAMEWORK)
    write_json(folder / CONFIG, config)
    write_tokenizer(encoder, folder)
