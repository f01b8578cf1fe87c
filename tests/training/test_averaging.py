"""The mean of checkpoints: by hand, of the last and of the best, in a run that is cut off too."""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_bert.model import BertWithHead
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.averaging import average_checkpoints
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.checkpoints import best_checkpoints, last_checkpoints, list_checkpoints
from mlx_bert.training.trainer import Trainer


def arguments(path, **changes):
    base = {"output_dir": str(path), "epochs": 4, "batch_size": 8, "learning_rate": 3e-3, "progress": False}
    return TrainingArgs(**{**base, "keep_checkpoints": 0, "metric": "loss", "average_checkpoints": 2, **changes})


def head_of(folder):
    return np.array(BertWithHead.from_pretrained(folder).head.output.weight)


def by_hand(run, steps):
    arrays = [load_file(run / f"checkpoint_epoch_{step // 3}" / "model.safetensors") for step in steps]
    return {name: np.mean([each[name].astype(np.float64) for each in arrays], axis=0) for name in arrays[0]}


def test_the_mean_of_the_last_checkpoints_is_the_final_model(toy, tmp_path):
    args = arguments(tmp_path / "run")
    trainer = Trainer(toy.model(), args, toy.examples(24), toy.examples(9, 1), toy.tokenizer)
    result = trainer.train()
    wanted = by_hand(tmp_path / "run", (9, 12))
    np.testing.assert_allclose(head_of(tmp_path / "run/final_model"), wanted["head.output.weight"], atol=1e-7)
    last = result.history["epochs"][-1]
    assert last["averaged"] == ["checkpoint_epoch_3", "checkpoint_epoch_4"]
    metadata = json.loads((tmp_path / "run/final_model/metadata.json").read_text())
    assert metadata["metrics"]["eval_loss"] == last["eval_loss"]
    assert result.metrics["loss"] == min(record["eval_loss"] for record in result.history["epochs"])
    final = BertWithHead.from_pretrained(tmp_path / "run/final_model")
    again = Trainer(final, arguments(tmp_path / "x"), toy.examples(9, 1), toy.examples(9, 1), toy.tokenizer)
    assert again.evaluate()["loss"] == pytest.approx(last["eval_loss"], abs=1e-6)


def test_the_best_ones_are_kept_and_averaged(toy, tmp_path):
    # the greatest losses count as the best: those of the first epochs
    args = arguments(tmp_path / "run", greater_is_better=True, average_of="best", keep_checkpoints=1, epochs=5)
    result = Trainer(toy.model(), args, toy.examples(24), toy.examples(9, 1), toy.tokenizer).train()
    losses = {record["step"]: record["eval_loss"] for record in result.history["epochs"] if "averaged" not in record}
    best = sorted(sorted(losses, key=losses.get)[-2:])
    assert best != [12, 15]  # or the last would do
    assert result.history["epochs"][-1]["averaged"] == [f"checkpoint_epoch_{step // 3}" for step in best]
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == sorted({*best, 15})
    wanted = by_hand(tmp_path / "run", best)
    np.testing.assert_allclose(head_of(tmp_path / "run/final_model"), wanted["head.output.weight"], atol=1e-7)


class StopAt(Callback):
    def on_step(self, trainer):
        if trainer.state.step == 7:
            trainer._stop = True


def test_a_resumed_run_averages_the_same_and_only_the_last_phase_counts(toy, tmp_path):
    settings = {"freeze_epochs": 1, "epochs": 2, "average_checkpoints": 9}
    for name, callbacks in (("whole", ()), ("parts", [StopAt()])):
        args = arguments(tmp_path / name, **settings)
        model = toy.model()
        trainer = Trainer(model, args, toy.examples(24), toy.examples(9, 1), toy.tokenizer, callbacks=callbacks)
        try:
            result = trainer.train()
        except KeyboardInterrupt:
            trainer = Trainer(toy.model(), args, toy.examples(24), toy.examples(9, 1), toy.tokenizer)
            result = trainer.train(resume=True)
        assert result.history["epochs"][-1]["averaged"] == ["checkpoint_epoch_2", "checkpoint_epoch_3"]
    np.testing.assert_array_equal(head_of(tmp_path / "whole/final_model"), head_of(tmp_path / "parts/final_model"))
    assert [path.name for path in last_checkpoints(tmp_path / "whole", 9, phase=0)] == ["checkpoint_epoch_1"]
    assert len(best_checkpoints(tmp_path / "whole", 9)) == 2


def test_types_and_what_does_not_fit(tmp_path):
    first = {"a": np.array([1.0, 3.0], np.float16), "n": np.array([1, 2], np.uint32)}
    second = {"a": np.array([2.0, 5.0], np.float16), "n": np.array([3, 4], np.uint32)}
    values = {"large": 1e8, "small": 1.0, "negative": -1e8}
    parts = {"one": first, "two": second, "less": {"a": first["a"]}, "other": {**first, "a": np.zeros(3, np.float16)}}
    for name, arrays in {**parts, **{name: {"x": np.array([x], np.float32)} for name, x in values.items()}}.items():
        (tmp_path / name).mkdir()
        save_file(arrays, tmp_path / name / "model.safetensors")
    mean = average_checkpoints([tmp_path / "one", tmp_path / "two"])
    assert (mean["a"].tolist(), mean["a"].dtype, mean["n"].tolist()) == ([1.5, 4.0], mx.float16, [3, 4])
    for others in (["one", "other"], ["one", "less"], ["less", "one"]):
        with pytest.raises(ValueError, match=f"the checkpoints differ in {'n' if 'less' in others else 'a'}"):
            average_checkpoints([tmp_path / name for name in others])
    large = average_checkpoints([tmp_path / name for name in ("large", "small", "negative")])
    assert large["x"].item() == np.float32(1 / 3)  # float32 would have lost it
    with pytest.raises(ValueError, match="expected at least one checkpoint"):
        average_checkpoints([])
    assert last_checkpoints(tmp_path, 2) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average_checkpoints": 1}, "average_checkpoints to be 0, or 2 or more"),
        ({"ema_decay": 0.9}, "ema_decay to be None with average_checkpoints"),
        ({"save_every": "no"}, "save_every to be 'epoch' or a number"),
        ({"keep_checkpoints": 1}, "keep_checkpoints to be 0 or at least average_checkpoints"),
        ({"average_of": "best", "eval_every": "3"}, "eval_every to be as save_every"),
        ({"average_checkpoints": 0, "average_of": "best"}, "average_of to be 'last' without average_checkpoints"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **settings)
