"""Batches without a text twice: with in-batch negatives, a second copy of a positive would be a wrong negative."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from mlx_bert.data.samplers import BatchIndices


class NoDuplicatesSampler:
    """Shuffled batches in which no text is in two examples.

    Each example goes to the first batch of the epoch that has room and none of its texts. An example that finds none,
    because its text is in more examples than an epoch has batches, is left to another epoch.

    Args:
        texts: of each example, in any form that compares: strings, hashes.
        batch_size: examples in a batch; the last ones may be smaller.
        seed: the same seed gives the same batches.

    Raises:
        ValueError: no examples, or a batch size below 1.
    """

    def __init__(self, texts: Sequence[Sequence[Hashable]], batch_size: int, seed: int = 42) -> None:
        if not len(texts):
            raise ValueError("[sampler] expected at least one example but got none. Check the data.")
        if batch_size < 1:
            raise ValueError(f"[sampler] expected a positive batch_size but got {batch_size}. Set batch_size.")
        numbers: dict[Hashable, int] = {}
        self.texts = [frozenset(numbers.setdefault(text, len(numbers)) for text in example) for example in texts]
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        """Batches per epoch, the same for every epoch."""
        return -(-len(self.texts) // self.batch_size)

    def batches(self, epoch: int = 0) -> list[BatchIndices]:
        """The batches of an epoch, in order."""
        random = np.random.default_rng((self.seed, epoch))
        filled: list[list[int]] = [[] for _ in range(len(self))]
        present: list[set[int]] = [set() for _ in range(len(self))]
        open_batches = list(range(len(self)))
        for index in random.permutation(len(self.texts)):
            own = self.texts[index]
            place = next((place for place in open_batches if present[place].isdisjoint(own)), None)
            if place is None:
                continue
            filled[place].append(int(index))
            present[place] |= own
            if len(filled[place]) == self.batch_size:
                open_batches.remove(place)
        order = random.permutation(len(self))
        return [BatchIndices(np.array(filled[place], dtype=np.int64)) for place in order if filled[place]]
