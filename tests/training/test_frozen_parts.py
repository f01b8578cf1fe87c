"""Top layers by their number, and single heads of a multi-task model: exactly the others move."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from heads import MultiTaskNLPHead, NLPTaskConfig
from mlx_bert.core import BertCore
from mlx_bert.data.collate import Collator, tokenize_examples
from mlx_bert.model import BertWithHead
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.freezing import apply_freeze, freeze_tasks, frozen_keys, phases_of
from mlx_bert.training.lora import merge_lora
from mlx_bert.training.multi_task import MultiTaskObjective
from mlx_bert.training.objective import HeadObjective
from mlx_bert.training.trainer import Trainer


def weights(model):
    return {name: np.array(array) for name, array in tree_flatten(model.parameters())}


def arguments(path, **changes):
    return TrainingArgs(output_dir=str(path), epochs=1, batch_size=8, progress=False, save_every="no", **changes)


@pytest.mark.parametrize(
    ("layers", "freeze"), [(0, "backbone"), (1, "5"), (5, "1"), (6, "embeddings"), (9, "embeddings"), (None, "as_is")]
)
def test_the_top_layers_are_what_the_bottom_ones_leave(layers, freeze):
    assert phases_of(TrainingArgs(unfreeze_layers=layers), 6)[-1].freeze == freeze


def test_only_the_top_layer_moves(toy, tmp_path):
    model = toy.model()
    before = weights(model)
    Trainer(model, arguments(tmp_path, unfreeze_layers=1), toy.examples(16), tokenizer=toy.tokenizer).train()
    names = moved(model, before)
    assert any(name.startswith("bert.encoder.layers.1.") for name in names)
    assert all(name.startswith(("head.", "bert.encoder.layers.1.")) for name in names)
    with pytest.raises(ValueError, match="expected unfreeze_layers to be None with freeze"):
        arguments(tmp_path, unfreeze_layers=1, freeze="1")
    with pytest.raises(ValueError, match="expected a model with an encoder"):
        phases_of(TrainingArgs(unfreeze_layers=1), None)


def moved(model, before):
    after = weights(model)
    return {name for name in before if (before[name] != after[name]).any()}


@pytest.mark.parametrize(
    ("settings", "layers"),
    [({}, "1"), ({"freeze_epochs": 1}, "1"), ({"gradual_unfreezing": 2}, "1"), ({"freeze": "none"}, "01")],
)
def test_what_the_caller_froze_stays_frozen_unless_told_otherwise(toy, tmp_path, settings, layers):
    model = toy.model()
    model.freeze_bert(1)
    before, frozen = weights(model), frozen_keys(model)
    Trainer(
        model, arguments(tmp_path, learning_rate=1e-2, **settings), toy.examples(16), tokenizer=toy.tokenizer
    ).train()
    names = moved(model, before)
    assert {name.split(".layers.")[1][0] for name in names if ".layers." in name} == set(layers)
    assert any("embeddings" in name for name in names) == ("0" in layers)
    assert frozen_keys(model) == frozen  # for this run alone was anything else frozen or not


def test_a_run_leaves_nothing_frozen_behind(toy, tmp_path):
    model = toy.model()
    args = arguments(tmp_path / "first", freeze="backbone")
    Trainer(model, args, toy.examples(16), tokenizer=toy.tokenizer).train()
    before = weights(model)
    Trainer(model, arguments(tmp_path / "second"), toy.examples(16), tokenizer=toy.tokenizer).train()
    assert any(name.startswith("bert.encoder.layers.0.") for name in moved(model, before))


def test_merged_adapters_leave_nothing_frozen_behind(toy, tmp_path):
    model = toy.model()
    Trainer(model, arguments(tmp_path / "first", lora="*.qkv"), toy.examples(16), tokenizer=toy.tokenizer).train()
    merge_lora(model)
    before = weights(model)
    Trainer(model, arguments(tmp_path / "second"), toy.examples(16), tokenizer=toy.tokenizer).train()
    assert any("embeddings" in name for name in moved(model, before))
    assert any(name.endswith("layers.0.attention.qkv.weight") for name in moved(model, before))


class Bare(nn.Module):
    """A model that cannot freeze its encoder."""

    def __init__(self, bert):
        super().__init__()
        self.bert = bert


def test_a_model_that_cannot_freeze_its_encoder_says_so(toy):
    model = Bare(toy.model().bert)
    assert not apply_freeze(model, "as_is")
    with pytest.raises(ValueError, match=r"expected a model with freeze_bert .* but got Bare"):
        apply_freeze(model, "backbone")


@pytest.fixture
def two_tasks(toy):
    """A model with two classification tasks, and examples with labels of both."""
    mx.random.seed(3)
    tasks = [NLPTaskConfig(name, "text_classification", num_labels=3) for name in ("mood", "topic")]
    bert = BertCore.from_pretrained(toy.folder)
    model = BertWithHead(bert, MultiTaskNLPHead(tasks, bert.get_hidden_size(), dropout_prob=0.0))
    examples = tokenize_examples(toy.examples(16), toy.tokenizer)
    both = [{**e, "labels": {"mood": int(e["labels"]), "topic": n % 3}} for n, e in enumerate(examples)]
    return model, both


def test_a_frozen_task_does_not_move_and_does_not_count(toy, tmp_path, two_tasks):
    model, examples = two_tasks
    objective = MultiTaskObjective()
    before = weights(model)
    args = arguments(tmp_path, freeze_tasks="topic", learning_rate=1e-3)
    Trainer(model, args, examples, tokenizer=toy.tokenizer, objective=objective).train()
    names = moved(model, before)
    assert any("task_heads.mood" in name for name in names)
    assert not any("task_heads.topic" in name for name in names)
    assert any(name.startswith("bert.encoder.layers.0.") for name in names)
    model.head.task_heads["topic"].freeze()
    batch = Collator(0)(examples)
    outputs = objective.forward(model, batch)
    loss, weight = objective.loss(model.train(), outputs, batch)
    alone = {**batch, "labels": {"mood": batch["labels"]["mood"]}}
    assert loss.item() == pytest.approx(objective.loss(model, outputs, alone)[0].item(), abs=1e-6)
    assert weight.item() == 16
    assert objective.loss(model.eval(), outputs, batch)[1].item() == 32  # in evaluation it is reported


def test_tasks_that_cannot_be_frozen(toy, tmp_path, two_tasks):
    model, examples = two_tasks
    for names, message in (
        ("tpic", "expected tasks among mood, topic but got tpic"),
        ("mood, topic", "expected a task that trains"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(model, arguments(tmp_path / names, freeze_tasks=names), examples, tokenizer=toy.tokenizer,
                    objective=MultiTaskObjective()).train()  # fmt: skip
    with pytest.raises(ValueError, match="expected a model of several tasks with freeze_tasks"):
        Trainer(toy.model(), arguments(tmp_path, freeze_tasks="a"), toy.examples(4), tokenizer=toy.tokenizer).train()


@pytest.mark.parametrize("kind", ["multi_task", "multi_task_nlp"])
def test_tasks_of_other_heads_stay_too(toy, tmp_path, two_tasks, kind):
    """With the head's own loss."""
    model, examples = two_tasks
    if kind == "multi_task":
        tasks = {name: {"type": "classification", "num_classes": 3} for name in ("mood", "topic")}
        config = {"head_type": "multi_task", "input_size": model.bert.get_hidden_size(), "output_size": 3}
        model = BertWithHead(model.bert, {**config, "extra": {"task_configs": tasks}})
    before = weights(model)
    args = arguments(tmp_path, freeze_tasks="topic", learning_rate=1e-3)
    Trainer(model, args, examples, tokenizer=toy.tokenizer).train()
    names = moved(model, before)
    assert any(".mood." in name for name in names)
    assert not any(".topic." in name for name in names)
    assert any(name.startswith("bert.encoder.layers.0.") for name in names)
    freeze_tasks(model, "topic")
    objective, batch = HeadObjective(), Collator(0)(examples)
    outputs = objective.forward(model.eval(), batch)
    alone = {**batch, "labels": {"mood": batch["labels"]["mood"]}}
    whole, part = (objective.loss(model, outputs, each)[0].item() for each in (batch, alone))
    assert whole != pytest.approx(part)
    assert objective.loss(model.train(), outputs, batch)[0].item() == pytest.approx(part)
    none_left = {**batch, "labels": {"topic": batch["labels"]["topic"]}}
    assert [value.item() for value in objective.loss(model, outputs, none_left)] == [0, 0]
