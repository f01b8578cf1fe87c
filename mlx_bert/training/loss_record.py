"""The losses of the updates since the last reading: read together, so that the loop seldom waits for the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_bert.data.samplers import BatchIndices
from mlx_bert.training.distributed import World
from mlx_bert.training.outcome import NonFiniteLoss


class Reading(NamedTuple):
    """What the updates since the last reading came to, over all ranks.

    Attributes:
        total: sum of the batches' losses, each times its weight.
        weight: sum of the weights.
        grad_norm: mean norm of the gradients before clipping.
    """

    total: float
    weight: float
    grad_norm: float


class LossRecord:
    """Collects the losses of updates, and checks them when it reads them.

    Args:
        world: the ranks.
        name_of: what a message calls the examples of a batch.
    """

    def __init__(self, world: World, name_of: Callable[[BatchIndices], str]) -> None:
        self.world = world
        self.name_of = name_of
        self._pending: list[tuple[Any, ...]] = []

    def add(
        self,
        step: int,
        passes: int,
        group: list[BatchIndices],
        losses: list[mx.array],
        weights: list[mx.array],
        norm: mx.array,
    ) -> None:
        """Note an update: its number, the epochs before it, its batches, what ``TrainingStep`` returned."""
        self._pending.append((step, passes, group, losses, weights, norm))

    def read(self) -> Reading | None:
        """Wait for what was added and forget it; None if that is nothing.

        Raises:
            NonFiniteLoss: a loss or a gradient is not finite; the message names the batch.
        """
        if not self._pending:
            return None
        pending, self._pending = self._pending, []
        losses = [np.array(mx.stack(losses)).astype(np.float64) for *_, losses, _, _ in pending]
        weights = [np.array(mx.stack(weights)).astype(np.float64) for *_, weights, _ in pending]
        norms = [norm.item() for *_, norm in pending]
        finite = [bool(np.isfinite(values).all()) for values in losses]
        ranks = self.world.gather(
            {
                "sums": np.array([sum((l * w).sum() for l, w in zip(losses, weights, strict=True)),
                                  sum(w.sum() for w in weights)]),
                "finite": np.array(finite),
            }
        )  # fmt: skip
        for number, (step, passes, group, *_) in enumerate(pending):
            if not finite[number]:
                batch = group[int(np.argmax(~np.isfinite(losses[number])))]
                raise self._not_finite("loss", losses[number].sum(), step, passes, batch)
            if elsewhere := [rank for rank, found in enumerate(ranks) if not found["finite"][number]]:
                raise NonFiniteLoss(
                    f"[train] the loss of update {step} (epoch {passes + 1}) is not finite on rank {elsewhere[0]}, "
                    "whose message names the batch."
                )
            if not math.isfinite(norms[number]):
                raise self._not_finite("gradient", norms[number], step, passes, group[0])
        total, weight = np.sum([found["sums"] for found in ranks], axis=0)
        return Reading(float(total), float(weight), float(np.mean(norms)))

    def _not_finite(self, what: str, value: float, step: int, passes: int, batch: BatchIndices) -> NonFiniteLoss:
        return NonFiniteLoss(
            f"[train] the {what} of update {step} (epoch {passes + 1}) is {value}. Its batch: "
            f"{self.name_of(batch)}. Check those labels and texts, or lower learning_rate."
        )
