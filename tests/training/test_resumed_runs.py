"""A run that is cut off where it hurts, and resumed, ends as the uninterrupted one, bit for bit."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.checkpoints import list_checkpoints
from mlx_bert.training.outcome import TrainingInterrupted
from mlx_bert.training.trainer import Trainer

BASE = {"batch_size": 8, "learning_rate": 3e-3, "progress": False, "metric": "loss"}  # 24 examples: 3 updates per epoch


class Stop(Callback):
    """Asks to stop after some updates, as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        if trainer.state.step == self.step:
            trainer._stop = True


class Kill(Callback):
    """Ends the run at the evaluation after some updates, without a checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_evaluate(self, trainer, record):
        if record["step"] == self.step:
            raise KeyboardInterrupt


def trainer(toy, folder, settings, *callbacks):
    args = TrainingArgs(**{**BASE, **settings}, output_dir=str(folder))
    return Trainer(toy.model(), args, toy.examples(24), toy.examples(9, 1), toy.tokenizer, callbacks=callbacks)


def final(folder):
    return {
        f"{model}.{part}.{name}": array
        for model in ("final_model", "best_model")
        for part in ("bert", "head")
        for name, array in load_file(folder / model / part / "model.safetensors").items()
    }


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """The outcome and the folder of the uninterrupted run with some settings, which is trained once."""
    done = {}

    def run(settings):
        key = str(settings)
        if key not in done:
            folder = tmp_path_factory.mktemp("whole")
            done[key] = trainer(toy, folder, settings).train(), folder
        return done[key]

    return run


def assert_same_end(first, second):
    expected, found = final(first), final(second)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("stop", [6, 7, 8])  # where a checkpoint is due, and where none is
@pytest.mark.parametrize(
    "settings",
    [
        {"average_checkpoints": 2, "keep_checkpoints": 2},
        {"average_checkpoints": 2, "keep_checkpoints": 0},
        {"average_checkpoints": 2, "keep_checkpoints": 2, "average_of": "best", "greater_is_better": True},
    ],
)
def test_the_checkpoint_of_a_stop_does_not_change_the_mean(toy, whole, tmp_path, stop, settings):
    settings = {"epochs": 3, **settings}
    expected, folder = whole(settings)
    with pytest.raises(TrainingInterrupted, match="checkpoint_epoch_2 " if stop == 6 else f"checkpoint_{stop} "):
        trainer(toy, tmp_path / "parts", settings, Stop(stop)).train()
    parts = trainer(toy, tmp_path / "parts", settings).train(resume=True)
    assert parts.history["epochs"][-1]["averaged"] == expected.history["epochs"][-1]["averaged"]
    assert_same_end(folder, tmp_path / "parts")


def test_a_stop_keeps_what_the_mean_needs(toy, tmp_path):
    settings = {"epochs": 3, "average_checkpoints": 2, "keep_checkpoints": 2}
    with pytest.raises(TrainingInterrupted):
        trainer(toy, tmp_path, settings, Stop(7)).train()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [3, 6, 7]
    trainer(toy, tmp_path, settings).train(resume=True)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [6, 7, 9]  # the newest two, and the two of the mean


@pytest.mark.parametrize("kill", [4, 5, 6, 7])
def test_the_best_weights_of_a_later_phase_are_not_those_of_an_earlier_one(toy, whole, tmp_path, kill):
    """The newest checkpoint ends the head's phase, whose best weights the next one begins with."""
    settings = {"freeze_epochs": 1, "epochs": 2, "eval_every": 1, "save_every": 3, "keep_checkpoints": 1}
    _, folder = whole(settings)
    with pytest.raises(KeyboardInterrupt):
        trainer(toy, tmp_path / "parts", settings, Kill(kill)).train()
    trainer(toy, tmp_path / "parts", settings).train(resume=True)
    assert_same_end(folder, tmp_path / "parts")


@pytest.mark.parametrize("stop", [7, 10])
def test_a_run_goes_on_in_another_folder(toy, tmp_path, whole, stop):
    """With the best weights from before: the first epoch is taken for the best, as its loss is the greatest."""
    settings = {"epochs": 4, "greater_is_better": True}
    expected, folder = whole(settings)
    assert expected.best_step < stop
    with pytest.raises(TrainingInterrupted):
        trainer(toy, tmp_path / "one", settings, Stop(stop)).train()
    found = trainer(toy, tmp_path / "other", settings).train(resume=tmp_path / "one" / f"checkpoint_{stop}")
    assert (found.metrics, found.best_step) == (expected.metrics, expected.best_step)
    assert_same_end(folder, tmp_path / "other")


def test_best_weights_that_are_gone_are_not_waited_for(toy, tmp_path, whole, caplog):
    """The run is complete: its folder has no state of them."""
    settings = {"epochs": 4, "keep_checkpoints": 0}
    expected, folder = whole(settings)
    found = trainer(toy, tmp_path, settings).train(resume=folder / "checkpoint_epoch_3")
    assert "are not there any more" in caplog.text
    later = [record for record in expected.history["epochs"] if record["step"] > 9]
    assert found.metrics["loss"] == later[0]["eval_loss"]
    assert (tmp_path / "best_model").is_dir()
