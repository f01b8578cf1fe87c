"""Parameter groups, each with its own optimiser, learning rate and weight decay, and one update over all of them.

Parameters and gradients are flat dicts here, from a parameter's path (``"bert.encoder.layers.0.mlp.up.weight"``) to
its array.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.freezing import task_paths

ENCODER = "bert."
HEAD_RATE = 10.0  # a new head learns faster than a pretrained encoder
HEAD_SETTINGS = ("head_learning_rate", "head_weight_decay", "head_schedule", "head_warmup_ratio")
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@mx.compile
def _adam(
    gradient: mx.array, parameter: mx.array, m: mx.array, v: mx.array, rate: mx.array, root: mx.array, kept: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """AdamW's update of one array in one pass over it; on a CPU each of its fifteen operations was a pass."""
    b1, b2 = BETAS
    m = b1 * m + (1 - b1) * gradient
    v = b2 * v + (1 - b2) * mx.square(gradient)
    return kept * parameter - rate * m / (mx.sqrt(v) * root + EPSILON), m, v


class FusedAdamW(optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019) with bias correction, as in ``torch.optim.AdamW``, one kernel per array."""

    def __init__(self, learning_rate: float, weight_decay: float) -> None:
        super().__init__(learning_rate, list(BETAS), EPSILON, weight_decay, bias_correction=True)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]) -> mx.array:
        (b1, b2), rate = self.betas, self.learning_rate
        scalars = rate / (1 - b1**self.step), mx.rsqrt(1 - b2**self.step), 1 - rate * self.weight_decay
        updated, state["m"], state["v"] = _adam(
            gradient, parameter, state["m"], state["v"], *(scalar.astype(gradient.dtype) for scalar in scalars)
        )
        return updated


class L2Adam(optim.Adam):
    """Adam (Kingma & Ba 2014) whose weight decay is added to the gradient, as in ``torch.optim.Adam``."""

    def __init__(self, learning_rate: float, weight_decay: float) -> None:
        super().__init__(learning_rate, bias_correction=True)
        self.weight_decay = weight_decay

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]) -> mx.array:
        return super().apply_single(gradient + self.weight_decay * parameter, parameter, state)


class MatchedMuon(optim.Muon):
    """Muon with decoupled decay, its update scaled by ``0.2 sqrt(max(rows, columns))`` to the size of AdamW's.

    So one learning rate fits both (Liu et al. 2025, "Muon is scalable for LLM training", arXiv 2502.16982).
    """

    def __init__(self, learning_rate: float, weight_decay: float) -> None:
        super().__init__(learning_rate, weight_decay=0.0)
        self.decoupled_decay = weight_decay

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]) -> mx.array:
        rows, columns = parameter.shape
        own_scale = max(1, rows / columns) ** 0.5  # what MLX's Muon multiplies by
        step = parameter - super().apply_single(gradient, parameter, state)
        kept = parameter * (1 - self.learning_rate * self.decoupled_decay)
        return kept - step * (0.2 * max(rows, columns) ** 0.5 / own_scale)


def _create(algorithm: str, learning_rate: float, weight_decay: float) -> optim.Optimizer:
    if algorithm == "adamw":
        return FusedAdamW(learning_rate, weight_decay)
    if algorithm == "adam":
        return L2Adam(learning_rate, weight_decay)
    if algorithm == "lion":
        return optim.Lion(learning_rate, weight_decay=weight_decay)
    if algorithm == "muon":
        return MatchedMuon(learning_rate, weight_decay)
    return optim.Adafactor(
        learning_rate, weight_decay=weight_decay, scale_parameter=False, relative_step=False, warmup_init=False
    )


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are updated alike.

    Attributes:
        name: for example ``"encoder"``, ``"head, no decay"``.
        algorithm: name of the optimiser.
        learning_rate: peak learning rate.
        weight_decay: 0 for biases and norms.
        parameters: their paths.
        is_head: whether they follow the head's schedule.
        task: the one of several tasks that they belong to, "" for none: an update without an example of it leaves
            them and their moments as they are.
    """

    name: str
    algorithm: str
    learning_rate: float
    weight_decay: float
    parameters: tuple[str, ...]
    is_head: bool = False
    task: str = ""


def parameter_groups(model: nn.Module, args: TrainingArgs, rate_factor: float = 1.0) -> list[ParameterGroup]:
    """Group a model's trainable parameters by what ``args`` says of them.

    Names that begin with ``bert.`` are the encoder's, all others the head's; without such names the whole model trains
    with ``learning_rate``. Arrays of fewer than two axes (biases,
    norms, single factors) have no weight decay. With ``layer_decay`` d, the encoder's layer k of n has d^(n - k) times
    the encoder's rate (k from 1; the embeddings are k = 0). Muon takes the encoder's matrices; embeddings, vectors and
    the head go to AdamW. Of several tasks, each has groups of its own.

    Args:
        model: only its trainable parameters count.
        args: the settings.
        rate_factor: multiplies every learning rate.

    Raises:
        ValueError: nothing is trainable, there are settings for the head and no encoder beside it, or a weight decay
            for a task that the model has not.
    """
    parameters = dict(tree_flatten(model.trainable_parameters()))
    if not parameters:
        raise ValueError(
            "[optimizer] expected trainable parameters but all are frozen. Unfreeze the head or set freeze."
        )
    everything = [name for name, _ in tree_flatten(model.parameters())]
    has_encoder = any(name.startswith(ENCODER) for name in everything)
    given = [name for name in HEAD_SETTINGS if getattr(args, name) is not None]
    if not has_encoder and given:
        raise ValueError(f"[optimizer] expected a model with an encoder and a head with {given[0]}. Leave it out.")
    depth = 1 + max((int(found[1]) for name in everything if (found := _LAYER.search(name))), default=-1)
    head_rate = HEAD_RATE * args.learning_rate if args.head_learning_rate is None else args.head_learning_rate
    tasks, decays = task_paths(model), args.decays_of_tasks()
    if unknown := sorted(set(decays) - set(tasks.values())):
        raise ValueError(
            f"[optimizer] task_weight_decay names {', '.join(unknown)}, but the model's tasks are "
            f"{', '.join(sorted(set(tasks.values()))) or 'not several'}. Correct it."
        )
    members: dict[tuple[str, str, float, float, bool, str], list[str]] = {}
    for name, array in parameters.items():
        label, rate, algorithm = "head", head_rate, args.optimizer
        is_encoder = name.startswith(ENCODER) or not has_encoder
        if is_encoder:
            label, rate = "encoder" if has_encoder else "model", args.learning_rate
            if args.layer_decay < 1.0:
                found = _LAYER.search(name)
                # what is in no layer is below them (embeddings) or above (final norm, pooler)
                level = int(found[1]) + 1 if found else 0 if "embed" in name else depth
                label, rate = f"{label} level {level}", rate * args.layer_decay ** (depth - level)
        if algorithm == "muon" and not (is_encoder and array.ndim == 2 and "embed" not in name):
            label, algorithm = f"{label}, adamw", "adamw"
        usual = args.weight_decay if is_encoder or args.head_weight_decay is None else args.head_weight_decay
        task = next((task for path, task in tasks.items() if name.startswith(path)), "")
        usual = decays.get(task, usual)
        decay = usual if array.ndim >= 2 and not name.endswith("bias") else 0.0
        label = label if decay or not usual else f"{label}, no decay"
        label = f"{label}, task {task}" if task else label
        members.setdefault((label, algorithm, rate * rate_factor, decay, not is_encoder, task), []).append(name)
    return [ParameterGroup(*key[:4], tuple(names), *key[4:]) for key, names in members.items()]


def _apply_or_rest(
    optimizer: optim.Optimizer, gradients: dict[str, mx.array], parameters: dict[str, mx.array]
) -> dict[str, mx.array]:
    """The updated parameters; where all gradients are 0, they and the optimiser's state stay as they are.

    As in torch, for parameters whose ``grad`` is None. Adam would move them on, decay them, and forget how large their
    gradients are, so that the task of few batches would train with a larger rate than the others.
    """
    works = mx.any(mx.stack([mx.any(gradient != 0) for gradient in gradients.values()]))

    def kept(new: mx.array | None, old: mx.array | None) -> mx.array | None:
        return old if new is old else mx.where(works, new, old)

    before = tree_map(lambda leaf: leaf, optimizer.state)
    updated = optimizer.apply_gradients(gradients, parameters)
    optimizer.state.update(tree_map(kept, optimizer.state, before))
    return tree_map(kept, updated, parameters)


class GroupedOptimizer:
    """One optimiser per parameter group; the schedule's factor scales all learning rates.

    Args:
        groups: from :func:`parameter_groups`.
        parameters: the trainable parameters, flat; the optimisers' states are made for them.

    Attributes:
        state: one dict per group; the same objects for life, so that ``mx.compile`` can capture them.
    """

    def __init__(self, groups: list[ParameterGroup], parameters: Mapping[str, mx.array]) -> None:
        self.groups = groups
        self.optimizers = [_create(group.algorithm, group.learning_rate, group.weight_decay) for group in groups]
        for group, optimizer in zip(groups, self.optimizers, strict=True):
            optimizer.init({name: parameters[name] for name in group.parameters})
        self.state = [optimizer.state for optimizer in self.optimizers]
        mx.eval(self.state)

    def set_factor(self, factor: float, head_factor: float | None = None) -> None:
        """Set the learning rates to ``factor`` times those of the groups; ``head_factor`` is that of the head."""
        head_factor = factor if head_factor is None else head_factor
        for group, optimizer in zip(self.groups, self.optimizers, strict=True):
            optimizer.learning_rate = group.learning_rate * (head_factor if group.is_head else factor)

    def apply(self, gradients: Mapping[str, mx.array], parameters: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The updated parameters, flat."""
        updated: dict[str, mx.array] = {}
        for group, optimizer in zip(self.groups, self.optimizers, strict=True):
            own = {name: gradients[name] for name in group.parameters}
            present = {name: parameters[name] for name in group.parameters}
            apply = partial(_apply_or_rest, optimizer) if group.task else optimizer.apply_gradients
            updated |= apply(own, present)
        return updated

    def state_arrays(self) -> dict[str, mx.array]:
        """The state under flat names, ``"0/step"`` and ``"0/<parameter>/m"``, to be saved."""
        arrays: dict[str, mx.array] = {}
        for number, state in enumerate(self.state):
            for name, value in state.items():
                if isinstance(value, dict):
                    arrays |= {f"{number}/{name}/{slot}": array for slot, array in value.items() if array is not None}
                else:
                    arrays[f"{number}/{name}"] = value
        return arrays

    def load_state_arrays(self, arrays: Mapping[str, mx.array]) -> None:
        """Take a saved state, in place.

        Raises:
            ValueError: it belongs to other parameters or another optimiser.
        """
        mine = self.state_arrays()
        if differing := sorted(mine.keys() ^ arrays.keys()):
            raise ValueError(
                f"[optimizer] the saved state does not fit this run: {', '.join(differing[:5])} "
                "are in only one of the two. Resume with the same model, freezing and optimizer."
            )
        for key, array in arrays.items():
            number, _, rest = key.partition("/")
            state = self.state[int(number)]
            name, _, slot = rest.partition("/")
            if slot:
                state[name][slot] = array
            else:
                state[name] = array


def clip_by_global_norm(gradients: Mapping[str, mx.array], max_norm: float) -> tuple[dict[str, mx.array], mx.array]:
    """Scale gradients so that their global L2 norm is at most ``max_norm`` (0 for no bound), as torch does.

    Returns:
        The gradients and the norm before, float32.
    """
    norm = mx.sqrt(sum(mx.sum(mx.square(gradient.astype(mx.float32))) for gradient in gradients.values()))
    if not max_norm:
        return dict(gradients), norm
    factor = mx.minimum(max_norm / (norm + 1e-6), 1.0)
    return {name: (gradient * factor).astype(gradient.dtype) for name, gradient in gradients.items()}, norm
