"""Learning-rate schedules: pure functions from the number of updates done to a factor of the base rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_bert.training.args import TrainingArgs

Schedule = Callable[[int], float]
SCHEDULES = ("cosine", "linear", "constant", "cosine_per_epoch", "polynomial")


def create_schedule(
    name: str, total_steps: int, warmup_steps: int = 0, steps_per_epoch: int = 1, power: float = 2.0
) -> Schedule:
    """Build a schedule: a linear warm-up from 0, then the named course down to 0 (``constant`` stays at 1).

    ``cosine``: half a cosine over the steps after the warm-up. ``linear``: a straight line. ``polynomial``:
    ``(1 - progress)^power``. ``cosine_per_epoch``: ``(1 + cos(pi e / E)) / 2``, constant within epoch e of E.

    Args:
        name: one of ``SCHEDULES``.
        total_steps: optimiser updates of the whole run.
        warmup_steps: updates of the warm-up.
        steps_per_epoch: updates of one epoch, for ``cosine_per_epoch``.
        power: exponent of ``polynomial``.

    Returns:
        step (updates done, from 0) -> factor in [0, 1].
    """
    if name not in SCHEDULES:
        raise ValueError(f"[schedule] expected one of {', '.join(SCHEDULES)} but got {name!r}. Choose one of them.")
    if warmup_steps < 0 or total_steps < 1:
        raise ValueError(
            f"[schedule] expected warmup_steps >= 0 and total_steps >= 1 but got {warmup_steps} and {total_steps}."
        )
    epochs = max(1, math.ceil(total_steps / steps_per_epoch))

    def factor(step: int) -> float:
        if name == "cosine_per_epoch":
            course = 0.5 * (1 + math.cos(math.pi * min(step // steps_per_epoch, epochs) / epochs))
            return course * (step / warmup_steps if step < warmup_steps else 1.0)
        if step < warmup_steps:
            return step / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        if name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if name == "linear":
            return 1 - progress
        if name == "polynomial":
            return (1 - progress) ** power
        return 1.0

    return factor


def schedules_of(args: TrainingArgs, total_steps: int, steps_per_epoch: int) -> tuple[Schedule, Schedule]:
    """The schedules of the encoder and of the head that the settings ask for; see :func:`create_schedule`."""
    warmup = math.ceil(args.warmup_ratio * total_steps) if args.warmup_steps is None else args.warmup_steps
    own = warmup if args.head_warmup_ratio is None else math.ceil(args.head_warmup_ratio * total_steps)
    power = 2.0 if args.schedule_power is None else args.schedule_power
    return (
        create_schedule(args.schedule, total_steps, warmup, steps_per_epoch, power),
        create_schedule(args.head_schedule or args.schedule, total_steps, own, steps_per_epoch, power),
    )
