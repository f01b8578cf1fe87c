"""Both trainers with every head: they train, evaluate, and keep the best model."""

import math

import mlx.core as mx
import numpy as np
import pytest
from head_cases import CASES, L, padding

from mlx_bert import BertWithHead, create_bert_core
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.enhanced import EnhancedTrainer, examples_of
from mlx_bert.training.trainer import Trainer

CORE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 11}
ROWS = 6


def model_of(case) -> BertWithHead:
    mx.random.seed(0)
    return BertWithHead(create_bert_core(**CORE), case.config())


def batch_of(case, start: int = 0, stop: int = ROWS) -> dict:
    shape = (ROWS, *case.inner, L)
    ids = np.random.default_rng(0).integers(1, 11, shape).astype(np.int32)
    labels = case.targets(ROWS)
    cut = {name: array[start:stop] for name, array in labels.items()} if isinstance(labels, dict) else labels
    return {
        "input_ids": mx.array(ids)[start:stop],
        "attention_mask": mx.array(padding(shape))[start:stop],
        "labels": cut if labels is None or isinstance(labels, dict) else labels[start:stop],
    }


@pytest.mark.parametrize("name", CASES)
def test_any_head_trains_and_is_measured(name, tmp_path, caplog):
    case = CASES[name]
    settings = {"batch_size": 3, "progress": False, "learning_rate": 1e-3}
    enhanced = EnhancedTrainer(model_of(case), tmp_path / "enhanced", num_epochs=1, eval_steps=2, **settings)
    result = enhanced.train([batch_of(case, 0, 3), batch_of(case, 3)], batch_of(case))
    assert result.steps == 2
    assert len(result.metrics) > 1
    assert math.isfinite(result.metrics["loss"])
    assert enhanced.evaluate(batch_of(case)) == pytest.approx(result.metrics, rel=1e-4, abs=1e-5, nan_ok=True)
    assert (tmp_path / "enhanced/best_model").is_dir()

    examples = examples_of(batch_of(case), enhanced.model.head)
    assert len(examples) == ROWS
    args = TrainingArgs(output_dir=str(tmp_path / "frozen"), epochs=1, freeze="backbone", **settings)
    trainer = Trainer(model_of(case), args, examples, examples)
    assert math.isfinite(trainer.train().metrics["loss"])
    assert trainer.feed.is_cached
    assert "the frozen encoder runs in every epoch" not in caplog.text


def test_examples_that_are_groups_are_not_batches():
    ids, mask = np.arange(1, 9).reshape(2, 4), np.array([[1, 1, 1, 0], [0, 1, 1, 1]])
    for labels, head in ((0, None), (None, "contrastive_pairs"), (0.5, "similarity_cosine")):
        item = {"input_ids": ids, "attention_mask": mask, **({} if labels is None else {"labels": labels})}
        (example,) = examples_of([item], head and model_of(CASES[head]).head)
        assert [row.tolist() for row in example["input_ids"]] == [[1, 2, 3], [6, 7, 8]]
    ragged = {"input_ids": [[1, 2, 3], [4, 5]], "labels": 1}
    (example,) = examples_of([ragged])
    assert [row.tolist() for row in example["input_ids"]] == [[1, 2, 3], [4, 5]]
    assert len(examples_of([{"input_ids": ids, "labels": [0, 1]}], model_of(CASES["contrastive_classes"]).head)) == 2
    assert len(examples_of([{"input_ids": ids, "labels": [0, 1]}], model_of(CASES["ranking_listnet"]).head)) == 1


def test_single_texts_need_labels_for_contrast(tmp_path):
    model = model_of(CASES["contrastive_classes"])
    args = TrainingArgs(output_dir=str(tmp_path), epochs=1, progress=False)
    with pytest.raises(ValueError, match="expected labels with loss 'supervised' but got none"):
        Trainer(model, args, [{"input_ids": [1, 2]}, {"input_ids": [3]}]).train()
