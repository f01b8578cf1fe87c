"""Chunks that are embedded again in the backward pass leave the module as it was."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_bert.training.gradient_cache import embed_in_chunks
from mlx_bert.training.step import flat_parameters, install


def test_the_module_has_its_own_parameters_afterwards():
    """Not those of the gradients of a chunk, in either pass."""
    mx.random.seed(0)
    module, part = nn.Linear(4, 3), {"rows": mx.random.normal((5, 4))}
    start, given = flat_parameters(module), []

    def value(parameters, chunked):
        install(module, parameters)
        given.append(dict(parameters))
        if chunked:
            (found,) = embed_in_chunks(module, lambda _, part: module(part["rows"]), [part], 2)
        else:
            found = module(part["rows"])
        assert all(array is parameters[name] for name, array in flat_parameters(module).items())
        return mx.sum(mx.square(found)) + mx.sum(module.weight**3)

    wanted, expected = mx.value_and_grad(value)(start, False)
    found, gradients = mx.value_and_grad(value)(start, True)
    assert all(array is given[-1][name] for name, array in flat_parameters(module).items())
    assert abs(found.item() - wanted.item()) < 1e-4
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[name], atol=1e-5, err_msg=name)
