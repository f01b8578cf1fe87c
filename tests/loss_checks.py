"""What the tests of losses share: numbers, closeness, and values and gradients against torch."""

import mlx.core as mx
import numpy as np
import torch

RNG = np.random.default_rng(0)


def normal(*shape, scale=1.0):
    return (scale * RNG.normal(size=shape)).astype(np.float32)


def close(found, expected, atol=1e-5):
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-5, atol=atol)


def same_as_torch(ours, theirs, *inputs, atol=1e-5):
    """Equal values and gradients of two functions of float arrays."""
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    expected = theirs(*tensors)
    expected.backward()
    value, gradients = mx.value_and_grad(ours, argnums=list(range(len(inputs))))(*map(mx.array, inputs))
    close(value, expected.item(), atol)
    gradients = [gradients] if len(inputs) == 1 else gradients
    for gradient, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(np.array(gradient), tensor.grad.numpy(), atol=atol)
