"""What holds for every objective that the trainer takes."""

import mlx.core as mx
import numpy as np

from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.objective import evaluate
from mlx_bert.training.optimizers import GroupedOptimizer, ParameterGroup
from mlx_bert.training.step import TrainingStep, flat_parameters, install


def assert_adds_up(model, objective, parts, whole):
    """Check that an update of several batches, and their evaluation, are those of one batch of all their examples."""
    before = flat_parameters(model.eval())

    def update(batches):
        install(model, before)
        optimizer = GroupedOptimizer([ParameterGroup("all", "adafactor", 1.0, 0.0, tuple(before))], before)
        optimizer.apply = lambda gradients, parameters: {n: parameters[n] - gradients[n] for n in parameters}
        step = TrainingStep(model, objective, optimizer, TrainingArgs(max_grad_norm=0, compile=False))
        losses, weights, _ = step(batches, list(range(len(batches))))
        after = {name: np.array(array) for name, array in flat_parameters(model).items()}
        loss = sum(one * weight for one, weight in zip(losses, weights, strict=True)) / sum(weights)
        return after, loss.item()

    (one, loss), (several, mean) = update([whole]), update(parts)
    moved = max(np.abs(one[name] - np.array(before[name])).max() for name in one)
    assert moved > 1e-2
    for name, array in one.items():
        np.testing.assert_allclose(several[name], array, atol=1e-4 * moved, err_msg=name)
    np.testing.assert_allclose(mean, loss, rtol=1e-5)
    install(model, before)
    together, apart = (evaluate(model, objective, batches)[0]["loss"] for batches in ([whole], parts))
    np.testing.assert_allclose(apart, together, rtol=1e-5)
    mx.eval(model.parameters())
