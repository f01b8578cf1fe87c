"""What lies in a folder: a model with a head, one with heads of several tasks, an embedding model, a cross-encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

MULTI_TASK, EMBEDDING, CROSS_ENCODER, MASKED_LM = "multi_task", "embedding", "cross_encoder", "masked_lm"
FEW_SHOT, JOINT, SENTENCE_MTL = "few_shot", "joint", "sentence_mtl"
NAMED_TASKS = (MULTI_TASK, EMBEDDING, CROSS_ENCODER, MASKED_LM, FEW_SHOT, JOINT, SENTENCE_MTL)
OWN_FILES = {"joint_config.json": JOINT, "mtl_config.json": SENTENCE_MTL}  # of models that are nothing else


def add_model_arguments(parser: Any) -> None:
    """The options that say which model is used."""
    parser.add_argument("--model", required=True, metavar="FOLDER", help="trained model, or a training run's output")
    parser.add_argument(
        "--task", choices=NAMED_TASKS, metavar="TASK",
        help=f"what the model is, where its folder does not say: {', '.join(NAMED_TASKS)}",
    )  # fmt: skip


class FoundModel(NamedTuple):
    """A model.

    Attributes:
        folder: its folder, or a hub id.
        task: one of ``NAMED_TASKS``, or ``"head"``.
    """

    folder: str
    task: str


def find_model(source: str, task: str | None = None) -> FoundModel:
    """The model of a folder or of a training run's output folder, and what kind it is.

    Args:
        source: a folder, or a hub id.
        task: what it is to be taken for; None to find out.

    Raises:
        FileNotFoundError: no model there.
    """
    from mlx_bert.checkpoint import read_json
    from mlx_bert.cli.config_file import CONFIG_FILE
    from mlx_bert.inference.multihead_files import MULTIHEAD_CONFIG
    from mlx_bert.inference.predict import MODEL_PARTS, find_model_folder
    from mlx_bert.model import METADATA

    folder = Path(source)
    for candidate in (folder, *(folder / part for part in MODEL_PARTS)):
        if (candidate / MULTIHEAD_CONFIG).is_file():
            return FoundModel(str(candidate), MULTI_TASK)
        for name, own in OWN_FILES.items():
            if (candidate / name).is_file():
                return FoundModel(str(candidate), own)
        if (candidate / "few_shot_config.json").is_file() and task in (None, FEW_SHOT):
            return FoundModel(str(candidate), FEW_SHOT)
        if (candidate / METADATA).is_file() and task is None:
            return FoundModel(str(candidate), "head")
        if (candidate / "modules.json").is_file() and task is None:
            return FoundModel(str(candidate), EMBEDDING)
    found = find_model_folder(folder)
    run = next((path for path in (found / CONFIG_FILE, found.parent / CONFIG_FILE) if path.is_file()), None)
    trained = read_json(run).get("task") if run else None
    return FoundModel(str(found), task or (trained if trained in NAMED_TASKS else "head"))
