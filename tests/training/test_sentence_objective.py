"""The loss over the batches of all ranks, with a stand-in for the other rank."""

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from mlx_bert.training.sentence_losses import MultipleNegativesRanking
from mlx_bert.training.sentence_objective import GatheredObjective


class TwoRanks:
    """This one and another, which sends what this one would in float32, the other way round."""

    rank, size = 0, 2

    def gather(self, arrays):
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
        return [arrays, {name: -array for name, array in arrays.items()}]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_embeddings_of_16_bits_are_compared_in_float32(dtype):
    objective = GatheredObjective(MultipleNegativesRanking(), [0, 0], TwoRanks())
    rows = {f"embeddings_{number}": mx.random.normal((3, 4), key=mx.random.key(number)) for number in range(2)}
    half = {name: array.astype(dtype) for name, array in rows.items()}
    whole = {name: array.astype(mx.float32) for name, array in half.items()}
    model = SimpleNamespace(training=True)
    (found, weight), (wanted, _) = (objective.loss(model, outputs, {}) for outputs in (half, whole))
    assert (found.dtype, weight.item()) == (mx.float32, 3)
    assert found.item() == wanted.item()
