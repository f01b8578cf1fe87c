"""Heads of several tasks on a frozen encoder: each is kept as it was in its own best evaluation."""

import json

import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from heads import MultiTaskNLPHead, NLPTaskConfig
from mlx_bert.model import BertWithHead
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.best_heads import FILE, BestHeads
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.distributed import World
from mlx_bert.training.multi_task import MultiTaskObjective
from mlx_bert.training.outcome import TrainingInterrupted
from mlx_bert.training.trainer import Trainer

TASKS = ("mood", "topic")


def rows(toy, count, shift):
    """Of the second task, validation (``shift`` 1) has other labels than training."""
    return [
        {**row, "labels": {"mood": row["labels"], "topic": (row["labels"] + shift) % 3}} for row in toy.examples(count)
    ]


def trainer(toy, folder, callbacks=(), **settings):
    tiny = toy.model()
    tasks = [NLPTaskConfig(name, "text_classification", num_classes=3) for name in TASKS]
    model = BertWithHead(tiny.bert, MultiTaskNLPHead(tasks, tiny.bert.get_hidden_size(), dropout_rate=0.0))
    base = {"batch_size": 8, "head_learning_rate": 0.1, "epochs": 4, "keep_checkpoints": 0, "freeze": "backbone"}
    base |= {"best_heads": True, "metric": "loss", "progress": False}
    args = TrainingArgs(**{**base, **settings}, output_dir=str(folder))
    held_out = rows(toy, 24, 1)
    objective = MultiTaskObjective()
    return Trainer(model, args, rows(toy, 24, 0), held_out, toy.tokenizer, objective=objective, callbacks=callbacks)


def arrays_of(model):
    return {name: np.array(array) for name, array in tree_flatten(model.head.parameters())}


def evaluations(result, task):
    """Loss of a task by the updates before it; without the evaluation of the heads together."""
    return {row["step"]: row[f"eval_{task}_loss"] for row in result.history["epochs"] if "best_heads" not in row}


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """A run to its end: its folder, trainer and result. Read only."""
    folder = tmp_path_factory.mktemp("whole")
    run = trainer(toy, folder)
    return folder, run, run.train()


def test_each_task_keeps_its_best_evaluation(whole):
    folder, run, result = whole
    best = {task: min(found := evaluations(result, task), key=found.get) for task in TASKS}
    assert best["mood"] != best["topic"]
    last = result.history["epochs"][-1]
    assert last["best_heads"] == best
    assert last["is_best"]
    for task in TASKS:
        assert result.metrics[f"{task}_loss"] == pytest.approx(evaluations(result, task)[best[task]], rel=1e-5)
    assert result.metrics["loss"] < min(row["eval_loss"] for row in result.history["epochs"][:-1])
    found = arrays_of(run.model)
    for task in TASKS:
        checkpoint = load_file(folder / f"checkpoint_epoch_{best[task] // 3}" / "model.safetensors")
        own = [name for name in found if f".{task}." in f".{name}"]
        assert own
        for name in own:
            np.testing.assert_array_equal(found[name], checkpoint[f"head.{name}"], err_msg=name)
    assert not (folder / FILE).exists()


def test_best_model_has_them(whole):
    folder, run, result = whole
    saved = BertWithHead.from_pretrained(folder / "best_model")
    for name, array in arrays_of(saved).items():
        np.testing.assert_array_equal(array, arrays_of(run.model)[name], err_msg=name)
    assert json.loads((folder / "best_model" / "metadata.json").read_text())["metrics"] == result.metrics
    last = BertWithHead.from_pretrained(folder / "final_model")  # stays what the last update made
    assert any((array != arrays_of(run.model)[name]).any() for name, array in arrays_of(last).items())


class Stop(Callback):
    """Ends a run as Ctrl-C does, or with an error as a kill would."""

    def __init__(self, step, kill):
        self.step, self.kill = step, kill

    def on_step(self, trainer):
        if trainer.state.step == self.step:
            if self.kill:
                raise RuntimeError("killed")
            trainer._stop = True


@pytest.mark.parametrize(("stop", "settings"), [(5, {}), (11, {"kill": True}), (2, {"kill": True})])
def test_a_resumed_run_keeps_the_same(toy, tmp_path, whole, stop, settings):
    _, run, result = whole
    with pytest.raises((TrainingInterrupted, RuntimeError)):
        trainer(toy, tmp_path, [Stop(stop, **{"kill": False, **settings})]).train()
    again = trainer(toy, tmp_path if stop < 11 else tmp_path / "elsewhere")
    found = again.train(resume=True if stop < 11 else tmp_path / "checkpoint_epoch_3")
    assert found.history["epochs"][-1]["best_heads"] == result.history["epochs"][-1]["best_heads"]
    for name, array in arrays_of(again.model).items():
        np.testing.assert_array_equal(array, arrays_of(run.model)[name], err_msg=name)


def test_a_run_begun_anew_forgets_the_one_before(toy, tmp_path, whole):
    """One that was killed before its first checkpoint, with settings under which it did well."""
    with pytest.raises(RuntimeError):
        trainer(toy, tmp_path, [Stop(5, kill=True)], save_every="no").train()
    before = BestHeads(trainer(toy, tmp_path).model, tmp_path, World(), resumed=True)
    before.update({"mood_loss": -1.0, "topic_loss": -1.0}, "loss", -1.0, 3)
    found = trainer(toy, tmp_path, save_every="no").train(resume=True)
    assert found.metrics == whole[2].metrics


def test_with_a_moving_average(toy, tmp_path):
    """What was evaluated is what is kept: the averaged heads."""
    run = trainer(toy, tmp_path, ema_decay=0.5)
    result = run.train()
    measured = run.evaluate()
    for task in TASKS:
        assert measured[f"{task}_loss"] == pytest.approx(min(evaluations(result, task).values()), rel=1e-5)


def test_a_metric_that_is_greater_when_better(toy, tmp_path):
    run = trainer(toy, tmp_path, metric="accuracy")
    result = run.train()
    for task in TASKS:
        each = [row[f"eval_{task}_accuracy"] for row in result.history["epochs"]]
        assert run.evaluate()[f"{task}_accuracy"] == max(each)


def test_values_that_are_no_numbers_do_not_count(toy, tmp_path):
    best = BestHeads(trainer(toy, tmp_path).model, tmp_path, World(), resumed=False)
    best.update({"mood_loss": float("nan"), "topic_loss": 1.0}, "loss", -1.0, 1)
    assert best.best == {"topic": (-1.0, 1)}
    best.update({"mood_loss": 2.0, "topic_loss": float("nan")}, "loss", -1.0, 2)
    assert best.best == {"topic": (-1.0, 1), "mood": (-2.0, 2)}
    best.update({"mood_loss": 2.0, "topic_loss": 0.5}, "loss", -1.0, 3)  # of equals the first
    assert best.steps == {"topic": 3, "mood": 2}


def test_where_there_is_nothing_to_put_together(toy, tmp_path):
    for settings in ({"freeze": "none"}, {"freeze": "1"}, {"eval_every": "no"}, {"average_checkpoints": 2}):
        with pytest.raises(ValueError, match="expected best_heads to be false unless the encoder is frozen"):
            trainer(toy, tmp_path, **settings)
    with pytest.raises(ValueError, match="expected best_heads with several tasks of which nothing but their heads"):
        trainer(toy, tmp_path / "1", freeze="as_is").train()
    args = TrainingArgs(output_dir=str(tmp_path / "2"), freeze="backbone", best_heads=True, progress=False)
    with pytest.raises(ValueError, match="expected best_heads with several tasks"):
        Trainer(toy.model(), args, toy.examples(8), toy.examples(8), toy.tokenizer).train()
    with pytest.raises(ValueError, match="expected eval_examples with patience, metric or best_heads"):
        Trainer(toy.model(), args, toy.examples(8), tokenizer=toy.tokenizer)
    run = trainer(toy, tmp_path / "4", metric="accuracy", epochs=1)  # one evaluation: there is nothing to put together
    assert len(run.train().history["epochs"]) == 1
    with pytest.raises(ValueError, match="expected a metric that each task has with best_heads but got 'mood_loss'"):
        trainer(toy, tmp_path / "3", metric="mood_loss").train()
