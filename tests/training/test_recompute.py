import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_bert.data.collate import Collator, tokenize_examples
from mlx_bert.encoders.bert import Layer
from mlx_bert.training import recompute
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.freezing import apply_freeze
from mlx_bert.training.trainer import Trainer


def gradients(model, batch, seed=0):
    mx.random.seed(seed)

    def loss(model):
        return model(batch["input_ids"], batch.get("attention_mask"), labels=batch["labels"])["loss"]

    value, found = nn.value_and_grad(model, loss)(model)
    return value.item(), {name: np.array(array) for name, array in tree_flatten(found)}


@pytest.fixture
def batch(toy):
    return Collator(toy.tokenizer.pad_id)(tokenize_examples(toy.examples(6), toy.tokenizer))


def test_gradients_are_the_same_without_dropout(toy, batch):
    model = toy.model(dropout=0.0).train()
    value, plain = gradients(model, batch)
    with recompute.gradient_checkpointing(model.bert.encoder.layers):
        again, recomputed = gradients(model, batch)
    assert again == pytest.approx(value, abs=1e-6)
    for name, array in plain.items():
        np.testing.assert_allclose(recomputed[name], array, atol=1e-6, err_msg=name, equal_nan=False)


def test_gradients_fit_the_forward_pass_with_dropout(toy, batch, monkeypatch):
    # the same keys with and without recomputation must drop the same values, in both passes
    model = toy.model(dropout=0.4).train()
    with recompute.gradient_checkpointing(model.bert.encoder.layers):
        value, recomputed = gradients(model, batch)
    monkeypatch.setattr(Layer, "__call__", recompute.recomputed(Layer.__call__, checkpoint=lambda function: function))
    again, plain = gradients(model, batch)
    assert again == pytest.approx(value, abs=1e-6)
    for name, array in plain.items():
        np.testing.assert_allclose(recomputed[name], array, atol=1e-6, err_msg=name)


def test_dropout_changes_from_step_to_step(toy, batch):
    model = toy.model(dropout=0.4).train()
    with recompute.gradient_checkpointing(model.bert.encoder.layers):
        assert gradients(model, batch, 0)[0] == gradients(model, batch, 0)[0] != gradients(model, batch, 1)[0]


def test_the_class_is_as_before_afterwards(toy):
    call = Layer.__call__
    with recompute.gradient_checkpointing(toy.model().bert.encoder.layers):
        assert Layer.__call__ is not call
    assert Layer.__call__ is call


def test_less_memory_is_in_use():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(32, 512), nn.Linear(512, 32)

        def __call__(self, x):
            inner = self.first(x)
            for _ in range(6):
                inner = mx.tanh(mx.sin(inner))
            return x + self.second(inner)

    blocks = [Block() for _ in range(8)]
    model = nn.Sequential(*blocks)
    x = mx.random.normal((128, 32))
    mx.eval(model.parameters(), x)

    def peak():
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(nn.value_and_grad(model, lambda: model(x).square().mean())())
        return mx.get_peak_memory() - before

    peak()
    plain = peak()
    with recompute.gradient_checkpointing(blocks):
        assert peak() < 0.5 * plain


def test_the_trainer_uses_it(toy, tmp_path):
    results = []
    for flag in (False, True):
        model = toy.model(dropout=0.0)
        apply_freeze(model, "1")
        args = TrainingArgs(output_dir=str(tmp_path / str(flag)), epochs=1, freeze="1", gradient_checkpointing=flag,
                            progress=False, save_every="no")  # fmt: skip
        Trainer(model, args, toy.examples(16), tokenizer=toy.tokenizer).train()
        results.append({name: np.array(array) for name, array in tree_flatten(model.parameters())})
    for name, array in results[0].items():
        np.testing.assert_allclose(results[1][name], array, atol=1e-5, err_msg=name)
