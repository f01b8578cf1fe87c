"""Several tasks on one sequence of hidden states: `MultiTaskHead` (shared layer) and `MultiTaskNLPHead` (free heads).

Dimension key: B batch, L tokens, D hidden size, F width after the projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads import losses, metrics
from heads.base import BaseKaggleHead
from heads.classification import class_labels
from heads.config import HeadConfig
from heads.initialization import glorot_linear, truncated_normal_linear
from heads.masks import as_boolean_mask, zero_padding
from heads.nlp_tasks import NLPTaskConfig
from heads.projection import NormedBlock

_KINDS = ("classification", "multilabel", "regression")


class TaskBranch(nn.Module):
    """`W2 Dropout(relu(W1 x))`: the private part of one task."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int, dropout: float, std: float):
        super().__init__()
        self.hidden = glorot_linear(input_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.output = truncated_normal_linear(hidden_size, output_size, std=std)

    def __call__(self, x: mx.array) -> mx.array:
        return self.output(self.dropout(nn.relu(self.hidden(x))))


class _TaskLosses(BaseKaggleHead):
    """The weighted sum of the tasks' losses, or their uncertainty weighting (Kendall et al. 2018)."""

    def _build_task_weights(self, tasks: Sequence[str]) -> None:
        for task in tasks:  # names become parts of parameter names
            if not task or "." in task or task.isdigit():
                raise ValueError(
                    f"[{type(self).__name__}] expected task names without dots that are no numbers but got {task!r}. "
                    "Rename the task."
                )
        if self.option("use_uncertainty_weighting"):
            self.log_variances = {task: mx.zeros((1,)) for task in tasks}

    def compute_losses(self, predictions: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, mx.array]:
        """Return the loss of each task that has a target, without weights."""
        raise NotImplementedError

    def _weight(self, task: str) -> float:
        raise NotImplementedError

    def compute_loss(self, predictions: Mapping[str, Any], targets: Mapping[str, Any]) -> mx.array:
        """Return the scalar sum of `weight * loss` over the tasks in `targets` {task: labels}; None is no label."""
        each = self.compute_losses(predictions, {task: value for task, value in targets.items() if value is not None})
        if not each:
            raise ValueError(
                f"[{type(self).__name__}] expected targets of at least one task but got none. Give {{task: labels}}."
            )
        weighted = {task: self._weight(task) * loss for task, loss in each.items()}
        if "log_variances" in self:
            return losses.uncertainty_weighted_loss(weighted, self.log_variances)
        return sum(weighted.values(), mx.array(0.0))

    def _check_tasks(self, tasks: Mapping[str, Any], known: Sequence[str]) -> None:
        if unknown := sorted(set(tasks) - set(known)):
            raise ValueError(
                f"[{type(self).__name__}] expected tasks among {', '.join(known)} but got {', '.join(unknown)}. "
                "Correct the name."
            )


class MultiTaskHead(_TaskLosses):
    """`h = LayerNorm(Dropout(relu(W f)))` shared, then `W2 Dropout(relu(W1 h))` for each task.

    `task_configs` {name: {"type": "classification" | "multilabel" | "regression", "num_classes": 2,
    "hidden_dim": 128}}; regression has one output. Options: `shared_dim` (256), `task_weights` {name: 1.0},
    `use_uncertainty_weighting` (learned weights instead of fixed ones alone).
    Outputs: `<task>_logits` for each task, `logits` (those of the first), `predictions` {task: class indices, 0/1
    labels or values}.
    Loss: `sum_t w_t L_t` over the tasks in the targets; cross-entropy, binary cross-entropy, or mean squared error.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "task_configs": None,
        "shared_dim": 256,
        "task_weights": {},
        "use_uncertainty_weighting": False,
    }

    def _check_options(self) -> None:
        super()._check_options()
        tasks = self.option("task_configs")
        if not tasks:
            raise ValueError(
                "[MultiTaskHead] expected the option task_configs but got none. "
                'Give {"name": {"type": "classification", "num_classes": 2}}.'
            )
        for name, task in tasks.items():
            if unknown := sorted(set(task) - {"type", "num_classes", "hidden_dim"}):
                raise ValueError(
                    f"[MultiTaskHead] expected type, num_classes and hidden_dim for {name!r} but got "
                    f"{', '.join(unknown)}. Remove them."
                )
            if task.get("type") not in _KINDS:
                raise ValueError(
                    f"[MultiTaskHead] expected a type among {', '.join(_KINDS)} for {name!r} but got "
                    f"{task.get('type')!r}. Choose one of them."
                )
        self._check_tasks(self.option("task_weights"), list(tasks))

    def _build_output_layer(self) -> None:
        config, shared = self.config, self.option("shared_dim")
        self.shared = NormedBlock(self.projection_output_size, shared, "relu", config.dropout_prob)
        self.tasks = {
            name: TaskBranch(
                shared,
                task.get("hidden_dim", 128),
                1 if task["type"] == "regression" else task.get("num_classes", 2),
                config.dropout_prob,
                config.initializer_range,
            )
            for name, task in self.option("task_configs").items()
        }

    def _build_loss_function(self) -> None:
        self._build_task_weights(list(self.option("task_configs")))

    def _kind(self, task: str) -> str:
        return self.option("task_configs")[task]["type"]

    def _weight(self, task: str) -> float:
        return self.option("task_weights").get(task, 1.0)

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, Any]:
        shared = self.shared(self._pooled_features(hidden_states, attention_mask))
        logits = {name: branch(shared).astype(mx.float32) for name, branch in self.tasks.items()}
        outputs: dict[str, Any] = {f"{name}_logits": x for name, x in logits.items()}
        outputs["logits"] = next(iter(logits.values()))
        outputs["predictions"] = {name: self._predict(name, x) for name, x in logits.items()}
        return outputs

    def _predict(self, task: str, logits: mx.array) -> mx.array:
        kind = self._kind(task)
        if kind == "regression":
            return logits
        return (mx.argmax(logits, axis=-1) if kind == "classification" else logits > 0).astype(mx.int32)

    def compute_losses(self, predictions: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, mx.array]:
        """Return the loss of each task that has a target, without weights."""
        self._check_tasks(targets, list(self.tasks))
        result = {}
        for task, labels in targets.items():
            logits, kind = predictions[f"{task}_logits"], self._kind(task)
            if kind == "classification":
                result[task] = losses.cross_entropy(logits, class_labels(labels))
            elif kind == "multilabel":
                result[task] = losses.binary_cross_entropy(logits, labels)
            else:
                result[task] = losses.mse_loss(logits, labels)
        return result

    def compute_metrics(self, predictions: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, float]:
        """Return `<task>_<metric>` for each task in the targets, and `mean`, the mean of their main metrics."""
        self._check_tasks(targets, list(self.tasks))
        result, main = {}, []
        for task, labels in targets.items():
            kind, logits = self._kind(task), predictions[f"{task}_logits"]
            if kind == "classification":
                found = metrics.multiclass_metrics(logits, class_labels(labels))
                main.append(found["accuracy"])
            elif kind == "multilabel":
                found = metrics.multilabel_metrics(predictions["predictions"][task], labels)
                main.append(found["f1_macro"])
            else:
                found = metrics.regression_metrics(logits, labels)
                main.append(found["r2"])
            result |= {f"{task}_{name}": value for name, value in found.items()}
        return result | {"mean": sum(main) / len(main)}


class MultiTaskNLPHead(_TaskLosses):
    """A full head per language task on the same hidden states.

    Args:
        task_configs: `NLPTaskConfig`s by name, or a list of them; or the `HeadConfig` of a saved head, alone.
        shared_input_dim: Width D of the hidden states.
        use_task_specific_projections: A Linear `D -> task.hidden_size or D` per task before its head.
        head_kwargs: Options of single tasks, {task: {option: value}}.
        use_uncertainty_weighting: Learned weights of the tasks' losses on top of `loss_weight`.
        **options: Options of all heads, those of `create_nlp_head`.

    Call with hidden states (and a mask): `{task: outputs}` of all tasks, or with `task_name` the outputs of one, which
    alone is computed. Loss: `sum_t loss_weight_t * L_t` over the tasks in the targets.

    Raises:
        ValueError: For two tasks of one name, an unknown task, or a missing width.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "task_configs": None,
        "use_task_specific_projections": False,
        "head_kwargs": {},
        "shared_options": {},
        "use_uncertainty_weighting": False,
    }

    def __init__(
        self,
        task_configs: HeadConfig | Mapping[str, Any] | Sequence[Any],
        shared_input_dim: int | None = None,
        use_task_specific_projections: bool = False,
        head_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        use_uncertainty_weighting: bool = False,
        **options: Any,
    ):
        if isinstance(task_configs, HeadConfig) or (isinstance(task_configs, Mapping) and "head_type" in task_configs):
            super().__init__(task_configs)
            return
        if shared_input_dim is None:
            raise ValueError(
                "[MultiTaskNLPHead] expected shared_input_dim but got None. Give the encoder's hidden size."
            )
        tasks = list(task_configs.values()) if isinstance(task_configs, Mapping) else list(task_configs)
        fields = [
            (task if isinstance(task, NLPTaskConfig) else NLPTaskConfig.from_dict(task)).to_dict() for task in tasks
        ]
        names = list(task_configs) if isinstance(task_configs, Mapping) else [task["name"] for task in fields]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"[MultiTaskNLPHead] expected tasks of different names but got {names}. Rename them.")
        extra = {
            "task_configs": dict(zip(names, fields, strict=True)),
            "use_task_specific_projections": use_task_specific_projections,
            "head_kwargs": {task: dict(kwargs) for task, kwargs in (head_kwargs or {}).items()},
            "shared_options": options,
            "use_uncertainty_weighting": use_uncertainty_weighting,
        }
        super().__init__(HeadConfig("multi_task_nlp", shared_input_dim, len(names), extra=extra))

    def _check_options(self) -> None:
        super()._check_options()
        mine, plain = self.config, HeadConfig(self.config.head_type, self.config.input_size, self.config.output_size)
        own = ("extra", "name", "loss_weight", "competition_metric")
        set_here = [key for key, value in plain.to_dict().items() if key not in own and getattr(mine, key) != value]
        if set_here:
            raise ValueError(
                f"[MultiTaskNLPHead] expected options of the tasks' heads in shared_options or head_kwargs but got "
                f"{', '.join(set_here)} of the head itself. Move them."
            )

    def _build_pooling(self) -> None:
        """Each task's head pools for itself."""

    def _build_projection(self) -> None:
        """Each task has its own; see `_build_output_layer`."""

    def _build_output_layer(self) -> None:
        from heads.nlp import create_nlp_head

        width, own_projections = self.config.input_size, self.option("use_task_specific_projections")
        tasks = {name: NLPTaskConfig.from_dict(task) for name, task in self.option("task_configs").items()}
        self.task_configs = MappingProxyType(tasks)  # a plain dict would count as parameters
        self._check_tasks(self.option("head_kwargs"), list(self.task_configs))
        sizes = {name: (task.hidden_size or width) for name, task in self.task_configs.items()}
        if own_projections:
            self.projections = {name: glorot_linear(width, size) for name, size in sizes.items()}
        self.task_heads = {
            name: create_nlp_head(
                task,
                sizes[name] if own_projections else width,
                **{**self.option("shared_options"), **self.option("head_kwargs").get(name, {})},
            )
            for name, task in self.task_configs.items()
        }

    def _build_loss_function(self) -> None:
        self._build_task_weights(list(self.task_configs))

    def _weight(self, task: str) -> float:
        return self.task_configs[task].loss_weight

    def __call__(
        self, hidden_states: Any, attention_mask: mx.array | None = None, task_name: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return `{task: outputs}`, or the outputs of `task_name` alone."""
        if task_name is not None:
            self._check_tasks({task_name: None}, list(self.task_configs))
        return super().__call__(hidden_states, attention_mask, task_name=task_name, **kwargs)

    def forward(
        self, hidden_states: mx.array, attention_mask: mx.array | None = None, task_name: str | None = None
    ) -> dict[str, Any]:
        if task_name is not None:
            return self._run(task_name, hidden_states, attention_mask)
        return {name: self._run(name, hidden_states, attention_mask) for name in self.task_heads}

    def _run(self, task: str, hidden_states: mx.array, attention_mask: mx.array | None) -> dict[str, Any]:
        if "projections" in self:
            if attention_mask is not None:  # so that no content of a padded position reaches the projection's gradient
                hidden_states = zero_padding(hidden_states, as_boolean_mask(attention_mask, hidden_states.shape[:-1]))
            hidden_states = self.projections[task](hidden_states)
        return self.task_heads[task](hidden_states, attention_mask)

    def compute_losses(self, predictions: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, mx.array]:
        """Return the loss of each task that has a target, without weights."""
        self._check_tasks(targets, list(self.task_heads))
        return {task: self.task_heads[task].compute_loss(predictions[task], labels) for task, labels in targets.items()}

    def compute_metrics(self, predictions: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, float]:
        """Return `<task>_<metric>` for each task in the targets."""
        self._check_tasks(targets, list(self.task_heads))
        return {
            f"{task}_{name}": value
            for task, labels in targets.items()
            for name, value in self.task_heads[task].compute_metrics(predictions[task], labels).items()
        }
