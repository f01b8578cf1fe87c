"""Examples drawn by their own weights."""

import numpy as np
import pytest

from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.trainer import Trainer


def test_weights_of_examples_say_how_often_they_are_drawn(toy, tmp_path):
    examples = [{**example, "weight": float(number < 3)} for number, example in enumerate(toy.examples(12))]
    args = TrainingArgs(output_dir=str(tmp_path), batch_size=4, sampling="weighted", progress=False)
    feed = Trainer(toy.model(), args, examples, tokenizer=toy.tokenizer).feed
    drawn = np.concatenate([batch.indices for epoch in range(3) for batch in feed.sampler.batches(epoch)])
    assert len(drawn) == 36
    assert set(drawn.tolist()) == {0, 1, 2}
    for weights in ([None] * 12, [0.0] * 12):
        wrong = [{**e, "weight": w} for e, w in zip(examples, weights, strict=True)]
        with pytest.raises(ValueError, match="expected a weight in every example, not all 0"):
            Trainer(toy.model(), args, wrong, tokenizer=toy.tokenizer)


def test_answers_have_no_classes_to_balance(toy, tmp_path):
    args = TrainingArgs(output_dir=str(tmp_path), sampling="class_balanced", progress=False)
    answers = [{"input_ids": [1, 2], "labels": {"start_positions": 0, "end_positions": 1}}]
    with pytest.raises(ValueError, match="expected one class per example with sampling 'class_balanced'"):
        Trainer(toy.model(), args, answers)
