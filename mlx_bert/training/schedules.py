"""Learning-rate schedules: pure functions from the number of updates done to a factor of the base rate."""

from __future__ import annotations

import math
from collections.abc import Callable

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
