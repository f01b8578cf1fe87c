"""How a run pads its batches."""

import pytest

from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.trainer import Trainer


@pytest.mark.parametrize(("compiled", "length"), [(None, 7), (False, 7), (True, 16)])
def test_padding_to_few_lengths_where_the_update_is_compiled(toy, tmp_path, compiled, length):
    examples = [{"input_ids": [5] * tokens, "labels": 0} for tokens in (4, 7)]
    args = TrainingArgs(output_dir=str(tmp_path), compile=compiled, batch_size=2, progress=False)
    feed = Trainer(toy.model(), args, examples).feed
    (batch,) = feed.collated(feed.sampler.batches(0))
    assert batch["input_ids"].shape == (2, length)
