"""The settings of ``MultiheadClassifier``, in groups."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from mlx_bert.training.args import DTYPES, OPTIMIZERS

POOLINGS = ("mean", "cls", "max")
SAMPLINGS = ("proportional", "sqrt", "equal", "dynamic")
METRICS = ("accuracy", "f1", "loss")
ACTIVATIONS = ("gelu", "relu", "silu", "tanh")


@dataclass
class TrainingConfig:
    """How to train.

    Attributes:
        model_name: hub id or folder of the encoder.
        max_length: texts are truncated to this many tokens, in training and prediction.
        batch_size: examples per forward pass.
        epochs: passes over the data after the heads-only phase.
        learning_rate: peak rate of the heads; ten times it while the encoder is frozen.
        optimizer: ``"adamw"``, ``"adam"`` (its decay is part of the gradient, as in ridge regression), ``"adafactor"``,
            ``"lion"`` or ``"muon"``. In an update without an example of a task, that task's head rests.
        weight_decay: never on biases and norms.
        task_weight_decay: {task: weight decay of its head}; ``weight_decay`` for tasks that are not named.
        warmup_ratio: part of each phase in which the rate rises from 0; it then falls along a cosine to 0.
        gradient_accumulation_steps: batches per update.
        max_grad_norm: clip the global norm of the gradient to this.
        test_size, val_size: parts set aside, test first.
        output_dir: each run gets a numbered folder in it.
        save_path: where :meth:`MultiheadClassifier.save` writes by default.
        seed: of splits, shuffling, dropout and new heads.
        dtype: of the computation, ``"float32"`` or ``"bfloat16"``; the trained weights are float32 in any case.
        save_every: when to write a checkpoint to resume from: ``"epoch"``, ``"no"`` (only when interrupted), or a
            number of updates.
    """

    model_name: str = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
    max_length: int = 128
    batch_size: int = 16
    epochs: int = 10
    learning_rate: float = 2e-5
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    task_weight_decay: dict[str, float] = field(default_factory=dict)
    warmup_ratio: float = 0.1
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    test_size: float = 0.1
    val_size: float = 0.1
    output_dir: str = "./training_output"
    save_path: str = "./model"
    seed: int = 42
    dtype: str = "float32"
    save_every: str | int = "epoch"


@dataclass
class HeadConfig:
    """The head of each task: ``(norm ->) dropout -> (linear -> activation -> dropout) * hidden_layers -> linear``.

    Attributes:
        hidden_layers: 0 for a linear head.
        hidden_multiplier: width of the hidden layers over the encoder's hidden size.
        activation: ``"gelu"``, ``"relu"``, ``"silu"`` or ``"tanh"``.
        dropout: after each activation, and on the pooled vector.
        input_norm: LayerNorm of the pooled vector, so that heads on a frozen encoder learn at the same rate whatever
            the scale of its outputs (sentence encoders' are small).
    """

    hidden_layers: int = 1
    hidden_multiplier: float = 1.0
    activation: str = "gelu"
    dropout: float = 0.2
    input_norm: bool = False


@dataclass
class EncoderConfig:
    """How the encoder takes part.

    Attributes:
        freeze_epochs: epochs in which only the heads train, on encoder outputs computed once.
        unfreeze_layers: top layers that train afterwards; None for the whole encoder, 0 for none of it.
        lr_multiplier: the encoder's learning rate over that of the heads.
    """

    freeze_epochs: int = 3
    unfreeze_layers: int | None = 4
    lr_multiplier: float = 0.1


@dataclass
class LossConfig:
    """The loss of each task.

    Attributes:
        use_class_weights: weigh classes against imbalance: ``N / (K n_c)`` over its mean, within [0.5, 3].
        use_focal_loss, focal_gamma: focal loss (Lin et al. 2017) in place of cross-entropy.
        task_weights: factors of the tasks' losses; 1 for a task that is not named.
        label_smoothing: in [0, 1).
    """

    use_class_weights: bool = True
    use_focal_loss: bool = False
    focal_gamma: float = 2.0
    task_weights: dict[str, float] = field(default_factory=dict)
    label_smoothing: float = 0.1


@dataclass
class EvalConfig:
    """When to stop.

    Attributes:
        patience: evaluations (one per epoch) without an improvement; 0 or less never stops early.
        min_delta: what counts as an improvement.
        metric: ``"accuracy"``, ``"f1"`` (macro) or ``"loss"``, a mean over the tasks.
    """

    patience: int = 3
    min_delta: float = 0.001
    metric: str = "accuracy"


GROUPS: dict[str, type] = {
    "training": TrainingConfig,
    "head": HeadConfig,
    "encoder": EncoderConfig,
    "loss": LossConfig,
    "eval": EvalConfig,
}


@dataclass
class MultiheadConfig:
    """All settings, in groups.

    Attributes:
        training, head, encoder, loss, eval: the groups; also given as mappings.
        pooling: ``"mean"``, ``"cls"`` or ``"max"``.
        task_sampling: examples of a task per epoch: ``"proportional"``, ``"sqrt"`` or ``"equal"``; or ``"dynamic"``,
            by how often the task goes wrong in validation so far.

    Raises:
        ValueError: a value that is not offered.
    """

    training: TrainingConfig = field(default_factory=TrainingConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    pooling: str = "mean"
    task_sampling: str = "proportional"

    def __post_init__(self) -> None:
        for name, group in GROUPS.items():
            if isinstance(given := getattr(self, name), Mapping):
                setattr(self, name, group(**_known(group, given, f"{name}.")))
        checks = (
            ("pooling", self.pooling, POOLINGS),
            ("task_sampling", self.task_sampling, SAMPLINGS),
            ("eval.metric", self.eval.metric, METRICS),
            ("head.activation", self.head.activation, ACTIVATIONS),
            ("training.optimizer", self.training.optimizer, OPTIMIZERS),
            ("training.dtype", self.training.dtype, DTYPES),
        )
        for name, value, known in checks:
            if value not in known:
                raise ValueError(f"[multihead] expected {name} to be one of {', '.join(known)} but got {value!r}.")
        if self.head.hidden_layers < 0 or self.head.hidden_multiplier <= 0:
            raise ValueError(
                "[multihead] expected head.hidden_layers of 0 or more and a positive head.hidden_multiplier but got "
                f"{self.head.hidden_layers} and {self.head.hidden_multiplier}."
            )
        top = self.encoder.unfreeze_layers
        if self.encoder.freeze_epochs < 0 or (top is not None and top < 0):
            raise ValueError(
                "[multihead] expected encoder.freeze_epochs of 0 or more and encoder.unfreeze_layers of 0 or more, or "
                f"None for all, but got {self.encoder.freeze_epochs} and {top}."
            )
        by_task = (
            ("loss.task_weights", self.loss.task_weights),
            ("training.task_weight_decay", self.training.task_weight_decay),
        )
        for name, given in by_task:
            if any(value < 0 for value in given.values()):
                raise ValueError(f"[multihead] expected no negative {name} but got {given}.")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values: paths as text, numpy's numbers as Python's.

        Raises:
            ValueError: a value that is none.
        """
        return json.loads(json.dumps(asdict(self), default=_plain))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The settings that nested mappings give, defaults for the others.

        Raises:
            ValueError: an unknown key.
        """
        return cls(**_known(cls, values, ""))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"[multihead] expected text, numbers and paths as settings but got {value!r:.60}.")


def _known(kind: type, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    names = [f.name for f in fields(kind)]
    if unknown := [f"{prefix}{key}" for key in values if key not in names]:
        raise ValueError(f"[multihead] unknown settings {', '.join(unknown)}. Known: {', '.join(names)}.")
    return dict(values)
