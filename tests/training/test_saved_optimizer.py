"""``save_optimizer``: the optimiser's state beside the best and the final model, which no loader minds."""

import shutil

import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from convert import convert
from mlx_bert.checkpoint import read_weights
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.masked_lm import MaskedLMTrainer, load_masked_lm
from mlx_bert.training.outcome import TrainingInterrupted
from mlx_bert.training.trainer import Trainer

FILE = "optimizer.safetensors"


def trainer(toy, folder, *callbacks, **settings):
    """With the greatest loss as the best, the best model is not the final one."""
    base = {"batch_size": 8, "learning_rate": 3e-3, "progress": False, "epochs": 3, "keep_checkpoints": 0}
    args = TrainingArgs(**{**base, "metric": "loss", "greater_is_better": True, **settings}, output_dir=str(folder))
    return Trainer(toy.model(), args, toy.examples(24), toy.examples(9, 1), toy.tokenizer, callbacks=callbacks)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array, err_msg=name)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"ema_decay": 0.9, "freeze_epochs": 1, "greater_is_better": False},
        {"optimizer": "muon", "save_every": 3},
        {"average_checkpoints": 2, "average_of": "best"},
    ],
)
def test_it_is_that_of_the_checkpoint_of_the_same_update(toy, tmp_path, more):
    result = trainer(toy, tmp_path, save_optimizer=True, **more).train()
    assert result.best_step < result.steps
    states = []
    for model, step in (("best_model", result.best_step), ("final_model", result.steps)):
        name = f"checkpoint_{step}" if "save_every" in more else f"checkpoint_epoch_{step // 3}"
        states.append(load_file(tmp_path / model / FILE))
        assert_same(load_file(tmp_path / name / FILE), states[-1])
    moments = [name for name in states[1] if name.endswith("/m")]
    assert any((states[0].get(name) != states[1][name]).any() for name in moments)
    BertWithHead.from_pretrained(tmp_path / "best_model")


class Stop(Callback):
    def on_step(self, trainer):
        trainer._stop = trainer.state.step == 4


def test_it_is_left_out_unless_asked_for_which_a_resumed_run_may_do(toy, tmp_path):
    with pytest.raises(TrainingInterrupted):
        trainer(toy, tmp_path, Stop()).train()
    assert (tmp_path / "checkpoint_4" / FILE).is_file()
    assert not (tmp_path / "best_model" / FILE).exists()
    trainer(toy, tmp_path, save_optimizer=True).train(resume=True)
    assert_same(load_file(tmp_path / "checkpoint_epoch_3" / FILE), load_file(tmp_path / "final_model" / FILE))
    shutil.rmtree(tmp_path)
    trainer(toy, tmp_path).train()
    for model in ("best_model", "final_model"):
        assert (tmp_path / model / "metadata.json").is_file()
        assert not (tmp_path / model / FILE).exists()


def test_what_loads_the_model_minds_its_own_file(tiny_bert_folder, tmp_path):
    from transformers import AutoModelForMaskedLM

    model, tokenizer = load_masked_lm(tiny_bert_folder), Tokenizer.from_pretrained(tiny_bert_folder)
    args = TrainingArgs(output_dir=str(tmp_path), epochs=1, batch_size=4, progress=False, save_optimizer=True)
    MaskedLMTrainer(model, tokenizer, args, ["the dog is good", "a bad day", "the old house", "so very happy"]).train()
    folder = tmp_path / "final_model"
    moments = load_file(folder / FILE)
    assert moments
    assert {path.name for path in folder.glob("*.safetensors")} == {FILE, "model.safetensors"}
    assert read_weights(folder).keys().isdisjoint(moments)
    wanted = dict(tree_flatten(model.parameters()))
    found = dict(tree_flatten(load_masked_lm(folder).parameters()))
    assert_same({k: np.array(v) for k, v in wanted.items()}, {k: np.array(v) for k, v in found.items()})
    theirs, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    name = "bert.embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(theirs.state_dict()[name].numpy(), load_file(folder / "model.safetensors")[name])
    convert(folder, tmp_path / "converted")
    assert not (tmp_path / "converted" / FILE).exists()
    converted = {k: np.array(v) for k, v in tree_flatten(load_masked_lm(tmp_path / "converted").parameters())}
    assert_same({k: np.array(v) for k, v in wanted.items()}, converted)
