"""``TrainingArgs``: every setting of a training run. Default and help stand here once; the CLI is made from them."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import numbers
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_bert.training.schedules import SCHEDULES

AVERAGED = ("last", "best")
LOGS = ("tensorboard", "wandb")
OPTIMIZERS = ("adamw", "adam", "adafactor", "lion", "muon")
DTYPES = ("float32", "bfloat16")


def setting(default: Any, help: str, choices: tuple[str, ...] | None = None, flag: str | None = None) -> Any:
    """A dataclass field with the help text and the choices that the command line shows."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "flag": flag})


@dataclass(frozen=True, kw_only=True)
class TrainingArgs:
    """Settings of a training run; see the help text of each field (``python -m mlx_bert train --help``).

    Raises:
        ValueError: a value out of range, or two that exclude each other.
    """

    output_dir: str = setting("./training_output", "folder for checkpoints, models and history.json", flag="--output")
    epochs: int = setting(5, "passes over the training data")
    batch_size: int = setting(16, "examples per forward pass")
    gradient_accumulation_steps: int = setting(
        1, "batches per update; 4 batches of 4 train like one of 16 in the memory of 4"
    )
    learning_rate: float = setting(5e-5, "peak learning rate of the encoder")
    head_learning_rate: float | None = setting(
        None, "peak learning rate of the head; 10 times learning_rate if not set"
    )
    layer_decay: float = setting(1.0, "each layer's learning rate over that of the layer above; 1 for the same rate")
    optimizer: str = setting("adamw", "optimiser", OPTIMIZERS)
    weight_decay: float = setting(0.01, "weight decay; never on biases and norms")
    head_weight_decay: float | None = setting(None, "weight decay of the head; weight_decay if not set")
    task_weight_decay: str | None = setting(
        None, "weight decay of the heads of single tasks, joined by commas: intent=0.001,mood=0.01"
    )
    schedule: str = setting("cosine", "course of the learning rate after the warm-up", SCHEDULES)
    schedule_power: float | None = setting(None, "exponent of the polynomial schedule; 2 if not set")
    warmup_ratio: float = setting(0.1, "part of all updates in which the learning rate rises from 0")
    warmup_steps: int | None = setting(None, "updates of the warm-up; replaces warmup_ratio")
    head_schedule: str | None = setting(
        None, "course of the head's learning rate after its warm-up; schedule if not set", SCHEDULES
    )
    head_warmup_ratio: float | None = setting(
        None, "part of all updates in which the head's learning rate rises from 0; the encoder's warm-up if not set"
    )
    max_grad_norm: float = setting(1.0, "clip the global norm of the gradient to this; 0 for no clipping")
    freeze: str = setting(
        "as_is",
        "what of the encoder stays fixed: as_is (what the model has frozen), none, embeddings, backbone (train the "
        "head alone) or n (the embeddings and n bottom layers)",
    )
    unfreeze_layers: int | None = setting(
        None, "train the top n layers of the encoder and the head, another way to say freeze; 0 for the head alone"
    )
    freeze_tasks: str | None = setting(
        None, "tasks of a multi-task head, joined by commas, whose heads stay fixed and whose losses do not count"
    )
    freeze_epochs: int = setting(0, "first train the head alone for this many epochs, with its own schedule")
    freeze_learning_rate: float | None = setting(
        None, "peak learning rate of the head during freeze_epochs; head_learning_rate if not set"
    )
    gradual_unfreezing: int = setting(
        0, "before the main phase, one epoch each with the top 1, 2, ... n layers trainable"
    )
    lora: str | None = setting(
        None, "train low-rank adapters of these layers only: patterns over layer paths, joined by commas, such as *.qkv"
    )
    lora_rank: int = setting(8, "rank of the adapters")
    lora_alpha: float = setting(16.0, "factor of the adapters, over their rank")
    lora_dropout: float = setting(0.0, "dropout of the adapters' inputs")
    dora: bool = setting(False, "adapters also learn the length of each weight row (DoRA)")
    cache_encoder: bool = setting(
        True, "while the encoder is frozen, run it once per text and keep its outputs (within cache_limit_mb)"
    )
    cache_dir: str | None = setting(
        None, "keep the outputs of a frozen encoder in files of this folder, for later runs too; in memory if not set"
    )
    cache_limit_mb: int = setting(
        2048, "most MiB of cached encoder outputs, in memory or in cache_dir; above it nothing is cached"
    )
    sampling: str = setting(
        "shuffle",
        "how an epoch draws examples: each once, every class as often, or by the examples' own weights",
        ("shuffle", "class_balanced", "weighted"),
    )
    max_length: int | None = setting(None, "truncate texts to this many tokens; the encoder's own bound if not set")
    dtype: str = setting("float32", "type of the computation; the trained weights are float32 in any case", DTYPES)
    compile: bool | None = setting(
        None, "compile the update; if not set: yes on a GPU, no on a CPU, where the first compilation takes a minute"
    )
    gradient_checkpointing: bool = setting(False, "recompute each layer in the backward pass: less memory, more time")
    ema_decay: float | None = setting(
        None, "evaluate and save an exponential moving average of the weights with this decay (such as 0.999)"
    )
    average_checkpoints: int = setting(
        0, "the final model is the mean of the weights of this many checkpoints of the last phase; 0 for no mean"
    )
    average_of: str = setting("last", "which checkpoints: the last ones, or those of the best metric", AVERAGED)
    eval_every: str = setting("epoch", "when to evaluate: epoch, no, or a number of updates (and at the end)")
    eval_batch_size: int | None = setting(None, "examples per batch in evaluation; twice batch_size if not set")
    metric: str | None = setting(None, "metric that selects the best model; the head's own if not set, else the loss")
    greater_is_better: bool | None = setting(None, "whether a greater metric is better; known for losses and errors")
    best_heads: bool = setting(
        False,
        "of several tasks whose heads alone train, each keeps the head of its own best evaluation; the metric is then "
        "one that each task has: loss, accuracy, ...",
    )
    patience: int = setting(0, "stop after this many evaluations without an improvement; 0 never stops early")
    min_delta: float = setting(0.0, "what counts as an improvement for patience")
    save_every: str = setting(
        "epoch",
        "when to write a checkpoint to resume from: epoch (checkpoint_epoch_N after N epochs), no, or a number of "
        "updates (checkpoint_N after N updates, as at a stop)",
    )
    keep_checkpoints: int = setting(1, "newest checkpoints to keep; 0 keeps all")
    save_optimizer: bool = setting(
        False,
        "also keep the optimiser's state in best_model and final_model, as optimizer.safetensors; with AdamW three "
        "times the size",
    )
    log_every: int = setting(10, "updates between two readings of the loss")
    log_to: str | None = setting(
        None, "where else to log: tensorboard (event files in the output folder), wandb, or both joined by a comma"
    )
    plot: bool = setting(False, "draw losses, learning rate and metrics as curves.png in the output folder")
    seed: int = setting(42, "seed of shuffling, dropout and new weights")
    progress: bool = setting(True, "show a progress bar")

    def __post_init__(self) -> None:
        for name, kinds in ((f.name, _kinds(type(self), f.name)) for f in dataclasses.fields(self)):
            value = getattr(self, name)
            if isinstance(value, os.PathLike) and str in kinds:
                value = os.fspath(value)
            elif isinstance(value, numbers.Real) and not isinstance(value, (int, float)):  # numpy's
                value = int(value) if isinstance(value, numbers.Integral) else float(value)
            if (
                name in ("freeze", "eval_every", "save_every")
                and isinstance(value, int)
                and not isinstance(value, bool)
            ):
                value = str(value)
            if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
                value = float(value)
            object.__setattr__(self, name, value)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
                raise ValueError(f"[TrainingArgs] expected {name} to be {wanted} but got {value!r}. Correct it.")
            choices = type(self).__dataclass_fields__[name].metadata.get("choices")
            if choices and value is not None and value not in choices:
                raise ValueError(f"[TrainingArgs] expected {name} to be one of {', '.join(choices)} but got {value!r}.")
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "log_every", "cache_limit_mb"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        for name in (
            "patience",
            "keep_checkpoints",
            "freeze_epochs",
            "gradual_unfreezing",
            "seed",
            "average_checkpoints",
        ):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("weight_decay", "max_grad_norm", "min_delta", "learning_rate"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in (
            "head_learning_rate",
            "head_weight_decay",
            "freeze_learning_rate",
            "schedule_power",
            "warmup_steps",
        ):
            self._check(name, getattr(self, name) is None or getattr(self, name) >= 0, "0 or more")
        for name in ("eval_batch_size", "max_length"):
            self._check(name, getattr(self, name) is None or getattr(self, name) >= 1, "1 or more")
        self._check("seed", self.seed < 2**31, "below 2147483648")
        self._check("warmup_ratio", 0 <= self.warmup_ratio < 1, "in [0, 1)")
        self._check("head_warmup_ratio", 0 <= (self.head_warmup_ratio or 0) < 1, "in [0, 1)")
        self._check("layer_decay", 0 < self.layer_decay <= 1, "in (0, 1]")
        adapters = ("lora_rank", "lora_alpha", "lora_dropout", "dora")
        unset = all(getattr(self, name) == type(self).__dataclass_fields__[name].default for name in adapters)
        self._check("lora", self.lora is not None or unset, "given with lora_rank, lora_alpha, lora_dropout or dora")
        unset = self.freeze in ("as_is", "none")
        self._check("freeze", self.lora is None or unset, "left out with lora, which freezes the encoder")
        self._check("gradual_unfreezing", self.lora is None or not self.gradual_unfreezing, "0 with lora")
        self._check("cache_dir", self.cache_dir is None or self.cache_encoder, "None without cache_encoder")
        self._check("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "in (0, 1)")
        self._check(
            "schedule_power",
            self.schedule_power is None or "polynomial" in (self.schedule, self.head_schedule),
            "None unless schedule or head_schedule is 'polynomial'",
        )
        for name in ("eval_every", "save_every"):
            value = getattr(self, name)
            fits = value in ("epoch", "no") or (value.isdecimal() and int(value) > 0)
            self._check(name, fits, "'epoch', 'no' or a number of updates")
        self._check(
            "freeze_learning_rate",
            self.freeze_learning_rate is None or self.freeze_epochs > 0,
            "None without freeze_epochs",
        )
        fits = re.fullmatch(r"([^=]+=\s*(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*(,|$))*", self.task_weight_decay or "")
        self._check("task_weight_decay", bool(fits), "task=number, joined by commas")
        fits = self.freeze in ("none", "embeddings", "backbone", "as_is") or self.freeze.isdecimal()
        self._check("freeze", fits, "'none', 'embeddings', 'backbone', 'as_is' or n")
        fits = self.unfreeze_layers is None or (self.unfreeze_layers >= 0 and self.freeze == "as_is" and not self.lora)
        self._check("unfreeze_layers", fits, "None with freeze or lora, else 0 or more")
        logs = [name.strip() for name in (self.log_to or LOGS[0]).split(",")]
        self._check("log_to", all(name in LOGS for name in logs), f"names among {', '.join(LOGS)}")
        self._check_averaging()
        fits = self.freeze in ("backbone", "as_is") and self.eval_every != "no" and not self.average_checkpoints
        wanted = "false unless the encoder is frozen and heads evaluated, without average_checkpoints"
        self._check("best_heads", fits or not self.best_heads, wanted)
        self._check(
            "gradual_unfreezing",
            not self.gradual_unfreezing or self.freeze != "backbone",
            "0 when freeze is 'backbone', which unfreezes nothing",
        )

    def _check_averaging(self) -> None:
        count = self.average_checkpoints
        if not count:
            self._check("average_of", self.average_of == "last", "'last' without average_checkpoints")
            return
        self._check("average_checkpoints", count >= 2, "0, or 2 or more")
        self._check("ema_decay", self.ema_decay is None, "None with average_checkpoints")
        self._check("save_every", self.save_every != "no", "'epoch' or a number of updates with average_checkpoints")
        if self.average_of == "best":
            self._check("eval_every", self.eval_every == self.save_every, "as save_every with average_of 'best'")
        else:
            enough = not self.keep_checkpoints or self.keep_checkpoints >= count
            self._check("keep_checkpoints", enough, "0 or at least average_checkpoints")

    def _check(self, name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise ValueError(
                f"[TrainingArgs] expected {name} to be {wanted} but got {getattr(self, name)!r}. Correct it."
            )

    def decays_of_tasks(self) -> dict[str, float]:
        """``task_weight_decay`` as {task: weight decay}."""
        found = re.findall(r"(.+?)=([^,=]+)(?:,|$)", self.task_weight_decay or "")
        return {task.strip(): float(decay) for task, decay in found}

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingArgs:
        """The settings that a mapping gives, defaults for the others.

        Raises:
            ValueError: an unknown setting.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"[TrainingArgs] unknown settings {', '.join(unknown)}. Known: {', '.join(known)}.")
        return cls(**values)


def add_arguments(parser: Any, args_class: type = TrainingArgs) -> None:
    """Add one option per setting to an ``argparse`` parser or group; only those given appear in the result."""
    for field in dataclasses.fields(args_class):
        kinds = _kinds(args_class, field.name)
        default = "" if field.default is None else f" (default: {field.default})"
        options: dict[str, Any] = {
            "dest": field.name,
            "default": argparse.SUPPRESS,
            "help": (field.metadata["help"] + default).replace("%", "%%"),
        }
        if bool in kinds:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = next(kind for kind in kinds if kind is not type(None))
            options["choices"] = field.metadata["choices"]
            options["metavar"] = None if field.metadata["choices"] else field.name.split("_")[-1].upper()
        parser.add_argument(field.metadata["flag"] or f"--{field.name.replace('_', '-')}", **options)


def given_arguments(namespace: argparse.Namespace, args_class: type = TrainingArgs) -> dict[str, Any]:
    """The settings that were given on the command line."""
    return {f.name: getattr(namespace, f.name) for f in dataclasses.fields(args_class) if hasattr(namespace, f.name)}


@functools.cache  # reading the hints of a class takes a millisecond
def _kinds(args_class: type, name: str) -> tuple[type, ...]:
    """The types that a setting may have."""
    hint = typing.get_type_hints(args_class)[name]
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
