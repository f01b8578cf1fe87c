"""Which parameters train, and the phases of a run: head first, layers from the top down, then the main phase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.lora import freeze_all_but_lora, lora_layers


@dataclass(frozen=True)
class Phase:
    """A part of a run with its own trainable parameters, optimiser state and schedule.

    Attributes:
        name: what the progress bar shows.
        epochs: passes over the data.
        freeze: as ``TrainingArgs.freeze``.
        is_main: whether the phase is the last one, which ``TrainingArgs.epochs`` counts.
    """

    name: str
    epochs: int
    freeze: str
    is_main: bool = True


def phases_of(args: TrainingArgs, num_layers: int | None) -> list[Phase]:
    """The phases that the settings ask for, in order.

    Args:
        args: the settings.
        num_layers: layers of the encoder; None for a model without one, which has a single phase.

    Raises:
        ValueError: more layers than there are, or phases for a model without an encoder.
    """
    phases = []
    if num_layers is None and (
        args.freeze != "none" or args.freeze_epochs or args.gradual_unfreezing or args.unfreeze_layers is not None
    ):
        raise ValueError(
            "[freeze] expected a model with an encoder (BertWithHead) but got one without. Set freeze 'none'."
        )
    for name in ("freeze", "gradual_unfreezing"):
        value = str(getattr(args, name))
        if value.isdecimal() and num_layers is not None and int(value) > num_layers:
            raise ValueError(
                f"[freeze] expected {name} of at most {num_layers}, the encoder's layers, but got {value}."
            )
    if args.freeze_epochs:
        phases.append(Phase("head", args.freeze_epochs, "backbone", is_main=False))
    for top in range(1, args.gradual_unfreezing + 1):
        phases.append(Phase(f"top {top}", 1, str(num_layers - top), is_main=False))
    freeze = args.freeze
    if args.unfreeze_layers is not None and num_layers is not None:
        fixed = num_layers - args.unfreeze_layers
        freeze = "backbone" if not args.unfreeze_layers else str(fixed) if fixed > 0 else "embeddings"
    return [*phases, Phase("main", args.epochs, freeze)]


def apply_freeze(model: nn.Module, freeze: str) -> bool:
    """Freeze and unfreeze a model's parameters.

    The head trains unless ``"as_is"`` finds it frozen. A model with adapters trains them and no other part of the
    encoder. The encoder's pooler never trains: no head reads it, so weight decay alone would move it.

    Args:
        model: a ``BertWithHead``, or with ``"none"`` any module, which is left as it is.
        freeze: as in ``TrainingArgs``: ``"none"``, ``"embeddings"``, ``"backbone"``, ``"as_is"`` or a number of layers.

    Returns:
        Whether the whole encoder is frozen.
    """
    if not hasattr(model, "freeze_bert"):
        return False
    if lora_layers(model) and freeze != "backbone":
        freeze_all_but_lora(model)
        return False
    if freeze in ("none", "embeddings"):
        model.unfreeze_bert()
        if freeze == "embeddings":
            model.bert.encoder.embeddings.freeze()
    elif freeze != "as_is":
        model.freeze_bert(None if freeze == "backbone" else int(freeze))
    if getattr(model.bert.encoder, "pooler", None) is not None:
        model.bert.encoder.pooler.freeze()
    return not tree_flatten(model.bert.trainable_parameters())


def freeze_tasks(model: nn.Module, names: str) -> None:
    """Keep the heads of some tasks of a multi-task head as they are.

    Args:
        model: with a ``MultiTaskNLPHead``.
        names: of the tasks, joined by commas.

    Raises:
        ValueError: another head, an unknown task, or none left to train.
    """
    heads = getattr(getattr(model, "head", None), "task_heads", None)
    if heads is None:
        raise ValueError("[freeze] expected a multi-task head with freeze_tasks but got another. Leave it out.")
    frozen = {name.strip() for name in names.split(",") if name.strip()}
    if unknown := sorted(frozen - set(heads)):
        raise ValueError(f"[freeze] expected tasks among {', '.join(heads)} but got {', '.join(unknown)}. Correct it.")
    if frozen == set(heads):
        raise ValueError("[freeze] expected a task that trains but freeze_tasks has all of them. Leave one out.")
    for name in frozen:
        heads[name].freeze()


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Numbers of trainable and of all parameters."""

    def count(tree: Any) -> int:
        return sum(array.size for _, array in tree_flatten(tree) if isinstance(array, mx.array))

    return count(model.trainable_parameters()), count(model.parameters())
