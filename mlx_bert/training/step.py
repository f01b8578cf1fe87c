"""One optimiser update: gradients of a batch or of several, averaged, clipped and applied; compiled.

Parameters are flat dicts here. With ``dtype="bfloat16"`` the forward and backward pass run on copies in that type; the
weights themselves, the gradients and the optimiser stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_bert.data.collate import Arrays
from mlx_bert.encoders.cpu_trace import gradients_traced
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.distributed import World
from mlx_bert.training.objective import Objective
from mlx_bert.training.optimizers import GroupedOptimizer, clip_by_global_norm

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}
Flat = dict[str, mx.array]


def flat_parameters(model: nn.Module, trainable: bool = True) -> Flat:
    """A model's (trainable) parameters by path."""
    return dict(tree_flatten(model.trainable_parameters() if trainable else model.parameters()))


def install(model: nn.Module, parameters: Mapping[str, mx.array]) -> None:
    """Replace parameters by path."""
    model.update(tree_unflatten(list(parameters.items())))


def compiles(args: TrainingArgs) -> bool:
    """Whether the update is compiled: what ``args.compile`` says, else only on a GPU."""
    return args.compile if args.compile is not None else mx.default_device().type == mx.DeviceType.gpu


def maybe_compile(args: TrainingArgs) -> Callable[..., Any]:
    """``mx.compile``, or the same signature without compilation where :func:`compiles` says no."""
    return mx.compile if compiles(args) else lambda function, inputs=None, outputs=None: function


class TrainingStep:
    """The compiled update of a model.

    Args:
        model: its trainable parameters must not change while this object is used.
        objective: loss of a batch.
        optimizer: for the model's trainable parameters.
        args: ``dtype``, ``max_grad_norm``, ``ema_decay``.
        world: the processes whose gradients are averaged; None for those that the launcher started.

    Attributes:
        average: the exponential moving average of the trainable parameters, or empty.
        stop_asked: whether any process asked in the last update to stop.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: GroupedOptimizer,
        args: TrainingArgs,
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        self.stop_asked = False
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.max_grad_norm = args.max_grad_norm
        self.ema_decay = args.ema_decay
        self.dtype = DTYPES[args.dtype]
        self.average: Flat = flat_parameters(model) if args.ema_decay else {}
        self._sums: dict[str, Any] = {}
        state = [model.state, optimizer.state, self.average, mx.random.state]
        compiled = maybe_compile(args)
        self._whole = compiled(self._whole_step, inputs=state, outputs=state)
        self._sit_out = getattr(objective, "sit_out", None)
        # a loss that the ranks compute together waits for them, which a compiled function cannot
        part = (lambda function, **_: function) if self._sit_out else compiled
        self._part = part(self._part_step, inputs=[model.state, mx.random.state, self._sums],
                            outputs=[model.state, mx.random.state, self._sums])  # fmt: skip
        self._finish = compiled(self._finish_step, inputs=[*state, self._sums], outputs=state)

    def __call__(
        self, batches: list[Arrays | None], seeds: list[int], stop: bool = False
    ) -> tuple[list[mx.array], list[mx.array], mx.array]:
        """Do one update. With one process nothing is evaluated yet.

        Args:
            batches: those whose gradients are averaged, over all processes, weighted by what each batch's loss is a
                mean over (each term by its own); None for an empty one.
            seeds: one per batch, for dropout.
            stop: ask all processes to stop; read :attr:`stop_asked`.

        Returns:
            The loss and the weight of each batch, and the norm of the gradient before clipping; scalars.
        """
        self.stop_asked = stop
        first = batches[0]
        if len(batches) == 1 and first is not None and self.world.size == 1:
            mx.random.seed(seeds[0])
            loss, weight, norm = self._whole(first)
            return [loss], [weight], norm
        zeros = {name: mx.zeros(array.shape, mx.float32) for name, array in flat_parameters(self.model).items()}
        self._sums["gradients"], self._sums["weight"] = zeros, mx.array(0.0)
        losses, weights = [], []
        for batch, seed, share in zip(batches, seeds, self._shares(batches), strict=True):
            if batch is None:
                if self._sit_out:
                    self._sit_out()
                losses.append(mx.array(0.0))
                weights.append(mx.array(0.0))
                continue
            mx.random.seed(seed)
            loss, weight = self._part(batch) if share is None else self._part(batch, share)
            mx.async_eval(self._sums, loss)  # frees this batch's graph before the next is built
            losses.append(loss)
            weights.append(weight)
        if self.world.size > 1:
            gradients, (weight, asked) = self.world.total(
                self._sums["gradients"], [self._sums["weight"].item(), float(stop)]
            )
            self._sums["gradients"], self._sums["weight"] = gradients, mx.array(weight)
            self.stop_asked = asked > 0
        norm = self._finish()
        self._sums.clear()
        return losses, weights, norm

    def evaluate(self, *outputs: Any) -> None:
        """Compute everything that the last call left to be computed."""
        mx.eval(self.model.state, self.optimizer.state, self.average, *outputs)

    def start(self, *outputs: Any) -> None:
        """Begin to compute it, without waiting."""
        mx.async_eval(self.model.state, self.optimizer.state, self.average, *outputs)

    def _shares(self, batches: list[Arrays | None]) -> list[mx.array | None]:
        """By what the terms of each batch's loss are multiplied, ``(K,)``; None for losses of a single term.

        So that the mean over the batches, of all processes, has each term's mean over all that it is a mean over.
        """
        if not hasattr(self.objective, "weights"):
            return [None] * len(batches)
        each = [self.objective.weights(self.model, batch and batch["labels"]) for batch in batches]
        present = sum(batch is not None for batch in batches)
        _, (*total, count) = self.world.total({}, [*sum(each[1:], each[0]).tolist(), present])
        return [weight * count / mx.maximum(mx.array(total), 1e-9) for weight in each]

    def _gradients(self, batch: Arrays, share: mx.array | None = None) -> tuple[mx.array, mx.array, Flat]:
        """Loss and weight of a batch, and the loss's gradient in float32. ``share`` is a factor of each term."""
        everything = flat_parameters(self.model, trainable=False)

        def loss_of(trainable: Flat) -> tuple[mx.array, mx.array]:
            present = {**everything, **trainable}
            if self.dtype != mx.float32:
                floating = {name for name, array in present.items() if mx.issubdtype(array.dtype, mx.floating)}
                present = {n: array.astype(self.dtype) if n in floating else array for n, array in present.items()}
            install(self.model, present)
            losses, weights = self.objective.loss(self.model, self.objective.forward(self.model, batch), batch)
            if losses.ndim == 0:
                return losses, weights
            return mx.sum(losses if share is None else losses * share), mx.array(1.0)

        with gradients_traced():
            (loss, weight), gradients = mx.value_and_grad(loss_of)(flat_parameters(self.model))
        install(self.model, everything)
        return loss, weight, gradients

    def _update(self, gradients: Flat) -> mx.array:
        gradients, norm = clip_by_global_norm(gradients, self.max_grad_norm)
        updated = self.optimizer.apply(gradients, flat_parameters(self.model))
        install(self.model, updated)
        if self.ema_decay:
            for name, array in updated.items():
                self.average[name] = self.ema_decay * self.average[name] + (1 - self.ema_decay) * array
        return norm

    def _whole_step(self, batch: Arrays) -> tuple[mx.array, mx.array, mx.array]:
        loss, weight, gradients = self._gradients(batch)
        return loss, weight, self._update(gradients)

    def _part_step(self, batch: Arrays, share: mx.array | None = None) -> tuple[mx.array, mx.array]:
        loss, weight, gradients = self._gradients(batch, share)
        sums = self._sums["gradients"]
        for name, gradient in gradients.items():
            sums[name] = sums[name] + mx.where(weight > 0, gradient * weight, 0.0)
        self._sums["weight"] = self._sums["weight"] + weight
        return loss, weight

    def _finish_step(self) -> mx.array:
        total = mx.maximum(self._sums["weight"], 1e-9)
        return self._update({name: gradient / total for name, gradient in self._sums["gradients"].items()})
