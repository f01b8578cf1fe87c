import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_bert.model import BertWithHead
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.lora import (
    LoRAConfig,
    LoRALinear,
    apply_lora,
    load_adapters,
    lora_layers,
    merge_lora,
    merged_lora,
    save_adapters,
    unmerge_lora,
)
from mlx_bert.training.trainer import Trainer

ATTENTION = LoRAConfig(patterns=("*.attention.*",), rank=4)


def perturb(model, seed=0):
    """Give new adapters values that do something."""
    mx.random.seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_b = mx.random.normal(layer.lora_b.shape) * 0.3
        if "magnitude" in layer:
            layer.magnitude = layer.magnitude * mx.random.uniform(0.5, 1.5, layer.magnitude.shape)


def logits(model):
    ids = mx.array([[2, 7, 9, 11, 3], [2, 20, 30, 3, 0]])
    return np.array(model(ids, ids != 0)["logits"])


def weight_names(model):
    return [name for name, _ in tree_flatten(model.parameters())]


@pytest.mark.parametrize("dora", [False, True])
def test_the_formula(dora):
    mx.random.seed(0)
    linear = nn.Linear(6, 5)
    config = LoRAConfig(patterns=("*",), rank=3, alpha=6.0, dora=dora)
    layer = LoRALinear(linear, config)
    x = mx.random.normal((4, 6))
    np.testing.assert_allclose(layer(x), linear(x), atol=1e-6)  # a new adapter changes nothing
    layer.lora_b = mx.random.normal((3, 5))
    weight, a, b = (np.array(array) for array in (linear.weight, layer.lora_a, layer.lora_b))
    adapted = weight + 2.0 * (a @ b).T
    if dora:
        layer.magnitude = mx.arange(1.0, 6.0)
        adapted = adapted / np.linalg.norm(adapted, axis=1, keepdims=True) * np.arange(1.0, 6.0)[:, None]
    expected = np.array(x) @ adapted.T + np.array(linear.bias)
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    np.testing.assert_allclose(layer.merged()(x), expected, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_apply_merge_and_unmerge(toy, dora):
    model = toy.model().eval()
    before, names = logits(model), weight_names(model)
    paths = apply_lora(model, LoRAConfig(patterns=("*.qkv", "*.layers.1.mlp.up"), rank=4, dora=dora))
    assert paths == [
        "bert.encoder.layers.0.attention.qkv",
        "bert.encoder.layers.1.attention.qkv",
        "bert.encoder.layers.1.mlp.up",
    ]
    np.testing.assert_allclose(logits(model), before, atol=1e-5)
    perturb(model)
    adapted = logits(model)
    assert np.abs(adapted - before).max() > 0.01
    layers = merge_lora(model)
    assert weight_names(model) == names
    np.testing.assert_allclose(logits(model), adapted, atol=1e-4)
    unmerge_lora(model, layers)
    np.testing.assert_array_equal(logits(model), adapted)
    with merged_lora(model):
        assert not lora_layers(model)
    assert len(lora_layers(model)) == 3


def test_only_adapters_and_the_head_train(toy):
    model = toy.model()
    apply_lora(model, LoRAConfig(patterns=("*.qkv",), rank=4, dora=True))
    trained = {name for name, _ in tree_flatten(model.trainable_parameters())}
    adapters = {f"bert.encoder.layers.{n}.attention.qkv.{name}" for n in range(2)
                for name in ("lora_a", "lora_b", "magnitude")}  # fmt: skip
    assert {name for name in trained if name.startswith("bert.")} == adapters
    assert any(name.startswith("head.") for name in trained)


def test_a_quantised_layer_can_be_adapted():
    mx.random.seed(0)
    quantised = nn.QuantizedLinear.from_linear(nn.Linear(64, 32), group_size=32, bits=8)
    layer = LoRALinear(quantised, LoRAConfig(patterns=("*",), rank=2))
    layer.lora_b = mx.random.normal(layer.lora_b.shape)
    x = mx.random.normal((3, 64))
    assert {name for name, _ in tree_flatten(layer.trainable_parameters())} == {"lora_a", "lora_b"}
    np.testing.assert_allclose(layer.merged()(x), layer(x), atol=1e-4)


def test_adapters_are_saved_apart(toy, tmp_path):
    model = toy.model().eval()
    apply_lora(model, ATTENTION)
    perturb(model)
    save_adapters(model, tmp_path / "adapters", ATTENTION)
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
    ]
    other = toy.model().eval()
    assert load_adapters(other, tmp_path / "adapters") == ATTENTION
    np.testing.assert_array_equal(logits(other), logits(model))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_adapters(toy.model(), tmp_path)


def test_a_pattern_without_a_match_is_an_error(toy, tmp_path):
    with pytest.raises(ValueError, match=r"the pattern '\*\.query' matches no linear layer.*attention\.out"):
        apply_lora(toy.model(), LoRAConfig(patterns=("*.qkv", "*.query")))
    with pytest.raises(ValueError, match="expected at least one pattern"):
        LoRAConfig(patterns=())
    with pytest.raises(ValueError, match="expected rank >= 1"):
        LoRAConfig(patterns=("*",), rank=0)
    model = toy.model()
    with pytest.raises(ValueError, match="expected a model with adapters but it has none"):
        save_adapters(model, "unused", ATTENTION)
    apply_lora(model, ATTENTION)
    with pytest.raises(ValueError, match="expected a model without adapters"):
        apply_lora(model, ATTENTION)
    with pytest.raises(ValueError, match=r"expected an encoder without adapters .*merge_lora"):
        model.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_settings_that_exclude_each_other():
    with pytest.raises(ValueError, match="expected freeze to be left out with lora"):
        TrainingArgs(lora="*.qkv", freeze="backbone")
    with pytest.raises(ValueError, match="expected lora to be given with lora_rank"):
        TrainingArgs(lora_rank=4)


def test_training_adapters_saves_a_plain_model(toy, tmp_path):
    args = TrainingArgs(output_dir=str(tmp_path / "run"), epochs=2, learning_rate=1e-2, lora="*.attention.*, *.mlp.up",
                        lora_rank=4, freeze_epochs=1, progress=False, metric="loss")  # fmt: skip
    trainer = Trainer(toy.model(), args, toy.examples(30), toy.examples(9, 1), toy.tokenizer)
    start = {name: np.array(array) for name, array in tree_flatten(trainer.model.parameters())}
    result = trainer.train()
    end = {name: np.array(array) for name, array in tree_flatten(trainer.model.parameters())}
    moved = {name for name in start if (start[name] != end[name]).any()}
    assert any("lora_b" in name for name in moved)
    assert all("lora" in name or name.startswith("head.") for name in moved)
    loaded = BertWithHead.from_pretrained(tmp_path / "run/best_model")
    assert not lora_layers(loaded)
    trainer.model.eval()
    np.testing.assert_allclose(logits(loaded), logits(trainer.model), atol=1e-4)
    assert (tmp_path / "run/best_model/adapters/adapters.safetensors").is_file()
    assert result.best_step
