"""How a run pads its batches."""

from types import SimpleNamespace

import pytest

from heads import create_nlp_head
from mlx_bert.data.samplers import LengthBucketSampler
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.feed import labels_are_classes
from mlx_bert.training.objective import HeadObjective
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


def test_labels_of_classes_are_whole_numbers(toy, tmp_path):
    args = TrainingArgs(output_dir=str(tmp_path), progress=False)
    rows = [{"input_ids": [5, 6], "labels": label, "line": line} for label, line in ((1.0, 2), (0.5, 3))]
    with pytest.raises(ValueError, match=r"train_examples has 1 bad row.*\n  line 3: expected a class.* but got 0\.5"):
        Trainer(toy.model(), args, rows)
    with pytest.raises(ValueError, match="eval_examples has 1 bad row"):
        Trainer(toy.model(), args, rows[:1], rows)
    trainer = Trainer(toy.model(), args, rows[:1])
    assert type(trainer.feed.train[0]["labels"]) is int
    with pytest.raises(ValueError, match="examples has 1 bad row"):
        trainer.evaluate(rows)
    values = toy.model(head_type="regression", num_labels=1)
    assert Trainer(values, args, rows).feed.train == rows


def test_which_labels_are_classes(toy):
    kinds = {"multiclass_classification": True, "ordinal_regression": True, "multilabel_classification": False,
             "binary_classification": False, "token_classification": True}  # fmt: skip
    for kind, wanted in kinds.items():
        assert labels_are_classes(toy.model(head_type=kind), HeadObjective()) is wanted
    texts = {n: create_nlp_head({"task_type": "text_classification", "name": "t", "num_labels": n}, 32) for n in (1, 2)}
    model = SimpleNamespace(head=SimpleNamespace(task_heads={"value": texts[1], "topic": texts[2]}))
    assert labels_are_classes(model, HeadObjective()) == ["topic"]
    assert labels_are_classes(model, object()) is False
    assert labels_are_classes(SimpleNamespace(head=texts[2]), HeadObjective()) is True
