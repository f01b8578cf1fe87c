"""The outputs of a frozen encoder, computed once per text, so that training a head costs only the head.

Dimension key: L tokens, D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_bert.data.collate import Arrays, Collator, token_count
from mlx_bert.data.readers import Example
from mlx_bert.data.samplers import BatchIndices, LengthBucketSampler

logger = logging.getLogger(__name__)
MIB = 1 << 20


def cache_size(examples: Sequence[Example], hidden_size: int) -> int:
    """Bytes of the cached outputs of these examples in float32."""
    return sum(token_count(example) for example in examples) * hidden_size * 4


def can_cache(examples: Sequence[Example], hidden_size: int, limit_mb: int) -> bool:
    """Whether the outputs fit the limit; groups of texts (choices) are not cached."""
    if any(np.ndim(example["input_ids"][0]) for example in examples):
        return False
    needed = cache_size(examples, hidden_size)
    if needed > limit_mb * MIB:
        logger.info(
            "[cache] %d MiB of encoder outputs exceed cache_limit_mb; the encoder runs each time.", needed // MIB
        )
        return False
    return True


def cache_encoder(
    bert: Any, examples: Sequence[Example], collator: Collator, batch_size: int, progress: Any = None
) -> list[Example]:
    """Add ``hidden_states`` float32 ``(L, D)`` to each example.

    Args:
        bert: the encoder, in evaluation mode.
        examples: tokenised.
        collator: pads the batches.
        batch_size: texts per forward pass.
        progress: wraps the batches, for example in a progress bar.
    """

    def states(batch: Arrays) -> mx.array:
        encoded = bert(
            batch["input_ids"], batch.get("attention_mask"), batch.get("token_type_ids"), compute_pooling=False
        )
        return encoded.last_hidden_state.astype(mx.float32)

    sampler = LengthBucketSampler([token_count(example) for example in examples], batch_size, shuffle=False)
    batches: Iterable[BatchIndices] = sampler.batches()
    cached: list[Example] = list(examples)
    for batch in progress(batches) if progress else batches:
        chosen = [examples[index] for index in batch.indices]
        arrays = collator([{key: value for key, value in example.items() if key != "labels"} for example in chosen])
        rows = np.array(states(arrays))
        for index, example, row in zip(batch.indices, chosen, rows, strict=True):
            length = token_count(example)
            own = row[:length] if collator.padding_side == "right" else row[len(row) - length :]
            cached[index] = {**example, "hidden_states": own.copy()}
    return cached
