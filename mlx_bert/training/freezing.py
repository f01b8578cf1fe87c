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
    asked = args.freeze not in ("as_is", "none") or args.unfreeze_layers is not None
    if num_layers is None and (asked or args.freeze_epochs or args.gradual_unfreezing):
        raise ValueError(
            "[freeze] expected a model with an encoder (BertWithHead) but got one without. Leave freeze out."
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


Frozen = dict[str, set[str]]


def frozen_keys(model: nn.Module) -> Frozen:
    """What is frozen in a model: the names of each module's own parameters that are, by the module's path."""
    return {path: set(module._no_grad) for path, module in model.named_modules()}


def freeze_again(model: nn.Module, frozen: Frozen, exactly: bool = True) -> None:
    """Freeze what :func:`frozen_keys` found.

    Args:
        model: as it was then, or with adapters since.
        frozen: from :func:`frozen_keys`.
        exactly: unfreeze everything else; False leaves that as it is.
    """
    for path, module in model.named_modules():
        if path in frozen:  # all but what adapters brought
            module._no_grad = frozen[path] | (set() if exactly else module._no_grad)


def apply_freeze(model: nn.Module, freeze: str) -> bool:
    """Freeze and unfreeze an encoder's parameters; the head stays as it is.

    A model with adapters trains them and no other part of the encoder. The encoder's pooler never trains, unless the
    model says that it ``reads_pooler``: weight decay alone would move it.

    Args:
        model: with ``bert``, ``freeze_bert`` and ``unfreeze_bert`` as ``BertWithHead`` has them; any other module is
            left as it is.
        freeze: as in ``TrainingArgs``: ``"as_is"``, ``"none"``, ``"embeddings"``, ``"backbone"`` or a number of layers.

    Returns:
        Whether the whole encoder is frozen.

    Raises:
        ValueError: something is to be frozen in a model that cannot do it.
    """
    if lora_layers(model) and freeze != "backbone":
        freeze_all_but_lora(model)
        return False
    bert = getattr(model, "bert", None)
    if bert is None or not hasattr(model, "freeze_bert"):
        if freeze not in ("as_is", "none"):
            raise ValueError(
                f"[freeze] expected a model with freeze_bert (BertWithHead) but got {type(model).__name__}. Leave "
                "freeze out."
            )
        return False
    if freeze in ("none", "embeddings"):
        model.unfreeze_bert()
        if freeze == "embeddings":
            bert.encoder.embeddings.freeze()
    elif freeze != "as_is":
        model.freeze_bert(None if freeze == "backbone" else int(freeze))
    for path, module in bert.named_modules():
        if path.endswith("encoder.pooler") and not getattr(model, "reads_pooler", False):
            module.freeze()
    return not tree_flatten(bert.trainable_parameters())


def task_parts(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules of each task alone: of a multi-task head, or of a ``SentenceTransformerMTL``; empty for others."""
    head = getattr(model, "head", model)
    for name in ("task_heads", "tasks", "heads"):
        parts = getattr(head, name, None)
        if isinstance(parts, dict) and parts and all(isinstance(part, nn.Module) for part in parts.values()):
            poolings = getattr(head, "task_poolings", None) or {}
            return {task: [part, *([poolings[task]] if task in poolings else [])] for task, part in parts.items()}
    return {}


def task_paths(model: nn.Module) -> dict[str, str]:
    """{beginning of the paths of a task's own parameters: the task}; empty for a model without."""
    owners = {id(part): task for task, own in task_parts(model).items() for part in own}
    return {f"{path}.": owners[id(module)] for path, module in model.named_modules() if id(module) in owners}


def fixed_tasks(model: nn.Module) -> set[str]:
    """The tasks of which nothing trains."""
    return {
        task
        for task, parts in task_parts(model).items()
        if not any(tree_flatten(part.trainable_parameters()) for part in parts)
    }


def freeze_tasks(model: nn.Module, names: str) -> None:
    """Keep the heads of some tasks as they are; objectives leave out the losses of such tasks.

    Args:
        model: with several tasks; see :func:`task_parts`.
        names: of the tasks, joined by commas.

    Raises:
        ValueError: a model of one task, an unknown task, or none left to train.
    """
    parts = task_parts(model)
    if not parts:
        raise ValueError("[freeze] expected a model of several tasks with freeze_tasks but got another. Leave it out.")
    frozen = {name.strip() for name in names.split(",") if name.strip()}
    if unknown := sorted(frozen - set(parts)):
        raise ValueError(f"[freeze] expected tasks among {', '.join(parts)} but got {', '.join(unknown)}. Correct it.")
    if frozen == set(parts):
        raise ValueError("[freeze] expected a task that trains but freeze_tasks has all of them. Leave one out.")
    for name in frozen:
        for part in parts[name]:
            part.freeze()


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Numbers of trainable and of all parameters."""

    def count(tree: Any) -> int:
        return sum(array.size for _, array in tree_flatten(tree) if isinstance(array, mx.array))

    return count(model.trainable_parameters()), count(model.parameters())
