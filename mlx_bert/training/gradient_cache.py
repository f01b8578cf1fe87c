"""Embeddings of a large batch in the memory of a small one: each chunk is computed again in the backward pass.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983.

Dimension key: B batch, E embedding size, C texts of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_bert.data.collate import Arrays
from mlx_bert.training.recompute import fresh_key, random_key

Embed = Callable[[int, Arrays], mx.array]


def embed_in_chunks(module: nn.Module, embed: Embed, parts: Sequence[Arrays], chunk_size: int) -> list[mx.array]:
    """Embed the parts of a batch chunk by chunk; gradients flow into the module's trainable parameters.

    Each chunk waits for the one before it, and in the backward pass for that one's gradients, so that the
    intermediate results of a single chunk are held at a time. A chunk has dropout of its own, the same in both passes.

    Args:
        module: what ``embed`` runs.
        embed: ``(number of the part, arrays of C texts) -> (C, E)``.
        parts: dicts of arrays ``(B, ...)``.
        chunk_size: C.

    Returns:
        One array ``(B, E)`` for each part.
    """
    chunks = [
        (number, {name: array[start : start + chunk_size] for name, array in part.items()})
        for number, part in enumerate(parts)
        for start in range(0, next(iter(part.values())).shape[0], chunk_size)
    ]
    keys = mx.random.split(fresh_key(), len(chunks))
    before = module.trainable_parameters()
    names, values = zip(*tree_flatten(before), strict=True) if tree_flatten(before) else ((), ())

    def run(place: int, values: Sequence[mx.array], after: Sequence[mx.array]) -> mx.array:
        number, chunk = chunks[place]
        if after:
            first = next(iter(chunk))
            chunk = {**chunk, first: mx.depends(chunk[first], list(after))}
        module.update(tree_unflatten(list(zip(names, values, strict=True))))
        try:
            with random_key(keys[place]):
                return embed(number, chunk)
        finally:
            module.update(before)  # not those of a gradient, which hold all that it was computed from

    def forward(*values: mx.array) -> list[mx.array]:
        embeddings: list[mx.array] = []
        for place in range(len(chunks)):
            embeddings.append(run(place, values, embeddings[-1:]))
        return embeddings

    cached = mx.custom_function(forward)

    @cached.vjp
    def backward(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> list[mx.array]:
        total: list[mx.array] = []
        for place, cotangent in enumerate(cotangents):
            after = total or [cotangent]
            _, gradients = mx.vjp(lambda *v, p=place, a=after: run(p, v, a), list(primals), [cotangent])
            total = [a + b for a, b in zip(total, gradients, strict=True)] if total else gradients
        return total

    embeddings = cached(*values) if values else forward()
    found = [[] for _ in parts]
    for (number, _), array in zip(chunks, embeddings, strict=True):
        found[number].append(array)
    return [mx.concatenate(arrays) for arrays in found]
