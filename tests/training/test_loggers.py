"""What a run logs: event files and offline W&B runs are read back, the picture of the curves is whole."""

import builtins
import glob
import json
from pathlib import Path

import pytest

from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.trainer import Trainer


def arguments(path, **changes):
    base = {"output_dir": str(path), "epochs": 2, "batch_size": 8, "log_every": 2, "progress": False}
    return TrainingArgs(**{**base, **changes})


def trainer_of(toy, path, callbacks=(), **changes):
    args = arguments(path, **changes)
    return Trainer(toy.model(), args, toy.examples(24), toy.examples(9, 1), toy.tokenizer, callbacks=callbacks)


def events(folder):
    """Tag -> step -> value, of the event files as they were written."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for name in sorted(glob.glob(f"{folder}/events.*")):
        data = Path(name).read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")  # length, its checksum, the event, its checksum
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


class StopAt(Callback):
    def on_step(self, trainer):
        if trainer.state.step == 4:
            trainer._stop = True


def test_event_files_have_what_the_history_has(toy, tmp_path):
    settings = {"log_to": "tensorboard", "save_every": 3, "keep_checkpoints": 0}
    with pytest.raises(KeyboardInterrupt):
        trainer_of(toy, tmp_path / "run", [StopAt()], **settings).train()
    result = trainer_of(toy, tmp_path / "run", **settings).train(resume=True)
    found = events(tmp_path / "run/tensorboard")
    for record in result.history["steps"]:
        for name in ("loss", "learning_rate", "grad_norm"):
            assert found[f"train/{name}"][record["step"]] == pytest.approx(record[name], rel=1e-6)
    for record in result.history["epochs"]:
        assert found["eval/accuracy"][record["step"]] == pytest.approx(record["eval_accuracy"])
        assert found["eval/loss"][record["step"]] == pytest.approx(record["eval_loss"])
        assert found["train/epoch_loss"][record["step"]] == pytest.approx(record["train_loss"])
    assert found["eval/loss"].keys() == {3, 6}


def test_wandb_offline(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer_of(toy, tmp_path / "run", log_to="wandb", epochs=1).train()
    (folder,) = (tmp_path / "run/wandb").glob("offline-run-*")
    (file,) = folder.glob("run-*.wandb")
    identity = (tmp_path / "run/wandb_id.txt").read_text()
    assert identity in file.name
    data = file.read_bytes()
    assert all(name in data for name in (b"train/loss", b"eval/accuracy", b"mlx-bert", b"gradient_accumulation_steps"))


def test_curves_are_drawn_at_the_end_of_any_run(toy, tmp_path):
    trainer_of(toy, tmp_path / "run", plot=True, epochs=1).train()
    first = (tmp_path / "run/curves.png").read_bytes()
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(KeyboardInterrupt):
        trainer_of(toy, tmp_path / "stopped", [StopAt()], plot=True, eval_every="no").train()
    assert (tmp_path / "stopped/curves.png").read_bytes() != first
    history = json.loads((tmp_path / "run/history.json").read_text())
    assert history["steps"]


@pytest.mark.parametrize(
    ("settings", "library", "message"),
    [
        ({"log_to": "tensorboard"}, "tensorboardX", r"pip install 'mlx-bert\[tensorboard\]'"),
        ({"log_to": "wandb"}, "wandb", r"pip install 'mlx-bert\[wandb\]'"),
        ({"plot": True}, "matplotlib", r"pip install 'mlx-bert\[plot\]'"),
    ],
)
def test_a_missing_library_is_said_before_training(toy, tmp_path, monkeypatch, settings, library, message):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == library:
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=message):
        trainer_of(toy, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_unknown_names():
    with pytest.raises(ValueError, match="expected log_to to be names among tensorboard, wandb but got"):
        TrainingArgs(log_to="tensorboard,x")
