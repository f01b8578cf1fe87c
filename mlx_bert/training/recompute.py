"""Gradient checkpointing: keep each layer's input only and compute the layer again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn


@contextmanager
def random_key(key: mx.array) -> Iterator[None]:
    """Let ``mx.random.bernoulli`` (all of dropout) draw from ``key``.

    ``mx.checkpoint`` runs its function a second time, and the global generator has moved on by then: dropout would
    drop other values in the backward pass than in the forward pass and the gradient would be wrong (mlx 0.32.4).
    """
    original = mx.random.bernoulli

    def bernoulli(*args: Any, **kwargs: Any) -> mx.array:
        nonlocal key
        key, own = mx.random.split(key)
        return original(*args, **{**kwargs, "key": own})

    mx.random.bernoulli = bernoulli
    try:
        yield
    finally:
        mx.random.bernoulli = original


def recomputed(call: Callable[..., Any], checkpoint: Callable[..., Any] = mx.checkpoint) -> Callable[..., Any]:
    """A module class's ``__call__`` that keeps no intermediate results.

    Args:
        call: the class's own ``__call__``.
        checkpoint: what makes a function recompute itself.
    """

    def wrapped(module: nn.Module, *args: Any) -> Any:
        if not module.training:
            return call(module, *args)
        before = module.trainable_parameters()

        shape: list[bool] = []  # which outputs are arrays: only those may cross mx.checkpoint

        key = fresh_key()  # captured, not passed: there is no gradient through random numbers

        def run(parameters: dict[str, Any], *arrays: mx.array) -> list[mx.array]:
            given = iter(arrays)
            inputs = [next(given) if isinstance(arg, mx.array) else arg for arg in args]
            module.update(parameters)
            with random_key(key):
                result = call(module, *inputs)
            outputs = result if isinstance(result, tuple) else (result,)
            shape[:] = [isinstance(output, mx.array) for output in outputs]
            shape.append(isinstance(result, tuple))
            return [output for output in outputs if isinstance(output, mx.array)]

        kept = iter(checkpoint(run)(before, *[arg for arg in args if isinstance(arg, mx.array)]))
        module.update(before)
        *are_arrays, is_tuple = shape
        outputs = tuple(next(kept) if is_array else None for is_array in are_arrays)
        return outputs if is_tuple else outputs[0]

    return wrapped


def fresh_key() -> mx.array:
    """A key drawn from the global generator, uint32 ``(2,)``."""
    return mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)


@contextmanager
def gradient_checkpointing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Recompute these layers' results in every backward pass while the context lasts.

    The class's ``__call__`` is replaced: one on the instance would never be looked up. Layers called with keyword
    arrays are not supported; encoders pass theirs by position.
    """
    originals = {kind: kind.__call__ for kind in {type(layer) for layer in layers}}
    for kind, call in originals.items():
        kind.__call__ = recomputed(call)
    try:
        yield
    finally:
        for kind, call in originals.items():
            kind.__call__ = call


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the encoder that a model is or has.

    Raises:
        ValueError: there are none.
    """
    for owner in (getattr(model, "bert", None), model):
        encoder = getattr(owner, "encoder", None)
        if encoder is not None and getattr(encoder, "layers", None):
            return list(encoder.layers)
    raise ValueError("[recompute] expected a model with encoder layers but got none. Set gradient_checkpointing off.")
