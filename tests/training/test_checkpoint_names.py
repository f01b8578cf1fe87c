"""What checkpoints are called, which one is the newest, and which are kept."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_bert.training import checkpoints
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.checkpoints import list_checkpoints, remove_partial_files
from mlx_bert.training.outcome import TrainingInterrupted
from mlx_bert.training.trainer import Trainer


class Watch(Callback):
    """Notes each update, and ends the run after some, as Ctrl-C does, or with an error."""

    def __init__(self, stop=None, crash=None):
        self.steps, self.stop, self.crash = [], stop, crash

    def on_step(self, trainer):
        self.steps.append(trainer.state.step)
        if trainer.state.step == self.stop:
            trainer._stop = True
        if trainer.state.step == self.crash:
            raise RuntimeError("power cut")


def trainer(toy, folder, *callbacks, examples=24, **settings):
    """Three updates per epoch, unless there are fewer examples."""
    base = {"batch_size": 8, "learning_rate": 3e-3, "progress": False, "epochs": 4, "keep_checkpoints": 0}
    args = TrainingArgs(**{**base, **settings}, output_dir=str(folder))
    return Trainer(toy.model(), args, toy.examples(examples), tokenizer=toy.tokenizer, callbacks=callbacks)


def names(folder):
    return [path.name for _, path in list_checkpoints(folder)]


def final(folder):
    return {
        f"{part}.{name}": array
        for part in ("bert", "head")
        for name, array in load_file(folder / "final_model" / part / "model.safetensors").items()
    }


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """The folder of the run that nothing cuts off. Read only."""
    folder = tmp_path_factory.mktemp("whole")
    trainer(toy, folder).train()
    return folder


def assert_same_end(first, second):
    expected, found = final(first), final(second)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_an_epoch_names_its_checkpoint(whole):
    assert list_checkpoints(whole) == [(3 * n, whole / f"checkpoint_epoch_{n}") for n in (1, 2, 3, 4)]
    assert {path.name for path in whole.glob("checkpoint*")} == set(names(whole))
    for step, path in list_checkpoints(whole):
        state = json.loads((path / "metadata.json").read_text())["state"]
        assert (state["step"], state["passes"]) == (step, step // 3)


def test_epochs_count_over_all_phases(toy, tmp_path):
    trainer(toy, tmp_path, freeze_epochs=1, gradual_unfreezing=1, epochs=1).train()
    assert list_checkpoints(tmp_path) == [(3 * n, tmp_path / f"checkpoint_epoch_{n}") for n in (1, 2, 3)]


def test_updates_name_theirs_at_the_end_of_an_epoch_too(toy, tmp_path):
    trainer(toy, tmp_path, save_every=3, epochs=2).train()
    assert names(tmp_path) == ["checkpoint_3", "checkpoint_6"]


def test_the_tenth_epoch_is_newer_than_the_ninth(toy, tmp_path):
    settings = {"examples": 8, "keep_checkpoints": 2, "epochs": 12}
    with pytest.raises(RuntimeError):
        trainer(toy, tmp_path, Watch(crash=11), **settings).train()
    assert names(tmp_path) == ["checkpoint_epoch_9", "checkpoint_epoch_10"]
    again = Watch()
    trainer(toy, tmp_path, again, **settings).train(resume=True)
    assert again.steps == [11, 12]
    assert names(tmp_path) == ["checkpoint_epoch_11", "checkpoint_epoch_12"]


@pytest.mark.parametrize(
    ("crash", "newest", "steps"),
    [(8, "checkpoint_7", [8, 9, 10, 11, 12]), (11, "checkpoint_epoch_3", [10, 11, 12])],
)
def test_a_run_goes_on_from_the_newest_of_both_kinds(toy, whole, tmp_path, crash, newest, steps):
    with pytest.raises(TrainingInterrupted, match=r"checkpoint_7 "):
        trainer(toy, tmp_path, Watch(stop=7)).train()
    with pytest.raises(RuntimeError):
        trainer(toy, tmp_path, Watch(crash=crash)).train(resume=True)
    order = ["checkpoint_epoch_1", "checkpoint_epoch_2", "checkpoint_7", "checkpoint_epoch_3"]
    assert names(tmp_path) == order[: order.index(newest) + 1]
    again = Watch()
    trainer(toy, tmp_path, again).train(resume=True)
    assert again.steps == steps
    assert_same_end(whole, tmp_path)


def test_the_fewer_to_keep_are_the_newest_of_both_kinds(toy, whole, tmp_path):
    for stop, kept in ((7, ["checkpoint_epoch_2", "checkpoint_7"]), (10, ["checkpoint_epoch_3", "checkpoint_10"])):
        with pytest.raises(TrainingInterrupted):
            trainer(toy, tmp_path, Watch(stop=stop), keep_checkpoints=2).train(resume=True)
        assert names(tmp_path) == kept
    trainer(toy, tmp_path, keep_checkpoints=2).train(resume=True)
    assert names(tmp_path) == ["checkpoint_10", "checkpoint_epoch_4"]
    assert_same_end(whole, tmp_path)


def test_a_stop_at_the_end_of_an_epoch_leaves_one_checkpoint(toy, whole, tmp_path):
    with pytest.raises(TrainingInterrupted, match=r"checkpoint_epoch_2 "):
        trainer(toy, tmp_path, Watch(stop=6)).train()
    assert list_checkpoints(tmp_path) == [(3, tmp_path / "checkpoint_epoch_1"), (6, tmp_path / "checkpoint_epoch_2")]
    trainer(toy, tmp_path).train(resume=True)
    assert_same_end(whole, tmp_path)


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_run_from_a_given_epoch_is_the_same(toy, whole, tmp_path, epoch):
    again = Watch()
    trainer(toy, tmp_path, again).train(resume=whole / f"checkpoint_epoch_{epoch}")
    assert again.steps[0] == 3 * epoch + 1
    assert_same_end(whole, tmp_path)


@pytest.mark.parametrize(
    ("first", "then", "wanted"),
    [
        ("epoch", 3, ["checkpoint_epoch_1", "checkpoint_6", "checkpoint_9", "checkpoint_12"]),
        (3, "epoch", ["checkpoint_3", "checkpoint_epoch_2", "checkpoint_epoch_3", "checkpoint_epoch_4"]),
        ("epoch", 4, ["checkpoint_epoch_1", "checkpoint_4", "checkpoint_epoch_2", "checkpoint_8", "checkpoint_epoch_3",
                      "checkpoint_12"]),
    ],
)  # fmt: skip
def test_no_two_checkpoints_are_of_the_same_update(toy, tmp_path, first, then, wanted):
    trainer(toy, tmp_path, save_every=first).train()
    oldest = list_checkpoints(tmp_path)[0][1]
    trainer(toy, tmp_path, save_every=then).train(resume=oldest)
    assert names(tmp_path) == wanted


def test_a_folder_without_readable_metadata_is_no_checkpoint(toy, whole, tmp_path, caplog):
    with pytest.raises(TrainingInterrupted):
        trainer(toy, tmp_path, Watch(stop=4)).train()
    for name, content in (("checkpoint_80", None), ("checkpoint_81", "{"), ("checkpoint_82", "{}"),
                          ("checkpoint_83", '{"step": null}'), ("checkpoint_epoch_", '{"step": 84}'),
                          ("checkpoint_mine", '{"step": 85}')):  # fmt: skip
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / "metadata.json").write_text(content)
    assert names(tmp_path) == ["checkpoint_epoch_1", "checkpoint_4"]
    for number in range(80, 84):
        assert f"checkpoint_{number} is passed over, as its metadata cannot be read" in caplog.text
    assert "mine" not in caplog.text
    trainer(toy, tmp_path, keep_checkpoints=1).train(resume=True)
    assert names(tmp_path) == ["checkpoint_epoch_4"]
    assert (tmp_path / "checkpoint_80").is_dir()
    assert_same_end(whole, tmp_path)


def test_one_that_is_half_removed_has_lost_its_name(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda *args, **options: None)  # killed before it does anything
    trainer(toy, tmp_path, keep_checkpoints=1, epochs=2).train()
    monkeypatch.undo()
    assert names(tmp_path) == ["checkpoint_epoch_2"]
    assert (tmp_path / ".checkpoint_epoch_1.old").is_dir()
    remove_partial_files(tmp_path)
    assert {path.name for path in tmp_path.glob("*checkpoint*")} == {"checkpoint_epoch_2"}


def test_a_run_whose_only_checkpoint_cannot_be_read_is_not_begun_anew(toy, tmp_path):
    (tmp_path / "checkpoint_epoch_3").mkdir()
    with pytest.raises(ValueError, match=r"checkpoint_epoch_3 has no metadata\.json that can be read"):
        trainer(toy, tmp_path).train(resume=True)
    with pytest.raises(FileExistsError, match="has results of another run"):
        trainer(toy, tmp_path).train()
