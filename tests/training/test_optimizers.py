import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.freezing import apply_freeze
from mlx_bert.training.optimizers import GroupedOptimizer, ParameterGroup, clip_by_global_norm, parameter_groups
from mlx_bert.training.trainer import Trainer


def test_groups_are_exactly_these(toy):
    model = toy.model(hidden_sizes=[8])
    apply_freeze(model, "none")
    groups = {group.name: group for group in parameter_groups(model, TrainingArgs(learning_rate=1e-4))}
    assert set(groups) == {"encoder", "encoder, no decay", "head", "head, no decay"}
    layers = [f"bert.encoder.layers.{n}" for n in range(2)]
    matrices = {f"{layer}.{part}.weight" for layer in layers
                for part in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")}  # fmt: skip
    tables = {f"bert.encoder.embeddings.{name}.weight" for name in ("word", "position", "token_type")}
    assert set(groups["encoder"].parameters) == matrices | tables
    norms = {f"{layer}.{norm}.{kind}" for layer in layers
             for norm in ("attention_norm", "mlp_norm") for kind in ("weight", "bias")}  # fmt: skip
    norms |= {"bert.encoder.embeddings.norm.weight", "bert.encoder.embeddings.norm.bias"}
    biases = {name.replace("weight", "bias") for name in matrices}
    assert set(groups["encoder, no decay"].parameters) == norms | biases
    head = {name for name, array in tree_flatten(model.head.parameters()) if array.ndim == 2}
    assert set(groups["head"].parameters) == {f"head.{name}" for name in head}
    assert all(name.endswith(("bias", "norm.weight")) for name in groups["head, no decay"].parameters)
    settings = {name: (group.learning_rate, group.weight_decay) for name, group in groups.items()}
    assert settings == {
        "encoder": (1e-4, 0.01),
        "encoder, no decay": (1e-4, 0.0),
        "head": (pytest.approx(1e-3), 0.01),
        "head, no decay": (pytest.approx(1e-3), 0.0),
    }
    named = [name for group in groups.values() for name in group.parameters]
    assert sorted(named) == sorted(name for name, _ in tree_flatten(model.trainable_parameters()))
    assert not any("pooler" in name for name in named)


def test_layer_decay_and_a_rate_of_the_head(toy):
    model = toy.model()
    args = TrainingArgs(learning_rate=1e-3, head_learning_rate=5e-3, layer_decay=0.5, weight_decay=0.0)
    rates = {name: group.learning_rate for group in parameter_groups(model, args) for name in group.parameters}
    assert rates["bert.encoder.embeddings.word.weight"] == pytest.approx(1e-3 / 4)
    assert rates["bert.encoder.layers.0.mlp.up.weight"] == pytest.approx(1e-3 / 2)
    assert rates["bert.encoder.layers.1.mlp.up.bias"] == pytest.approx(1e-3)
    assert rates["head.output.weight"] == pytest.approx(5e-3)


def test_muon_takes_the_encoders_matrices_only(toy):
    model = toy.model()
    apply_freeze(model, "none")
    algorithms = {
        name: group.algorithm
        for group in parameter_groups(model, TrainingArgs(optimizer="muon"))
        for name in group.parameters
    }
    assert {name for name, algorithm in algorithms.items() if algorithm == "muon"} == {
        f"bert.encoder.layers.{n}.{part}.weight"
        for n in range(2)
        for part in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    }
    assert set(algorithms.values()) == {"muon", "adamw"}


@pytest.mark.parametrize(
    "setting", [{"head_weight_decay": 0.1}, {"head_schedule": "linear"}, {"head_warmup_ratio": 0.1}]
)
def test_settings_of_the_head_need_an_encoder(setting):
    with pytest.raises(ValueError, match=f"expected a model with an encoder and a head with {next(iter(setting))}"):
        parameter_groups(nn.Linear(2, 2), TrainingArgs(**setting))


def test_everything_frozen_is_refused(toy):
    model = toy.model()
    model.freeze()
    with pytest.raises(ValueError, match="expected trainable parameters but all are frozen"):
        parameter_groups(model, TrainingArgs())


def steps(algorithm, learning_rate, weight_decay, gradients, start):
    optimizer = GroupedOptimizer(
        [ParameterGroup("all", algorithm, learning_rate, weight_decay, ("w",))], {"w": mx.array(start)}
    )
    parameters = {"w": mx.array(start)}
    for gradient in gradients:
        parameters = optimizer.apply({"w": mx.array(gradient)}, parameters)
    return np.array(parameters["w"])


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_adam_and_adamw_are_torchs(name):
    random = np.random.default_rng(0)
    start = random.normal(size=(3, 4)).astype(np.float32)
    gradients = random.normal(size=(5, 3, 4)).astype(np.float32)
    weight = torch.nn.Parameter(torch.tensor(start))
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name]
    reference = kind([weight], lr=1e-2, weight_decay=0.1)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        reference.step()
    ours = steps(name, 1e-2, 0.1, gradients, start)
    np.testing.assert_allclose(ours, weight.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_a_task_without_a_gradient_rests_as_in_torch(name):
    random = np.random.default_rng(0)
    names = ("a", "b")
    starts = {task: random.normal(size=(3, 4)).astype(np.float32) for task in names}
    weights = {task: torch.nn.Parameter(torch.tensor(start)) for task, start in starts.items()}
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name]
    reference = kind(weights.values(), lr=1e-2, weight_decay=0.1)
    groups = [ParameterGroup(task, name, 1e-2, 0.1, (task,), True, task) for task in names]
    parameters = {task: mx.array(start) for task, start in starts.items()}
    optimizer = GroupedOptimizer(groups, parameters)
    update = mx.compile(optimizer.apply, inputs=optimizer.state, outputs=optimizer.state)
    for task in "abaaab":
        gradient = random.normal(size=(3, 4)).astype(np.float32)
        for other in names:
            weights[other].grad = torch.tensor(gradient) if other == task else None
        reference.step()
        gradients = {other: mx.array(gradient) if other == task else mx.zeros((3, 4)) for other in names}
        parameters = update(gradients, parameters)
    for task in names:
        np.testing.assert_allclose(parameters[task], weights[task].detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["lion", "adafactor", "muon"])
def test_a_task_without_a_gradient_rests(name):
    start, zero = {"w": mx.ones((3, 4))}, {"w": mx.zeros((3, 4))}
    optimizer = GroupedOptimizer([ParameterGroup("a", name, 1e-2, 0.1, ("w",), True, "a")], start)
    moved = optimizer.apply(start, start)
    state = optimizer.state_arrays()
    rested = optimizer.apply(zero, moved)
    assert not mx.array_equal(start["w"], moved["w"])
    assert mx.array_equal(moved["w"], rested["w"])
    assert all(mx.array_equal(state[key], array) for key, array in optimizer.state_arrays().items())


def test_muon_update_has_the_size_of_adamws():
    gradient = np.random.default_rng(0).normal(size=(1, 24, 8)).astype(np.float32)
    start = np.ones((24, 8), np.float32)
    moved = start - steps("muon", 0.01, 0.0, gradient, start)
    singular = np.linalg.svd(moved / 0.01, compute_uv=False)
    np.testing.assert_allclose(singular, 0.2 * np.sqrt(24), rtol=0.35)  # Newton-Schulz leaves singular values near 1
    decayed = steps("muon", 0.01, 0.5, gradient, start)
    np.testing.assert_allclose(decayed, start * (1 - 0.01 * 0.5) - moved, atol=1e-6)


@pytest.mark.parametrize("name", ["lion", "adafactor"])
def test_lion_and_adafactor_go_downhill(name):
    start = np.full((4, 4), 2.0, np.float32)
    after = steps(name, 1e-2, 0.0, [start] * 3, start)
    assert (after < start).all()


def test_schedule_factor_scales_every_group():
    groups = [ParameterGroup(n, "adamw", rate, 0.0, (n,)) for n, rate in (("a", 1e-2), ("b", 1e-3))]
    optimizer = GroupedOptimizer(groups, {"a": mx.zeros((2,)), "b": mx.zeros((2,))})
    optimizer.set_factor(0.5)
    after = optimizer.apply({"a": mx.ones((2,)), "b": mx.ones((2,))}, {"a": mx.zeros((2,)), "b": mx.zeros((2,))})
    assert after["a"].tolist() == pytest.approx([-5e-3] * 2, rel=1e-5)
    assert after["b"].tolist() == pytest.approx([-5e-4] * 2, rel=1e-5)


class StopAt(Callback):
    """Asks to stop after some updates, as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        if trainer.state.step == self.step:
            trainer._stop = True


def test_the_head_has_its_own_decay_and_schedule(toy, tmp_path):
    settings = {"learning_rate": 1e-3, "weight_decay": 0.1, "schedule": "linear", "warmup_ratio": 0.5,
                "head_weight_decay": 0.0, "head_schedule": "constant", "head_warmup_ratio": 0.0}  # fmt: skip
    groups = {group.name: group for group in parameter_groups(toy.model(), TrainingArgs(**settings))}
    assert {name: (group.weight_decay, group.is_head) for name, group in groups.items()} == {
        "encoder": (0.1, False), "encoder, no decay": (0.0, False), "head": (0.0, True)}  # fmt: skip
    assert {"head.output.weight", "head.output.bias"} <= set(groups["head"].parameters)
    seen = []

    class Rates(Callback):
        def on_step(self, trainer):
            rates = {
                group.is_head: rate.learning_rate.item() / group.learning_rate
                for group, rate in zip(trainer.optimizer.groups, trainer.optimizer.optimizers, strict=True)
            }
            seen.append((round(rates[False], 4), round(rates[True], 4)))  # fmt: skip

    def trainer(name, *callbacks):
        args = TrainingArgs(output_dir=str(tmp_path / name), epochs=2, batch_size=4, progress=False, **settings)
        return Trainer(toy.model(), args, toy.examples(8), tokenizer=toy.tokenizer, callbacks=callbacks)

    whole = trainer("whole", Rates())
    history = whole.train().history["epochs"]
    assert seen == [(0, 1), (0.5, 1), (1, 1), (0.5, 1)]
    assert history[-1]["learning_rate"] == pytest.approx(1e-2)  # the head's
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", StopAt(3)).train()
    again = trainer("cut")
    again.train(resume=True)
    for (name, array), (_, other) in zip(
        *(tree_flatten(run.model.parameters()) for run in (whole, again)), strict=True
    ):
        np.testing.assert_array_equal(array, other, err_msg=name)


@pytest.mark.parametrize("algorithm", ["adamw", "adam", "lion", "adafactor", "muon"])
def test_state_round_trip(algorithm):
    random = np.random.default_rng(1)
    start = {"w": mx.array(random.normal(size=(4, 6)).astype(np.float32))}
    gradients = [{"w": mx.array(random.normal(size=(4, 6)).astype(np.float32))} for _ in range(4)]
    groups = [ParameterGroup("all", algorithm, 1e-2, 0.01, ("w",))]
    first = GroupedOptimizer(groups, start)
    middle = first.apply(gradients[1], first.apply(gradients[0], start))
    second = GroupedOptimizer(groups, start)
    second.load_state_arrays(first.state_arrays())
    ends = []
    for optimizer in (first, second):
        ends.append(optimizer.apply(gradients[3], optimizer.apply(gradients[2], middle))["w"])
    assert mx.array_equal(*ends)
    with pytest.raises(ValueError, match="the saved state does not fit this run"):
        second.load_state_arrays({"0/step": mx.array(0)})


def test_clipping_is_torchs():
    random = np.random.default_rng(0)
    gradients = {name: random.normal(size=shape).astype(np.float32) for name, shape in (("a", (3, 5)), ("b", (7,)))}
    weights = [torch.nn.Parameter(torch.zeros(array.shape)) for array in gradients.values()]
    for weight, array in zip(weights, gradients.values(), strict=True):
        weight.grad = torch.tensor(array)
    reference = torch.nn.utils.clip_grad_norm_(weights, 0.7)
    clipped, norm = clip_by_global_norm({name: mx.array(array) for name, array in gradients.items()}, 0.7)
    assert norm.item() == pytest.approx(float(reference), rel=1e-6)
    for weight, array in zip(weights, clipped.values(), strict=True):
        np.testing.assert_allclose(np.array(array), weight.grad.numpy(), atol=1e-6)
    unbounded, _ = clip_by_global_norm({"a": mx.array([300.0])}, 0)
    small, _ = clip_by_global_norm({"a": mx.array([0.3])}, 1.0)
    assert unbounded["a"].tolist() == [300.0]
    assert small["a"].tolist() == pytest.approx([0.3])
