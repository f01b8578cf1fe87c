"""``BertWithHead`` with every head: a compiled training step, saving, and a reload that is equal bit for bit."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from head_cases import CASES, L, padding
from mlx.utils import tree_flatten

from mlx_bert import BertWithHead, create_bert_core

CORE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 11}


def model_of(case) -> BertWithHead:
    mx.random.seed(0)
    return BertWithHead(create_bert_core(**CORE), case.config())


def batch_of(case, rows: int = 6) -> tuple[mx.array, mx.array]:
    shape = (rows, *case.inner, L)
    ids = np.random.default_rng(0).integers(1, 11, shape).astype(np.int32)
    return mx.array(ids), mx.array(padding(shape))


@pytest.mark.parametrize("name", CASES)
def test_step_save_reload(name, tmp_path):
    case = CASES[name]
    model = model_of(case)
    ids, mask = batch_of(case)
    targets = case.targets()
    optimizer = optim.SGD(learning_rate=0.1)

    def loss_of(ids, mask):
        return model.compute_loss(model(ids, mask), targets)

    def step(ids, mask):
        loss, gradients = nn.value_and_grad(model, loss_of)(ids, mask)
        optimizer.update(model, gradients)
        return loss

    before = {key: np.array(value) for key, value in tree_flatten(model.head.parameters())}
    step(ids, mask)
    mx.eval(model.parameters())
    after = dict(tree_flatten(model.head.parameters()))
    assert any(not np.array_equal(before[key], np.array(after[key])) for key in before)

    model.eval()
    model.save_pretrained(tmp_path)
    again = BertWithHead.from_pretrained(tmp_path)
    assert type(again.head) is type(model.head)
    assert again.head.config == model.head.config
    first, second = (dict(tree_flatten(m(ids, mask)["head_outputs"])) for m in (model, again))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert mx.array_equal(value, second[key]), key


@pytest.mark.parametrize("name", CASES)
def test_a_training_step_can_be_compiled(name):
    """Tracing shows whether the whole state is arrays; nothing is evaluated, which would start a C++ compiler."""
    case = CASES[name]
    model = model_of(case)
    ids, mask = batch_of(case)
    targets = case.targets()
    optimizer = optim.SGD(learning_rate=0.1)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state, mx.random.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(ids, mask):
        loss, gradients = nn.value_and_grad(model, lambda *batch: model.compute_loss(model(*batch), targets))(ids, mask)
        optimizer.update(model, gradients)
        return loss

    assert step(ids, mask).shape == ()
