"""The loss and metrics of several tasks on one encoder."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from heads import MultiTaskNLPHead, NLPTaskConfig
from mlx_bert.core import BertCore
from mlx_bert.model import BertWithHead
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.multi_task import MultiTaskObjective
from mlx_bert.training.optimizers import GroupedOptimizer, parameter_groups
from mlx_bert.training.step import TrainingStep, flat_parameters

SIZES = {"mood": 2, "topic": 4}
CLASS_WEIGHTS = {"mood": [0.5, 3.0], "topic": [0.5, 1.0, 2.0, 3.0]}
TASK_WEIGHTS = {"mood": 1.0, "topic": 2.5}


@pytest.fixture(scope="module")
def model():
    tasks = [
        NLPTaskConfig(name, "text_classification", num_classes=size, loss_weight=TASK_WEIGHTS[name])
        for name, size in SIZES.items()
    ]
    kwargs = {name: {"class_weights": weights} for name, weights in CLASS_WEIGHTS.items()}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    core = BertCore({"model_type": "bert", "vocab_size": 20, "max_position_embeddings": 8, **sizes})
    return BertWithHead(core, MultiTaskNLPHead(tasks, 8, head_kwargs=kwargs)).eval()


@pytest.fixture(scope="module")
def data():
    """Logits and labels of 12 examples; every third lacks one of its labels, and two have none."""
    random = np.random.default_rng(0)
    logits = {f"{task}_logits": random.normal(size=(12, size)).astype(np.float32) for task, size in SIZES.items()}
    labels = {task: random.integers(0, size, 12).astype(np.int32) for task, size in SIZES.items()}
    labels["mood"][::3] = -100
    labels["topic"][[1, 3, 7]] = -100
    return logits, labels


def part(arrays, rows):
    return {name: mx.array(array[rows]) for name, array in arrays.items()}


def loss_of(model, data, rows, tasks=tuple(SIZES)):
    logits, labels = data
    batch = {"labels": {task: array for task, array in part(labels, rows).items() if task in tasks}}
    return [float(value) for value in MultiTaskObjective().loss(model, part(logits, rows), batch)]


def test_loss_is_torchs_weighted_mean(model, data):
    logits, labels = data
    total = weight = 0.0
    for task, classes in CLASS_WEIGHTS.items():
        wanted = torch.tensor(labels[task]).long()
        function = torch.nn.CrossEntropyLoss(torch.tensor(classes), reduction="sum")
        total += TASK_WEIGHTS[task] * function(torch.tensor(logits[f"{task}_logits"]), wanted).item()
        weight += sum(classes[label] for label in labels[task] if label >= 0)
    assert loss_of(model, data, slice(None)) == pytest.approx([total / weight, weight], rel=1e-5)


@pytest.mark.parametrize("cuts", [[6], [1, 5, 11], list(range(1, 12))])
def test_batches_add_up_to_one(model, data, cuts):
    """With class weights, labels that lack, and batches of which a task has no label at all."""
    whole, weight = loss_of(model, data, slice(None))
    bounds = [0, *cuts, 12]
    parts = [loss_of(model, data, slice(a, b)) for a, b in pairwise(bounds)]
    assert sum(w for _, w in parts) == pytest.approx(weight)
    assert sum(loss * w for loss, w in parts) / weight == pytest.approx(whole, rel=1e-5)
    by_task = [loss_of(model, data, slice(None), (task,)) for task in SIZES]  # batches of one task each
    assert sum(loss * w for loss, w in by_task) / weight == pytest.approx(whole, rel=1e-5)


def test_metrics_are_scikit_learns(model, data):
    logits, labels = data
    found = MultiTaskObjective().metrics(model, part(logits, slice(None)), part(labels, slice(None)))
    for task in SIZES:
        rows = labels[task] >= 0
        predicted, wanted = logits[f"{task}_logits"][rows].argmax(-1), labels[task][rows]
        assert found[f"{task}_accuracy"] == pytest.approx(accuracy_score(wanted, predicted))
        assert found[f"{task}_f1"] == pytest.approx(f1_score(wanted, predicted, average="macro", zero_division=0))
        assert found[f"{task}_loss"] == pytest.approx(
            loss_of(model, data, slice(None), (task,))[0] / TASK_WEIGHTS[task], rel=1e-5
        )
    assert found["accuracy"] == pytest.approx(np.mean([found[f"{task}_accuracy"] for task in SIZES]))
    assert found["f1"] == pytest.approx(np.mean([found[f"{task}_f1"] for task in SIZES]))


@pytest.mark.parametrize("batches", [1, 2])
def test_an_update_leaves_heads_without_an_example_as_they_are(model, batches):
    """After a first update of both, whose momentum would move them on."""
    args = TrainingArgs(learning_rate=1e-3, weight_decay=0.1)
    groups = parameter_groups(model.train(), args)
    assert {group.task for group in groups} == {"", *SIZES}
    step = TrainingStep(model, MultiTaskObjective(), GroupedOptimizer(groups, flat_parameters(model)), args)
    ids = mx.arange(12).reshape(2, 6)

    def update(*tasks):
        step([{"input_ids": ids, "labels": {task: mx.array([0, 1]) for task in tasks}}] * batches, [0] * batches)
        return flat_parameters(model)

    first = update(*SIZES)
    second = update("mood")
    moved = {name for name, array in second.items() if not mx.array_equal(array, first[name])}
    still = {name for name in second if ".topic." in name}
    assert still
    assert not moved & still
    assert {name for name in second if ".mood." in name} <= moved
    model.eval()


def test_each_task_may_have_a_weight_decay(model):
    args = TrainingArgs(weight_decay=0.1, head_weight_decay=0.2, task_weight_decay="mood=3e-2")
    decays = {(group.task, group.weight_decay) for group in parameter_groups(model, args) if group.weight_decay}
    assert decays == {("", 0.1), ("mood", 0.03), ("topic", 0.2)}
    with pytest.raises(ValueError, match="task_weight_decay names moot, but the model's tasks are mood, topic"):
        parameter_groups(model, TrainingArgs(task_weight_decay="mood=1,moot=2"))


@pytest.mark.parametrize("text", ["mood", "mood=", "mood=-1", "mood=a", "mood=nan", "=1", "a=1 b=2"])
def test_weight_decays_that_cannot_be_read(text):
    with pytest.raises(ValueError, match="expected task_weight_decay to be task=number, joined by commas"):
        TrainingArgs(task_weight_decay=text)


def test_weight_decays_of_tasks_with_any_name():
    assert TrainingArgs(task_weight_decay="a b, or c=.5, d=1e-3,e=2").decays_of_tasks() == {
        "a b, or c": 0.5,
        "d": 1e-3,
        "e": 2,
    }
