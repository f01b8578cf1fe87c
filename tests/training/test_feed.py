"""How a run pads its batches."""

import pytest

from mlx_bert.data.samplers import LengthBucketSampler
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.trainer import Trainer


@pytest.mark.parametrize(("compiled", "length"), [(None, 7), (False, 7), (True, 16)])
def test_padding_to_few_lengths_where_the_update_is_compiled(toy, tmp_path, compiled, length):
    examples = [{"input_ids": [5] * tokens, "labels": 0} for tokens in (4, 7)]
    args = TrainingArgs(output_dir=str(tmp_path), compile=compiled, batch_size=2, progress=False)
    feed = Trainer(toy.model(), args, examples).feed
    (batch,) = feed.collated(feed.sampler.batches(0))
    assert batch["input_ids"].shape == (2, length)


def test_data_frames_are_examples(toy, tmp_path):
    import pandas

    examples = [{"input_ids": [5, 6], "labels": label} for label in (0, 1)]
    args = TrainingArgs(output_dir=tmp_path, progress=False)
    assert Trainer(toy.model(), args, pandas.DataFrame(examples), iter(examples)).feed.train == examples
    with pytest.raises(ValueError, match=r"expected examples, a dict each, but got 'train.csv'"):
        Trainer(toy.model(), args, "train.csv")


def test_sampling_is_not_given_beside_a_sampler(toy, tmp_path):
    examples = [{"input_ids": [5, 6], "labels": label} for label in (0, 1)]
    args = TrainingArgs(output_dir=str(tmp_path), sampling="class_balanced", progress=False)
    with pytest.raises(ValueError, match="expected sampling 'shuffle' where the batches come from LengthBucketSampler"):
        Trainer(toy.model(), args, examples, sampler=LengthBucketSampler([2, 2], 1))
